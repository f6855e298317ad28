"""The Hub's cache on this machine, in the layout that huggingface_hub, transformers and vLLM share.

    models--owner--name/refs/main                   the commit of the branch at its last download
    models--owner--name/snapshots/COMMIT/PATH       a link to the content
    models--owner--name/blobs/DIGEST                the content, by its SHA-256, or by Git's SHA-1 if it is in Git
    .locks/models--owner--name/DIGEST.lock          locked by the process that writes that blob

On systems that do not allow links (Windows), the content is in the snapshot itself. Layout:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from llmdeploy import bounded_file
from llmdeploy.errors import DownloadFailed, LlmdeployError
from llmdeploy.models.hub import library
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.safe_paths import below
from llmdeploy.models.source import Listing, RemoteFile

COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST_REF = 1024
"""Bytes of a file that names a commit, at most."""
PART = ".llmdeploy.incomplete"
"""Suffix of a partial file after the digest: huggingface_hub's own names are not found by a later download."""


def cache() -> Path:
    library.disable_telemetry()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).expanduser()


def cached(file: HubFile) -> Path | None:
    snapshot = _snapshot(file.home)
    if snapshot is None or ".." in PurePosixPath(file.file).parts:
        return None
    with suppress(OSError):  # a folder without permission: the download reports it
        path = snapshot / file.file
        return path if path.is_file() else None
    return None


def cached_paths(repo: HubRepo) -> tuple[str, ...]:
    snapshot = _snapshot(repo)
    if snapshot is None:
        return ()
    with suppress(OSError):  # as above
        return tuple(sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()))
    return ()


def part(listing: Listing, file: RemoteFile) -> Path:
    """Return the path of the partial file, or of the file itself if another commit has brought its content."""
    blob, pointer = _blob(listing, file), _pointer(listing, file)
    whole = next((path for path in (blob, pointer) if path.is_file() and path.stat().st_size == file.size), None)
    return whole or blob.with_name(file.digest + PART)


def lock(listing: Listing, file: RemoteFile) -> Path:
    return below(cache(), cache() / ".locks" / _folder(listing.repo).name / f"{file.digest}.lock")


def in_work(repository: Path) -> bool:
    """Return whether a program is writing files of the repository in that folder."""
    from filelock import FileLock, Timeout

    for path in (repository.parent / ".locks" / repository.name).glob("*.lock"):
        try:
            with FileLock(path, timeout=0, mode=0o664):
                pass
        except Timeout:
            return True
        except (OSError, NotImplementedError):  # a file of another user, or a file system without locks: unknown
            continue
    return False


def place(listing: Listing, file: RemoteFile, part: Path) -> Path:
    blob, pointer, _ = _blob(listing, file), _pointer(listing, file), _ref(listing.repo)
    if part not in {blob, pointer}:
        part.replace(blob)
    if not pointer.is_file():
        _link(blob, pointer)
    _name(_ref(listing.repo), listing.commit)
    return pointer


def remove(files: Collection[Path], repositories: Collection[Path]) -> None:
    """Remove files of snapshots, and whole repositories (their folders), from the cache.

    A blob that another file needs stays, by huggingface_hub's own rules. Raises LlmdeployError if something remains.
    """
    library.silence()
    from huggingface_hub import scan_cache_dir

    for path in [it for it in files if it.is_symlink() and not it.resolve().is_relative_to(cache().resolve())]:
        path.unlink()  # the library would remove the file that it leads to, which is not the cache's
    real = {path.parent.resolve() / path.name for path in files}
    folders = {folder.resolve() for folder in repositories}
    found = scan_cache_dir(cache())
    for repo in found.repos:
        if repo.repo_path in folders:
            # Only this one: a copy of a repository has the same commits.
            alone = replace(found, repos=frozenset({repo}))
            alone.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
        elif gone := [it for revision in repo.revisions for it in revision.files if it.file_path in real]:
            found.delete_files(*gone).execute()
    for folder in folders - {repo.repo_path for repo in found.repos}:  # it has no snapshot, or a broken one
        shutil.rmtree(folder)
    if left := [path for path in (*files, *repositories) if os.path.lexists(path)]:
        raise LlmdeployError(
            f"`{left[0]}` could not be removed", "see who owns it: `ls -ld` shows that", code="not_removed"
        )


def _folder(repo: HubRepo) -> Path:
    return below(cache(), cache() / f"models--{repo.repo.replace('/', '--')}")


def _blob(listing: Listing, file: RemoteFile) -> Path:
    folder = _folder(listing.repo) / "blobs"
    return below(folder, folder / file.digest)


def _pointer(listing: Listing, file: RemoteFile) -> Path:
    folder = _folder(listing.repo) / "snapshots"
    return below(below(folder, folder / listing.commit), folder / listing.commit / file.path)


def _ref(repo: HubRepo) -> Path:
    """Return the file that has the commit of a branch or tag."""
    folder = _folder(repo) / "refs"
    return below(folder, folder / repo.revision)


def _snapshot(repo: HubRepo) -> Path | None:
    """Return the folder of the repository's files at its revision; it need not exist."""
    commit = repo.revision
    if not COMMIT.fullmatch(commit):
        try:
            commit = bounded_file.read(_ref(repo), LONGEST_REF).decode("ascii").strip()
        except (OSError, ValueError, DownloadFailed):  # it is missing, or no file can have that name
            return None
    return _folder(repo) / "snapshots" / commit if COMMIT.fullmatch(commit) else None


def _link(blob: Path, pointer: Path) -> None:
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)  # a broken link
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except FileExistsError:  # another process made it
        return
    except OSError:  # Windows, for users who may not make links
        blob.replace(pointer)


def _name(ref: Path, commit: str) -> None:
    """Record that the revision is that commit, for later use without a network."""
    if ref.name == commit or (ref.is_file() and ref.stat().st_size == len(commit) and ref.read_text() == commit):
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_name(f"{ref.name}.{os.getpid()}.{threading.get_ident()}.new")  # several threads place files
    new.write_text(commit)
    new.replace(ref)
