"""Need: what an engine needs of a model, file by file, and what of it is missing on this machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from llmdeploy.errors import DownloadFailed


@dataclass(frozen=True)
class NeededFile:
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
class Need:
    source: str
    """Where it is from: a repository as it was asked for (`hf://owner/repo`), or an Ollama tag."""
    folder: Path | None
    """Where what is missing goes, there or not; None: to another machine."""
    files: tuple[NeededFile, ...]
    revision: str = ""
    """The commit of the repository, or the digest of the tag; empty where it is not known."""
    copies: int = 0
    """Bytes that are needed there besides: a second copy, for a while or for good."""
    remedy: str = "free some space"
    """What to do where the disk is too small."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        return sum(file.missing for file in self.files)

    @property
    def present(self) -> bool:
        return self.missing == 0

    def free(self) -> int | None:
        """Bytes free on the file system that what is missing goes to; None where that is not this machine's."""
        if self.folder is None:
            return None
        folder = self.folder.absolute()
        return shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.exists())).free

    def demand_room(self) -> None:
        """Raises DownloadFailed, with both numbers, where the disk cannot hold what is missing."""
        free, asked = self.free(), self.missing + self.copies
        if free is None or asked <= free or not asked:
            return
        raise DownloadFailed(
            f"`{self.source}` needs {asked / 1e9:.2f} GB more, and the disk of `{self.folder}` has {free / 1e9:.2f} GB"
            " left",
            self.remedy,
            code="disk_full",
        )
