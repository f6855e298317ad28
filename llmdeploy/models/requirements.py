"""Need: what an engine needs of a model, file by file, and what of it is missing on this machine."""

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
    """Sizes in bytes."""

    name: str
    size: int
    here: int = 0
    """Bytes of it that are on this machine already: all, those of a download that was broken off, or none."""
    digest: str = ""
    """What its content is checked against; empty where the source does not tell."""

    @property
    def missing(self) -> int:
        return self.size - self.here


@dataclass(frozen=True)
class Requirements:
    source: str
    """Where it is from: a repository as it was asked for (`hf://owner/repo`), or an Ollama tag."""
    folder: Path | None
    """Where what is missing goes, there or not; None: to another machine."""
    files: tuple[RequiredFile, ...]
    revision: str = ""
    """The commit of the repository, or the digest of the tag; empty where it is not known."""
    copies: int = 0
    """Bytes that are needed there besides: a second copy, for a while or for good."""
    remedy: str = "free some space"
    """What to do where the disk is too small."""
    unknown: str = ""
    """Why `files` are not known, where they are not: then something is missing, and nobody here can say how much."""

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
        """Bytes free on the file system that what is missing goes to; None where that is not this machine's."""
        return None if self.folder is None else shutil.disk_usage(existing(self.folder)).free

    def require_room(self) -> None:
        """Raises DownloadFailed, with both numbers, where the disk cannot hold what is missing."""
        require_room([self])


def require_room(needs: Sequence[Requirements]) -> None:
    """Raises DownloadFailed where a disk cannot hold what is missing of all that goes there."""
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
    """Of files that are all on this machine: nothing is missing. The Hub's cache names them by their digests.

    Raises ModelNotFound where one is gone.
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
    """The path, or the next one above that is there, as far as this user may look."""
    return next(one for one in [path.absolute(), *path.absolute().parents] if os.path.exists(one))


def _asked(needs: Sequence[Requirements]) -> int:
    """Bytes, those of a file that several engines need once."""
    files = {(it.folder, it.source, it.revision, file.name): file.missing for it in needs for file in it.files}
    return sum(files.values()) + sum(need.copies for need in needs)
