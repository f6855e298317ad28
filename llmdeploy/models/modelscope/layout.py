"""The layout of the cache that llmdeploy shares with ModelScope's own library.

    <cache>/models/<owner>--<name>/snapshots/<revision>/<path>    <cache>: MODELSCOPE_CACHE, or ~/.cache/modelscope
    <cache>/models/<owner>--<name>/refs/<branch>                  llmdeploy's: the commit at the last download
    <cache>/.lock/file_<digest>.lock
    <cache>[/hub]/models/<owner>/<name, `.` as `___`>/<path>      modelscope up to 1.37; read first if it exists

(modelscope-hub 0.5.1: `_download.py`, `config.py`.) The library's folder of a branch may have files of several commits
without a record of which. So llmdeploy puts a file into the folder of its commit, and a hard link to it into the folder
that the library reads: stored once, found by both. The library replaces such a link, it never writes into the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from llmdeploy import atomic_file, bounded_file
from llmdeploy.models.reference import MAIN, HubFile, HubRepo
from llmdeploy.models.safe_paths import below

COMMIT = re.compile(r"[0-9a-f]{40}")
PARTS = (".incomplete", ".parallel_tmp")
"""Suffixes of partial files, of llmdeploy and of the library."""


def cache() -> Path:
    """Return the folder of ModelScope's cache, which need not exist."""
    if path := os.environ.get("MODELSCOPE_CACHE"):
        return Path(os.path.expanduser(path)).absolute()
    return Path(os.path.expanduser("~/.cache/modelscope"))


def snapshot(repo: str, revision: str) -> Path:
    """Return the folder of a repository's files at a revision: a branch, a tag or a commit."""
    folder = _repository(repo) / "snapshots"
    return below(folder, folder / revision)


def library_folder(repo: HubRepo) -> Path:
    """Return the folder in which the library looks for the files of that revision."""
    older = _older_folder(repo.repo) if repo.revision == MAIN["ms"] else None
    return older or snapshot(repo.repo, repo.revision)


def lock(repo: str, path: str) -> Path:
    """Return the lock file that the library takes before it writes a file, one for all its revisions."""
    import hashlib

    key = "\0".join(("modelscope-hub-download-lock-v2", "file", "model", repo, path))
    return cache() / ".lock" / f"file_{hashlib.sha256(key.encode()).hexdigest()}.lock"


def find(file: HubFile) -> Path | None:
    """Return the whole file in the cache, or None."""
    if ".." in PurePosixPath(file.revision, file.file).parts:
        return None
    with suppress(OSError):  # a folder without permission
        path = _folder(file.home) / file.file
        return path if path.is_file() else None
    return None


def cached_paths(repo: HubRepo) -> tuple[str, ...]:
    """Return the paths of the repository's files that are whole in the cache at that revision."""
    return tuple(sorted(_files(_folder(repo)))) if ".." not in PurePosixPath(repo.revision).parts else ()


def name(repo: HubRepo, commit: str) -> None:
    """Record that the branch or tag is at that commit. Raises OSError."""
    ref = _ref(repo)
    if repo.revision != commit and _named(ref) != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.replace(ref, commit.encode())


def share(file: Path, into: Path) -> None:
    """Link the file into the library's own folder too, if the file system has hard links."""
    with suppress(OSError):
        into.parent.mkdir(parents=True, exist_ok=True)
        if not into.exists() or not into.samefile(file):
            into.unlink(missing_ok=True)
            into.hardlink_to(file)


def repositories(root: Path) -> list[tuple[HubRepo, Path]]:
    """Return each repository of a cache at each revision, branches and tags first, with the folder of its files.

    The same file may be in several of these folders: at its branch and at its commit.
    """
    models = root / "models"
    snapshots = sorted(models.glob("*--*/snapshots/*"), key=lambda folder: (_is_commit(folder), folder))
    older = [folder for base in (models, root / "hub" / "models") for folder in sorted(base.glob("*/*"))]
    found = [(_at(folder), folder) for folder in snapshots]
    found += [(_at_older(folder), folder) for folder in older if "--" not in folder.parent.name]
    return [(repo, folder) for repo, folder in found if folder.is_dir()]


def _repository(repo: str) -> Path:
    folder = cache() / "models"
    return below(folder, folder / repo.replace("/", "--"))


def _folder(repo: HubRepo) -> Path:
    """Return llmdeploy's folder of the last commit, or the library's folder if that one does not exist."""
    commit = _named(_ref(repo))
    ours = snapshot(repo.repo, commit) if commit else None
    return ours if ours and ours.is_dir() else library_folder(repo)


def _ref(repo: HubRepo) -> Path:
    folder = _repository(repo.repo) / "refs"
    return below(folder, folder / repo.revision)


def _named(ref: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        commit = bounded_file.read(ref).decode("ascii").strip()
        return commit if COMMIT.fullmatch(commit) else None
    return None


def _older_folder(repo: str) -> Path | None:
    owner, _, name = repo.partition("/")
    if ".." in {owner, name}:
        return None
    root = cache()
    folders = [root.joinpath(base, owner, name.replace(".", "___")) for base in ("models", "hub/models")]
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
    """Yield the paths of the files in a folder, without partial files and the library's own records."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if not name.parts[0].startswith(".") and not name.name.endswith(PARTS) and path.is_file():
            yield name.as_posix()
