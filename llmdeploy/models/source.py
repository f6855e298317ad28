"""Sources of weights: the interface between a download and the place that has the files.

A source lists a repository and copies bytes of its files. `transfer` does what is the same for all sources: it finds
what is missing, checks the space on the disk, resumes, compares digests and downloads several files at once.
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
from llmdeploy.models.safe_paths import require_places

OnProgress = Callable[[str, int, int], None]
"""A function of file name, bytes so far and bytes in all (0 if unknown); it may be called from another thread."""

MODULES: dict[Source, str] = {"hf": "llmdeploy.models.hub", "ms": "llmdeploy.models.modelscope"}
CACHE_VARIABLES: dict[Source, str] = {"hf": "HF_HOME", "ms": "MODELSCOPE_CACHE"}
"""Names of the variables that move the caches."""

NAMES: dict[str, Source] = {"huggingface": "hf", "modelscope": "ms"}
"""Sources by their names in the configuration."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit. Its size is in bytes."""

    path: str
    """Path within the repository, with `/`."""
    size: int
    sha256: str = ""
    """SHA-256 in 64 hexadecimal digits; empty for a small file that is not an LFS object."""
    git_oid: str = ""
    """SHA-1 of Git's blob in 40 hexadecimal digits, for a file without a SHA-256."""
    xet: str = ""
    """Hash under which Xet stores the file; empty if Xet does not have it."""

    @property
    def digest(self) -> str:
        """The digest that the content is checked against, and the name of the file in the Hub's cache."""
        return self.sha256 or self.git_oid


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a revision."""

    repo: HubRepo
    """Repository as the user named it."""
    commit: str
    files: tuple[RemoteFile, ...]


_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
"""The folder in which the caches keep the files of one commit."""

R = TypeVar("R", bound=HubRepo | HubFile)


class _Model(Protocol):
    def is_present(self) -> bool: ...


M = TypeVar("M", bound=_Model)


class Sink(Protocol):
    """The partial file that a download is written to, with the methods that libraries need of a file."""

    path: Path

    def write(self, data: bytes) -> int: ...
    def tell(self) -> int: ...
    def seek(self, place: int, whence: int = 0) -> int: ...
    def truncate(self) -> int: ...
    def flush(self) -> None: ...

    def follow(self, arrived: int = 0) -> None:
        """Hash and count the bytes that a library has appended to `path` by itself: call it often, and at the end.

        `arrived`: bytes that the library has received in all, even if they are not all written yet.
        """
        ...


class Origin(Protocol):
    """A source of repositories: a module that has these methods as functions.

    All but `cache`, `cached` and `cached_paths` may use the network and raise DownloadFailed.
    """

    def cache(self) -> Path:
        """Return the folder of the source's cache on this machine."""
        ...

    def cached(self, file: HubFile) -> Path | None:
        """Return the whole file in the cache, or None. Uses no network."""
        ...

    def cached_paths(self, repo: HubRepo) -> tuple[str, ...]:
        """Return the paths of the repository's files that are cached at that revision. Uses no network."""
        ...

    def listing(self, repo: HubRepo) -> Listing:
        """Request the files of the repository."""
        ...

    def part(self, listing: Listing, file: RemoteFile) -> Path:
        """Return the path of the partial file, at which a later download finds it."""
        ...

    def lock(self, listing: Listing, file: RemoteFile) -> Path:
        """Return the lock file that all programs that share the cache take before they write that file."""
        ...

    def copy(self, listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
        """Write the bytes of the file from `start` on to `sink`.

        If the server sends the file from its beginning in spite of `start`, seek `sink` to 0 and truncate it first.
        """
        ...

    def place(self, listing: Listing, file: RemoteFile, part: Path) -> Path:
        """Move a whole and checked file into the cache; return its path there."""
        ...

    def open_remote(self, file: HubFile) -> BinaryIO:
        """Open a file at the source for seeking and reading; only the ranges that are read are downloaded."""
        ...


def commit_of(files: Iterable[Path]) -> str | None:
    """Return the commit whose snapshot folder, in the cache of a source, holds these files; None if there is none."""
    return next((found[1] for file in files if (found := _SNAPSHOT.search(file.as_posix()))), None)


def origin(source: Source) -> Origin:
    """Return the module of the source."""
    return cast("Origin", import_module(MODULES[source]))


def at(reference: R, name: str) -> R:
    """Return the same repository or file at the source of that name. Raises UsageError."""
    if reference.source == NAMES[name]:
        return reference
    if reference.source == "ms":
        raise UsageError(f"`{reference}` is at ModelScope, not at the Hugging Face Hub", "leave `--source` out")
    from llmdeploy.models.modelscope.names import at_modelscope

    return at_modelscope(reference)


def in_order(name: str) -> tuple[str, ...]:
    """Return the names of all sources, with that one first."""
    return (name, *(other for other in NAMES if other != name))


def first_here(models: Iterable[M]) -> M:
    """Return the first model that is on this machine; the first of all if there is none."""
    options = tuple(models)
    return next((model for model in options if model.is_present()), options[0])


def cached(file: HubFile) -> Path | None:
    """Return the file in its source's cache on this machine, or None. Uses no network."""
    return origin(file.source).cached(file)


def chosen(listing: Listing, paths: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Return the files of these paths, in their order. Raises DownloadFailed if the listing lacks one."""
    files = {file.path: file for file in listing.files}
    if missing := [path for path in paths if path not in files]:
        raise DownloadFailed(f"`{listing.repo.repo}` has no file `{missing[0]}`", _near(missing[0], list(files)))
    if unchecked := [path for path in paths if not files[path].digest]:
        raise DownloadFailed(
            f"`{listing.repo.repo}` states no digest of `{unchecked[0]}`, so the download could not be checked",
            "take it from another source",
        )
    require_places(str(listing.repo), paths)
    return tuple(files[path] for path in paths)


def _near(path: str, paths: Sequence[str]) -> str:
    """Return a hint with files of the same kind, those with similar names first."""
    alike = [other for other in paths if Path(other).suffix == Path(path).suffix]
    near = difflib.get_close_matches(path, alike, n=5)
    names = [*near, *(name for name in alike if name not in near)][:5]
    return f"it has {', '.join(f'`{name}`' for name in names)}" if names else "check the name of the repository"
