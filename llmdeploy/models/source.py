"""Where weights come from: the seam between a download and the place it is from.

A source lists a repository and copies bytes of its files; `transfer` does what is the same everywhere: what is missing,
room on the disk, resuming, checking, several files at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from llmdeploy.models.reference import HubFile, HubRepo, Source

MODULES: dict[Source, str] = {"hf": "llmdeploy.models.hub", "ms": "llmdeploy.models.modelscope"}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit; size in bytes."""

    path: str
    """Within the repository, with `/`."""
    size: int
    sha256: str = ""
    """64 hexadecimal digits; empty for a small file that is no LFS object."""
    git_oid: str = ""
    """The SHA-1 of Git's blob, 40 digits, where there is no sha256."""
    xet: str = ""
    """The hash under which Xet stores it; empty where it does not."""

    @property
    def digest(self) -> str:
        """What its content is checked against, and its name in the Hub's cache."""
        return self.sha256 or self.git_oid


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a revision."""

    repo: HubRepo
    """As it was asked for."""
    commit: str
    files: tuple[RemoteFile, ...]


class Origin(Protocol):
    """A source of repositories; a module is one, with these methods as its functions.

    All but `cache`, `cached` and `held` may use the network and raise DownloadFailed.
    """

    def cache(self) -> Path:
        """The folder of its cache on this machine."""
        ...

    def cached(self, file: HubFile) -> Path | None:
        """The file in the cache, whole, or None. Touches no network."""
        ...

    def held(self, repo: HubRepo) -> tuple[str, ...]:
        """The paths of the repository's files that are cached at that revision. Touches no network."""
        ...

    def listing(self, repo: HubRepo) -> Listing:
        """What the repository holds."""
        ...

    def part(self, listing: Listing, file: RemoteFile) -> Path:
        """Where the bytes of a download that goes on lie, so that a later one finds them."""
        ...

    def lock(self, listing: Listing, file: RemoteFile) -> Path:
        """The lock file that all programs which share the cache take before they write that file."""
        ...

    def copy(self, listing: Listing, file: RemoteFile, start: int, sink: BinaryIO) -> None:
        """Write the file's bytes from `start` on to `sink`.

        Where the server sends the file from its beginning all the same, the sink is sought to 0 and truncated first.
        """
        ...

    def place(self, listing: Listing, file: RemoteFile, part: Path) -> Path:
        """Take a file that is whole and checked into the cache; where it lies then."""
        ...

    def open(self, file: HubFile) -> BinaryIO:
        """The file at the source, to seek and read in: only the ranges that are read are fetched."""
        ...


def origin(source: Source) -> Origin:
    """The source of that name."""
    return cast("Origin", import_module(MODULES[source]))


def cached(file: HubFile) -> Path | None:
    """The file in its source's cache on this machine, or None. Touches no network."""
    return origin(file.source).cached(file)


def chosen(files: Sequence[RemoteFile], paths: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Those of a listing's files that have these paths."""
    return tuple(file for file in files if file.path in set(paths))
