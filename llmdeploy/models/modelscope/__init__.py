"""ModelScope: its repositories, and its cache on this machine. A source of repositories (`llmdeploy.models.source`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from llmdeploy.errors import DownloadFailed
from llmdeploy.models import remote_file
from llmdeploy.models.modelscope import api, layout
from llmdeploy.models.modelscope.layout import cache, repositories
from llmdeploy.models.modelscope.names import at_modelscope
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.source import Listing, RemoteFile, Sink

__all__ = [
    "at_modelscope",
    "cache",
    "cached",
    "copy",
    "held",
    "listing",
    "lock",
    "open_remote",
    "part",
    "place",
    "repositories",
]

MOST_FILES = 3000
"""As many entries ModelScope lists at most, and does not say that there are more."""
PAUSES = (0.2, 1)
"""Seconds before another try where a connection broke off and nothing had come."""


def cached(file: HubFile) -> Path | None:
    """The file in the cache, whole, or None. Touches no network."""
    return layout.find(file)


def held(repo: HubRepo) -> tuple[str, ...]:
    """The paths of the repository's files that are cached at that revision. Touches no network."""
    return layout.held(repo)


def listing(repo: HubRepo) -> Listing:
    """What the repository holds. Raises DownloadFailed."""
    commit = _commit(repo)
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
    return Listing(repo, commit, _files(entries))


def part(listing: Listing, file: RemoteFile) -> Path:
    """Where the bytes of a download that goes on lie, so that a later one finds them.

    A file of that size which another commit or the library has brought is a part too, until its digest is checked.
    """
    found = layout.library_folder(listing.repo) / file.path
    if found.is_file() and found.stat().st_size == file.size:
        return found
    whole = layout.snapshot(listing.repo.repo, listing.commit) / file.path
    return whole.with_name(whole.name + layout.PARTS[0])


def lock(listing: Listing, file: RemoteFile) -> Path:
    """The lock file that all programs which share the cache take before they write that file."""
    return layout.lock(listing.repo.repo, file.path)


def copy(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    """Write the file's bytes from `start` on to `sink`; a connection that breaks off is taken up again.

    Where ModelScope sends the file from its beginning all the same, the sink is sought to 0 and truncated first.
    Raises DownloadFailed; what `sink` raises goes through.
    """
    wanted = HubFile(listing.repo.repo, file.path, listing.commit, "ms")
    at = furthest = start
    pauses = iter(PAUSES)
    while True:
        try:
            for reached in _written(wanted, at, sink):
                at = reached
            return
        except api.BrokenOff:
            if at > furthest:
                furthest, pauses = at, iter(PAUSES)
            elif (pause := next(pauses, None)) is None:
                raise
            else:
                time.sleep(pause)


def place(listing: Listing, file: RemoteFile, part: Path) -> Path:
    """Take a file that is whole and checked into the cache; where it lies then. Raises OSError."""
    whole = layout.snapshot(listing.repo.repo, listing.commit) / file.path
    whole.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, whole)
    layout.share(whole, layout.library_folder(listing.repo) / file.path)
    layout.name(listing.repo, listing.commit)
    return whole


def open_remote(file: HubFile) -> BinaryIO:
    """The file at ModelScope, to seek and read in: only the ranges that are read are fetched. Raises DownloadFailed."""
    with api.content(file, 0, 1) as response:
        _, size = api.extent(response)
    if size is None:
        raise api.stranger()

    def get(start: int, end: int) -> bytes:
        with api.content(file, start, end) as response:
            first, _ = api.extent(response)
            if first != start and end > remote_file.LARGEST:
                raise DownloadFailed(
                    f"`{api.endpoint()}` sends `{file}` only as a whole, too much to look at its header",
                    "a proxy that drops `Range` is in the way: check `env | grep -i proxy`",
                )
            content = bytearray()
            for block in response.iter_bytes():
                content += block
                if first + len(content) >= end:
                    break
            return bytes(content[start - first : end - first])

    return remote_file.opened(get, size, str(file))


def _any(repo: HubRepo) -> HubFile:
    return HubFile(repo.repo, "", repo.revision, "ms")


def _commit(repo: HubRepo) -> str:
    """The commit that a revision names."""
    if layout.COMMIT.fullmatch(repo.revision):
        return repo.revision
    found = api.document(_any(repo), "commits", {"Ref": repo.revision, "PageNumber": "1", "PageSize": "1"}).get(
        "Commit"
    )
    if not found:
        raise api.no_revision(_any(repo))
    try:
        commit = str(found[0]["Id"])
    except (TypeError, KeyError, IndexError):
        raise api.stranger() from None
    if not layout.COMMIT.fullmatch(commit):
        raise api.stranger()
    return commit


def _files(entries: Sequence[dict[str, Any]]) -> tuple[RemoteFile, ...]:
    try:
        files = tuple(
            RemoteFile(entry["Path"], int(entry["Size"]), entry.get("Sha256") or "")
            for entry in entries
            if entry.get("Type") != "tree"
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        raise api.stranger() from None
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or "\\" in file.path:
            raise DownloadFailed(f"ModelScope lists `{file.path}`, which is no path in a repository", "report it there")
    return files


def _written(file: HubFile, start: int, sink: Sink) -> Iterator[int]:
    """Write the file from `start` on; the offset that is reached, again and again."""
    with api.content(file, start) as response:
        too_long = response.status_code == 416  # what is here of the file is longer than the file
        first, _ = api.extent(response)
        if first not in {0, start}:
            raise api.stranger()
        if first != start or too_long:
            sink.seek(0)
            sink.truncate()
            yield 0
        if too_long:
            raise api.BrokenOff(f"`{file}` has fewer bytes than were fetched of it", "try again")
        for block in response.iter_bytes():
            sink.write(block)
            first += len(block)
            yield first
