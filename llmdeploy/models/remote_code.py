"""The Python code that comes with a model in Hugging Face form: who names it, what would run, and a digest of it all.

transformers runs it where a configuration says so: `"auto_map": {"AutoModel": "modeling_x.X"}` names a class in a file
beside the configuration, and `"owner/repo--modeling_x.X"` one in another repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import bounded_file
from llmdeploy.errors import ModelInvalid
from llmdeploy.models import source
from llmdeploy.models.reference import HubFile, HubRepo

if TYPE_CHECKING:
    import hashlib

CONFIGURATIONS = ("*config*.json", "modules.json", "model_index.json", "params.json")
"""Patterns of the files that can name code: those of the model, its tokenizer, processors, generation and layers."""
MOST_FILES = 10_000
"""The most files of a folder that are looked through."""
LONGEST = 16 * 1024**2
"""The most bytes of a configuration or of a file with code."""
FETCH_AGAIN = "fetch the file again, or remove it if the model does not need it"
NAMED = 20
"""The most files and repositories that a message names."""
OTHER = "--"
"""The mark between the name of another repository and a class in it."""


@dataclass(frozen=True)
class RemoteCode:
    """The code of one model. It is false if no configuration names any: then nothing would run."""

    named: tuple[str, ...] = ()
    """The classes that configurations name."""
    files: tuple[str, ...] = ()
    """Paths of all Python files in the model's folder: those that are named import others."""
    repositories: tuple[HubRepo, ...] = ()
    """The other repositories that code comes from, at their commit if they are on this machine."""
    digest: str = ""
    """Digest of the configurations, the files, and the repositories with their files on this machine."""

    def __bool__(self) -> bool:
        return bool(self.named)

    def __str__(self) -> str:
        """Name the other repositories and the files, the repositories first: they are easily overlooked."""
        names = [*(f"the repository `{repo}`" for repo in self.repositories), *(f"`{file}`" for file in self.files)]
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        return ", ".join(names[:NAMED]) + more


def find(folder: Path, revision: str = "main") -> RemoteCode:
    """Return the code of the model in `folder`. `revision`: that of the other repositories. Raises ModelInvalid."""
    import hashlib

    paths = _paths(folder)
    code = [path for path in paths if path.endswith(".py")]
    configurations = [path for path in paths if _is_configuration(path)]
    named = sorted({name for path in configurations for name in classes(_json(folder / path), code)})
    repositories = [HubRepo(repo, revision) for repo in sorted({_repository(name) for name in named} - {""})]
    digest = hashlib.sha256()
    for path in (*configurations, *code):
        _add(digest, path, _content(folder / path))
    for repo in repositories:
        _add(digest, str(repo), b"")
        for file in _cached(repo):
            _add(digest, file.name, _content(file))
    return RemoteCode(tuple(named), tuple(code), tuple(map(_pinned, repositories)), digest.hexdigest())


def classes(document: Any, files: Sequence[str] = ()) -> Iterator[str]:
    """Yield the classes that a configuration names on any level. `files`: the Python files beside it."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            for key, inner in value.items():
                if key in {"auto_map", "custom_pipelines"}:
                    yield from _strings(inner)
                elif key == "type" and isinstance(inner, str) and _is_module(inner, files):
                    yield inner


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
        elif isinstance(inner, str) and ("." in inner or OTHER in inner):
            yield inner


def _is_module(name: str, files: Sequence[str]) -> bool:
    """Return whether a layer of sentence-transformers is a class of the model's own, and not of that library."""
    return OTHER in name or ("." in name and f"{name.rpartition('.')[0].replace('.', '/')}.py" in files)


def _repository(name: str) -> str:
    return name.partition(OTHER)[0] if OTHER in name else ""


def _paths(folder: Path) -> list[str]:
    """Return the paths of the files in a folder and the folders in it, sorted. Links to folders are followed once."""
    found: list[str] = []
    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=True):
        inner = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = [name for name, real in inner.items() if real not in seen]
        seen.update(inner.values())
        found += [Path(root, name).relative_to(folder).as_posix() for name in names]
        if len(found) > MOST_FILES:
            raise ModelInvalid(
                f"`{folder}` holds more than {MOST_FILES} files", "give a folder that holds the model's files alone"
            )
    return sorted(found)


def _is_configuration(path: str) -> bool:
    return any(fnmatch(path.rpartition("/")[2], pattern) for pattern in CONFIGURATIONS)


def _content(file: Path) -> bytes:
    """Read a file of code or configuration. Raises ModelInvalid for one that is not a regular file, or too long."""
    try:
        return bounded_file.read(file, LONGEST)
    except OSError as error:
        raise ModelInvalid(f"`{file}` cannot be read: {error.strerror}", FETCH_AGAIN) from error


def _json(file: Path) -> Any:
    """Read a configuration. Raises ModelInvalid: code that another parser would find must not be missed."""
    try:
        return bounded_file.json_value(_content(file))
    except ValueError as error:
        raise ModelInvalid(f"`{file}` cannot be read: {error}", FETCH_AGAIN) from error


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    """Add a name and a content, each with its length, so that no two lists of files have the same digest."""
    for part in (name.encode(errors="surrogateescape"), content):
        digest.update(len(part).to_bytes(8) + part)


def _cached(repo: HubRepo) -> list[Path]:
    """Return the Python files of another repository that are on this machine."""
    origin = source.origin(repo.source)
    paths = [path for path in origin.cached_paths(repo) if path.endswith(".py")]
    found = [origin.cached(HubFile(repo.repo, path, repo.revision, repo.source)) for path in paths]
    return [file for file in found if file]


def _pinned(repo: HubRepo) -> HubRepo:
    commit = source.commit_of(_cached(repo))
    return HubRepo(repo.repo, commit) if commit else repo
