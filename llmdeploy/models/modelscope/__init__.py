"""ModelScope as a source of repositories (`llmdeploy.models.source`), with its cache on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llmdeploy.errors import DownloadFailed
from llmdeploy.models import remote_file
from llmdeploy.models.listing_check import Source
from llmdeploy.models.modelscope import api, layout
from llmdeploy.models.modelscope.layout import cache, repositories
from llmdeploy.models.modelscope.names import at_modelscope
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.safe_paths import below
from llmdeploy.models.source import Listing, RemoteFile, Sink

__all__ = [
    "at_modelscope",
    "cache",
    "cached",
    "cached_paths",
    "copy",
    "listing",
    "lock",
    "open_remote",
    "part",
    "place",
    "repositories",
]

MOST_FILES = 3000
"""The most entries that ModelScope lists; it does not say whether there are more."""
PAUSES_SECONDS = (0.2, 1)
"""Seconds before each further try after a connection ended and brought nothing."""


def cached(file: HubFile) -> Path | None:
    """Return the whole file in the cache, or None. Uses no network."""
    return layout.find(file)


def cached_paths(repo: HubRepo) -> tuple[str, ...]:
    """Return the paths of the repository's files that are cached at that revision. Uses no network."""
    return layout.cached_paths(repo)


def listing(repo: HubRepo) -> Listing:
    """Request the files of the repository. Raises DownloadFailed."""
    source = Source(api.endpoint(), "MODELSCOPE_ENDPOINT")
    commit = source.commit(repo, _commit(repo))
    entries = api.document(_any(repo), "repo/files", {"Revision": commit, "Recursive": "True"}).get("Files")
    if entries is None:
        raise api.no_revision(_any(repo))
    if not isinstance(entries, list):
        raise api.stranger()
    if len(entries) >= MOST_FILES:
        raise DownloadFailed(
            f"`{repo}` has {MOST_FILES} files or more, and ModelScope lists no more",
            f"take it from the Hub: `llmdeploy pull hf://{repo.repo}`",
        )
    return source.listing(repo, commit, _files(entries))


def part(listing: Listing, file: RemoteFile) -> Path:
    """Return the path of the partial file, at which a later download finds it.

    A file of that size that another commit or the library has brought counts as one until its digest is checked.
    """
    found = _in_library(listing, file)
    if found.is_file() and found.stat().st_size == file.size:
        return found
    whole = _whole(listing, file)
    return whole.with_name(whole.name + layout.PARTS[0])


def lock(listing: Listing, file: RemoteFile) -> Path:
    """Return the lock file that all programs that share the cache take before they write that file."""
    return layout.lock(listing.repo.repo, file.path)


def copy(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    """Write the bytes of the file from `start` on to `sink`; resume if the connection ends early.

    If ModelScope sends the file from its beginning in spite of `start`, seek `sink` to 0 and truncate it first.
    Raises DownloadFailed, and what `sink` raises.
    """
    wanted = HubFile(listing.repo.repo, file.path, listing.commit, "ms")
    at = furthest = start
    pauses = iter(PAUSES_SECONDS)
    while True:
        try:
            for reached in _written(wanted, at, sink):
                at = reached
            return
        except api.BrokenOff:
            if at > furthest:
                furthest, pauses = at, iter(PAUSES_SECONDS)
            elif (pause := next(pauses, None)) is None:
                raise
            else:
                time.sleep(pause)


def place(listing: Listing, file: RemoteFile, part: Path) -> Path:
    """Move a whole and checked file into the cache; return its path there. Raises OSError."""
    whole, shared = _whole(listing, file), _in_library(listing, file)
    whole.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, whole)
    layout.share(whole, shared)
    layout.name(listing.repo, listing.commit)
    return whole


def open_remote(file: HubFile) -> BinaryIO:
    """Open a file at ModelScope for seeking and reading; only what is read is downloaded. Raises DownloadFailed."""
    with api.content(file, 0, 1) as response:
        _, size = api.extent(response)
    if size is None:
        raise api.stranger()

    def get(start: int, end: int) -> bytes:
        with api.content(file, start, end) as response:
            first, _ = api.extent(response)
            if first != start and end > remote_file.LARGEST:
                raise DownloadFailed(
                    f"`{api.endpoint()}` sends `{file}` only as a whole, which is too much for reading its header",
                    "a proxy that drops `Range` is in the way: check `env | grep -i proxy`",
                )
            content = bytearray()
            for block in response.iter_bytes():
                content += block
                if first + len(content) >= end:
                    break
            return bytes(content[start - first : end - first])

    return remote_file.opened(get, size, str(file))


def _whole(listing: Listing, file: RemoteFile) -> Path:
    """Return the place of a file at the commit of the listing."""
    folder = layout.snapshot(listing.repo.repo, listing.commit)
    return below(folder, folder / file.path)


def _in_library(listing: Listing, file: RemoteFile) -> Path:
    """Return the place where ModelScope's own library looks for a file."""
    folder = layout.library_folder(listing.repo)
    return below(folder, folder / file.path)


def _any(repo: HubRepo) -> HubFile:
    return HubFile(repo.repo, "", repo.revision, "ms")


def _commit(repo: HubRepo) -> object:
    """Return the commit that a revision names, as ModelScope states it."""
    if layout.COMMIT.fullmatch(repo.revision):
        return repo.revision
    found = api.document(_any(repo), "commits", {"Ref": repo.revision, "PageNumber": "1", "PageSize": "1"}).get(
        "Commit"
    )
    if not found:
        raise api.no_revision(_any(repo))
    try:
        return found[0]["Id"]
    except (TypeError, KeyError, IndexError):
        raise api.stranger() from None


def _files(entries: Sequence[dict[str, Any]]) -> Iterator[RemoteFile]:
    """Yield the files as ModelScope states them: `Source.listing` checks them."""
    for entry in entries:
        try:
            if entry.get("Type") != "tree":
                yield RemoteFile(entry["Path"], entry["Size"], entry.get("Sha256") or "")
        except (TypeError, KeyError, AttributeError):
            raise api.stranger() from None


def _written(file: HubFile, start: int, sink: Sink) -> Iterator[int]:
    """Write the file from `start` on to `sink`, and yield each offset that is reached."""
    with api.content(file, start) as response:
        too_long = response.status_code == 416  # the partial file is longer than the file
        first, _ = api.extent(response)
        if first not in {0, start}:
            raise api.stranger()
        if first != start or too_long:
            sink.seek(0)
            sink.truncate()
            yield 0
        if too_long:
            raise api.BrokenOff(f"`{file}` has fewer bytes than were downloaded", "try again")
        for block in response.iter_bytes():
            sink.write(block)
            first += len(block)
            yield first
