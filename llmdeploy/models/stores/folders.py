"""Folders that `llmdeploy pull --dir` put models into, and the model that ships with the package.

A record lists the files that were put there: llmdeploy removes only those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import UsageError
from llmdeploy.models.hf_facts import CONFIG
from llmdeploy.models.reference import CatalogName, HubRepo, parse
from llmdeploy.models.safe_paths import is_within
from llmdeploy.models.safetensors import INDEX, indexed
from llmdeploy.models.stores.installed import InstalledModel, StoreListing, is_whole, last_used, walk
from llmdeploy.models.stores.repository import models_in
from llmdeploy.models.weights import GGUF, HF
from llmdeploy.paths import data_dir, selftest_dir

PART = ".incomplete"
"""Suffix of a partial file."""


@dataclass(frozen=True)
class Filled:
    """The files of one repository that were put into a folder."""

    folder: Path
    repo: HubRepo
    files: tuple[str, ...]
    """Paths within the folder, the same as within the repository."""


def save(folder: Path, repo: HubRepo, files: Sequence[str]) -> None:
    """Record that these files of a repository are put into a folder, before their first byte.

    So their partial files can be removed too. Folders that no longer exist are dropped. An error is ignored, because a
    lost record costs only a line in the list of models.
    """
    now = Filled(Path(os.path.abspath(folder)), repo, tuple(files))
    same = [one for one in filled() if (one.folder, one.repo) == (now.folder, now.repo)]
    now = Filled(now.folder, now.repo, tuple(dict.fromkeys([*(file for one in same for file in one.files), *files])))
    _write([*(one for one in filled() if one not in same), now])


def forget(folder: Path, files: Sequence[Path]) -> None:
    """Remove these files, given by their absolute paths, from the record."""
    gone = {os.path.abspath(file) for file in files}
    left = [
        Filled(one.folder, one.repo, tuple(file for file in one.files if str(one.folder / file) not in gone))
        for one in filled()
    ]
    _write([one for one in left if one.files])


def filled() -> list[Filled]:
    """Return the recorded folders that still exist; none if the record cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        document: dict[str, Any] = _record().read({})
        found = [_filled(one) for one in document["folders"]]
        return [one for one in found if one and one.folder.is_dir()]
    return []


def read() -> StoreListing:
    """Return the models in the folders, and the one that ships with the package."""
    return StoreListing((*(model for one in filled() for model in _models(one)), _shipped()))


def _models(one: Filled) -> Iterator[InstalledModel]:
    files = {path: one.folder / path for path in one.files if is_whole(one.folder / path)}
    parts = tuple(part for path in one.files if (part := one.folder / f"{path}{PART}").is_file())
    found = models_in(one.repo, list(files), indexed(files.get(INDEX)), files.get(CONFIG))
    for group in found:
        paths = tuple(files[path] for path in group.files)
        whole = group.files and not group.files[0].endswith(".gguf")
        yield InstalledModel(
            one.folder if whole else paths[0],
            "folder",
            one.folder,
            paths,
            group.formats,
            last_used(paths),
            parts=parts if len(found) == 1 else (),
            detail=group.detail or f"from `{one.repo}`",
        )
    if parts and len(found) != 1:
        yield InstalledModel(
            one.folder, "folder", one.folder, (), (), last_used(parts), parts=parts, detail=f"from `{one.repo}`"
        )


def _shipped() -> InstalledModel:
    files = tuple(file for file in walk(selftest_dir()) if file.suffix in {".gguf", ".safetensors", ".json", ".jinja"})
    return InstalledModel(
        CatalogName("selftest"),
        "folder",
        selftest_dir(),
        files,
        (GGUF, HF),
        last_used(files),
        detail="ships with llmdeploy",
    )


def _record() -> JsonFile:
    return JsonFile(data_dir() / "folders.json", indent=2)


def _filled(document: dict[str, object]) -> Filled | None:
    with suppress(UsageError):
        repo = parse(str(document["repo"]))
        files, folder = document["files"], Path(str(document["folder"]))
        # `models rm` removes these files: a path must not lead out of the folder.
        if (
            isinstance(repo, HubRepo)
            and isinstance(files, list)
            and all(map(is_within, files))
            and folder.is_absolute()
        ):
            return Filled(folder, repo, tuple(files))
    return None


def _write(folders: list[Filled]) -> None:
    content = [{"folder": str(one.folder), "repo": str(one.repo), "files": list(one.files)} for one in folders]
    with suppress(OSError):
        data_dir().mkdir(
            parents=True, exist_ok=True, mode=0o755
        )  # not private: other users may run the environments in it
        _record().write({"folders": content})
