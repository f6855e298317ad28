"""Requirements: the files that an engine needs of a model, and how much of each is missing on this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmdeploy.errors import DownloadFailed, ModelNotFound
from llmdeploy.models.source import commit_of
from llmdeploy.units import in_gib

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RequiredFile:
    """One file that is needed. Sizes in bytes."""

    name: str
    size: int
    here: int = 0
    """Bytes that are on this machine already: all, those of an interrupted download, or 0."""
    digest: str = ""
    """Digest that its content is checked against; empty if the source does not state one."""

    @property
    def missing(self) -> int:
        return self.size - self.here


@dataclass(frozen=True)
class Requirements:
    """The files that one engine needs of one model. Sizes in bytes."""

    source: str
    """Repository as the user named it (`hf://owner/repo`), or an Ollama tag."""
    folder: Path | None
    """Folder that the download goes to, which need not exist; None if that is on another machine."""
    files: tuple[RequiredFile, ...]
    revision: str = ""
    """Commit of the repository, or digest of the tag; empty if it is not known."""
    copies: int = 0
    """Bytes that are needed in the folder in addition: a second copy, temporary or permanent."""
    remedy: str = "free some space"
    """Hint for a disk that is too small."""
    unknown: str = ""
    """Reason why `files` are not known, or empty. Then something is missing, but its size is not known."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        return sum(file.missing for file in self.files)

    @property
    def present(self) -> bool:
        return not self.unknown and self.missing == 0

    def free(self) -> int | None:
        """Return the free bytes of the file system that the download goes to; None if it is on another machine."""
        return None if self.folder is None else shutil.disk_usage(existing(self.folder)).free

    def require_room(self) -> None:
        """Raise DownloadFailed, with both sizes, if the disk cannot hold what is missing."""
        require_room([self])


def require_room(needs: Sequence[Requirements]) -> None:
    """Raise DownloadFailed if a disk cannot hold all downloads that go to it."""
    disks: dict[int, list[Requirements]] = {}
    for need in needs:
        if need.folder is not None and need.missing:
            disks.setdefault(existing(need.folder).stat().st_dev, []).append(need)
    for on_it in disks.values():
        asked, free = _asked(on_it), on_it[0].free() or 0
        if asked > free:
            sources = dict.fromkeys(f"`{need.source}`" for need in on_it)
            names = f"{' and '.join(sources)} {'needs' if len(sources) == 1 else 'need'}"
            raise DownloadFailed(
                f"{names} {in_gib(asked)} more, and the disk of `{on_it[0].folder}` has {in_gib(free)} left",
                on_it[0].remedy,
                code="disk_full",
            )


def of_local_files(source: str, paths: Sequence[Path]) -> Requirements:
    """Return the requirements of files that are all on this machine. The Hub's cache names them by their digests.

    Raises ModelNotFound if a file is gone.
    """
    commit = commit_of(paths) or ""
    return Requirements(source, paths[0].parent, tuple(_file_here(path, commit) for path in paths), commit)


def _file_here(path: Path, commit: str) -> RequiredFile:
    try:
        blob, size = path.resolve().name, path.stat().st_size
    except OSError as error:
        raise ModelNotFound(f"`{path}` cannot be read: {error.strerror}", "check the path") from error
    within = path.as_posix().partition(f"/snapshots/{commit}/")[2] if commit else ""
    return RequiredFile(within or path.name, size, size, blob if _DIGEST.fullmatch(blob) else "")


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists and that this user can see."""
    return next(one for one in [path.absolute(), *path.absolute().parents] if os.path.exists(one))


def _asked(needs: Sequence[Requirements]) -> int:
    """Return the bytes to download; a file that several engines need counts once."""
    files = {(it.folder, it.source, it.revision, file.name): file.missing for it in needs for file in it.files}
    return sum(files.values()) + sum(need.copies for need in needs)
