"""The cache that ModelScope's own library keeps: what we put there it finds, and what it has fetched we find.

    <cache>/models/<owner>--<name>/snapshots/<revision>/<path>    <cache>: MODELSCOPE_CACHE, or ~/.cache/modelscope
    <cache>/.lock/file_<digest>.lock
    <cache>[/hub]/models/<owner>/<name, `.` as `___`>/<path>      modelscope up to 1.37; read first where it is there

(modelscope-hub 0.5.1: `_download.py`, `config.py`.) The folder of a branch does not tell which commit its files are
of, and the branch moves on. So a file of ours lies in the folder of its commit, and the folder where the library looks
has a hard link to it: it is found by both names and stored once, and the library replaces such a file, it never writes
into it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from llmdeploy.models.reference import MAIN, HubFile, HubRepo

COMMIT = re.compile(r"[0-9a-f]{40}")
PARTS = (".incomplete", ".parallel_tmp")
"""The endings of files that are not whole: the library's, and ours."""


def cache() -> Path:
    """The folder of ModelScope's cache, there or not."""
    if path := os.environ.get("MODELSCOPE_CACHE"):
        return Path(os.path.expanduser(path)).absolute()
    return Path(os.path.expanduser("~/.cache/modelscope"))


def snapshot(repo: str, revision: str) -> Path:
    """The folder of a repository's files at a revision: a branch, a tag or a commit."""
    return cache() / "models" / repo.replace("/", "--") / "snapshots" / revision


def home(repo: HubRepo) -> Path:
    """The folder in which the library looks for the files of that revision."""
    older = _older_home(repo.repo) if repo.revision == MAIN["ms"] else None
    return older or snapshot(repo.repo, repo.revision)


def lock(repo: str, path: str) -> Path:
    """The lock file that the library takes before it writes a file of a repository, whatever the revision."""
    key = "\0".join(("modelscope-hub-download-lock-v2", "file", "model", repo, path))
    return cache() / ".lock" / f"file_{hashlib.sha256(key.encode()).hexdigest()}.lock"


def find(file: HubFile) -> Path | None:
    """The file in the cache, whole, or None."""
    if ".." in f"{file.revision}/{file.file}".split("/"):
        return None
    with suppress(OSError):
        return next((path for folder in _homes(file.home) if (path := folder / file.file).is_file()), None)
    return None


def held(repo: HubRepo) -> tuple[str, ...]:
    """The paths of the repository's files that are whole in the cache at that revision."""
    return tuple(sorted({path for folder in _homes(repo) for path in _files(folder)}))


def link(file: Path, into: Path) -> Path:
    """Have the file lie in another place of the cache too; where it lies there. Raises OSError."""
    if into == file:
        return into
    into.parent.mkdir(parents=True, exist_ok=True)
    into.unlink(missing_ok=True)
    try:
        os.link(file, into)
    except OSError:  # a file system without hard links
        into.symlink_to(file)
    return into


def commit_of(files: Iterable[Path]) -> str | None:
    """The commit that files of this cache are of; None for others, and for those that the library has fetched."""
    return next((commit for file in files if (commit := _commit(file))), None)


def repositories(root: Path) -> list[tuple[HubRepo, Path]]:
    """What a cache holds: each repository at each revision, branches and tags first, and the folder of its files.

    The same file may be in several of them: at its branch and at its commit.
    """
    models = root / "models"
    snapshots = sorted(models.glob("*--*/snapshots/*"), key=lambda folder: (_is_commit(folder), folder))
    older = [folder for base in (models, root / "hub" / "models") for folder in sorted(base.glob("*/*"))]
    found = [(_at(folder), folder) for folder in snapshots]
    found += [(_at_older(folder), folder) for folder in older if "--" not in folder.parent.name]
    return [(repo, folder) for repo, folder in found if folder.is_dir()]


def _homes(repo: HubRepo) -> tuple[Path, Path]:
    return home(repo), snapshot(repo.repo, repo.revision)


def _older_home(repo: str) -> Path | None:
    owner, _, name = repo.partition("/")
    folders = [cache() / base / owner / name.replace(".", "___") for base in ("models", "hub/models")]
    with suppress(OSError):
        return next((folder for folder in folders if folder.is_dir() and any(folder.iterdir())), None)
    return None


def _at(snapshot: Path) -> HubRepo:
    return HubRepo(snapshot.parents[1].name.replace("--", "/", 1), snapshot.name, "ms")


def _at_older(folder: Path) -> HubRepo:
    return HubRepo(f"{folder.parent.name}/{folder.name.replace('___', '.')}", MAIN["ms"], "ms")


def _is_commit(folder: Path) -> bool:
    return COMMIT.fullmatch(folder.name) is not None


def _files(folder: Path) -> Iterator[str]:
    """The files in a folder, by their paths in it; those that are not whole left out, and the library's own."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if not name.parts[0].startswith(".") and not name.name.endswith(PARTS) and path.is_file():
            yield name.as_posix()


def _commit(file: Path) -> str | None:
    file = file.absolute()
    revision = next((folder for folder in file.parents if folder.parent.name == "snapshots"), None)
    if revision is None:
        return None
    if _is_commit(revision):
        return revision.name
    for commit in revision.parent.glob("*"):
        with suppress(OSError):
            if _is_commit(commit) and (commit / file.relative_to(revision)).samefile(file):
                return commit.name
    return None
