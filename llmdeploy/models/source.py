"""Where weights come from: the seam between a download and the place it is from.

A source lists a repository and copies bytes of its files; `transfer` does what is the same everywhere: what is missing,
room on the disk, resuming, checking, several files at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from llmdeploy.errors import DownloadFailed, UsageError
from llmdeploy.models.reference import HubFile, HubRepo, Source

OnProgress = Callable[[str, int, int], None]
"""Called with file name, bytes so far and bytes in all (0: the server does not say); perhaps from another thread."""

MODULES: dict[Source, str] = {"hf": "llmdeploy.models.hub", "ms": "llmdeploy.models.modelscope"}
CACHE_VARIABLES: dict[Source, str] = {"hf": "HF_HOME", "ms": "MODELSCOPE_CACHE"}
"""They move the caches."""

NAMES: dict[str, Source] = {"huggingface": "hf", "modelscope": "ms"}
"""As the configuration calls them."""


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


_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
"""The folder in which the caches keep the files of one commit."""

R = TypeVar("R", bound=HubRepo | HubFile)


class _Model(Protocol):
    def present(self) -> bool: ...


M = TypeVar("M", bound=_Model)


class Sink(Protocol):
    """The part that a file's bytes go to; a file to write, as far as libraries need one."""

    path: Path

    def write(self, data: bytes) -> int: ...
    def tell(self) -> int: ...
    def seek(self, place: int, whence: int = 0) -> int: ...
    def truncate(self) -> int: ...
    def flush(self) -> None: ...

    def follow(self, arrived: int = 0) -> None:
        """For one who appends to `path` itself: to be called often, and once it is done.

        `arrived` of the file's bytes may have come already, though they are not all written.
        """
        ...


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

    def copy(self, listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
        """Write the file's bytes from `start` on to `sink`.

        Where the server sends the file from its beginning all the same, the sink is sought to 0 and truncated first.
        """
        ...

    def place(self, listing: Listing, file: RemoteFile, part: Path) -> Path:
        """Take a file that is whole and checked into the cache; where it lies then."""
        ...

    def open_remote(self, file: HubFile) -> BinaryIO:
        """The file at the source, to seek and read in: only the ranges that are read are fetched."""
        ...


def commit_of(files: Iterable[Path]) -> str | None:
    """Return the commit whose snapshot folder, in the cache of a source, holds these files; None if there is none."""
    return next((found[1] for file in files if (found := _SNAPSHOT.search(file.as_posix()))), None)


def origin(source: Source) -> Origin:
    """The source of that name."""
    return cast("Origin", import_module(MODULES[source]))


def at(reference: R, name: str) -> R:
    """The same repository or file at the source of that name. Raises UsageError."""
    if reference.source == NAMES[name]:
        return reference
    if reference.source == "ms":
        raise UsageError(f"`{reference}` is at ModelScope, not at the Hugging Face Hub", "leave `--source` out")
    from llmdeploy.models.modelscope.names import at_modelscope

    return at_modelscope(reference)


def in_order(name: str) -> tuple[str, ...]:
    """The sources, that one first."""
    return (name, *(other for other in NAMES if other != name))


def first_here(models: Iterable[M]) -> M:
    """The first of several that is on this machine; where none is, the first."""
    options = tuple(models)
    return next((model for model in options if model.present()), options[0])


def cached(file: HubFile) -> Path | None:
    """The file in its source's cache on this machine, or None. Touches no network."""
    return origin(file.source).cached(file)


def chosen(listing: Listing, paths: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Its files of these paths, in their order. Raises DownloadFailed."""
    files = {file.path: file for file in listing.files}
    if missing := [path for path in paths if path not in files]:
        raise DownloadFailed(f"`{listing.repo.repo}` has no file `{missing[0]}`", _near(missing[0], list(files)))
    if unchecked := [path for path in paths if not files[path].digest]:
        raise DownloadFailed(
            f"`{listing.repo.repo}` does not tell the digest of `{unchecked[0]}`, so what comes could not be checked",
            "take it from another source",
        )
    return tuple(files[path] for path in paths)


def _near(path: str, paths: Sequence[str]) -> str:
    """Those of the same kind, those of a like name first."""
    alike = [other for other in paths if Path(other).suffix == Path(path).suffix]
    near = difflib.get_close_matches(path, alike, n=5)
    names = [*near, *(name for name in alike if name not in near)][:5]
    return f"it has {', '.join(f'`{name}`' for name in names)}" if names else "check the name of the repository"
