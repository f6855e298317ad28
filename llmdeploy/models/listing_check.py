"""The check of what a source says of a repository: its words become paths, sizes and digests on this machine.

A mirror, or whoever is on the way to one, may say anything. What no repository can have is refused at once, whichever
file was asked for; names that some file systems mix up are refused only for the files that are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmdeploy.errors import DownloadFailed
from llmdeploy.models.reference import HubRepo
from llmdeploy.models.safe_paths import clashes, is_within
from llmdeploy.models.source import Listing, RemoteFile
from llmdeploy.text import plain

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_BYTES = 2**60
"""The most bytes that a file may be said to have: no file system holds more."""
MOST_FILES = 200_000
"""The most files of a repository; a server may send pages without end."""


@dataclass(frozen=True)
class Source:
    """The server that listed a repository, for messages."""

    address: str
    variable: str
    """Name of the environment variable that names another address."""

    def refusal(self, what: str) -> DownloadFailed:
        """Return the error for an answer that no honest source gives."""
        return DownloadFailed(
            f"`{self.address}` {what}", f"check `{self.variable}`, or take the model from another source"
        )

    def commit(self, repo: HubRepo, commit: object) -> str:
        """Return the commit that the source names for the repository's revision. Raises DownloadFailed."""
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise self.refusal(f"gives `{_shown(commit)}` as the commit of `{repo.repo}`, which is not one")
        if COMMIT.fullmatch(repo.revision) and commit != repo.revision:
            raise self.refusal(f"answers with commit `{commit}` of `{repo.repo}` instead of `{repo.revision}`")
        return commit

    def listing(self, repo: HubRepo, commit: str, files: Iterable[RemoteFile]) -> Listing:
        """Return the listing with these files, whose fields may still be anything. Raises DownloadFailed."""
        found: dict[str, RemoteFile] = {}
        for file in files:
            self._require_sound(file)
            if file.path in found:  # so that a page that comes again and again ends at once
                raise self.refusal(f"lists `{_shown(file.path)}` twice")
            found[file.path] = file
            if len(found) > MOST_FILES:
                raise self.refusal(f"lists more than {MOST_FILES:,} files of `{repo.repo}`")
        if clash := next(clashes(found), None):
            raise self.refusal(f"lists `{_shown(clash)}` as a file and as a folder")
        return Listing(repo, commit, tuple(found.values()))

    def _require_sound(self, file: RemoteFile) -> None:
        """Raise DownloadFailed unless each field has the form that it must have."""
        shown = _shown(file.path)
        if not is_within(file.path):
            raise self.refusal(f"lists `{shown}`, which is not a path in a repository")
        if type(file.size) is not int or not 0 <= file.size <= LARGEST_BYTES:
            raise self.refusal(f"lists `{shown}` with the size `{_shown(file.size)}`, which no file has")
        digests: tuple[tuple[object, re.Pattern[str]], ...] = (
            (file.sha256, SHA256),
            (file.git_oid, SHA1),
            (file.xet, SHA256),
        )
        for digest, form in digests:
            if not isinstance(digest, str) or (digest and not form.fullmatch(digest)):
                raise self.refusal(f"lists `{shown}` with the digest `{_shown(digest)}`, which is not one")


def _shown(value: object) -> str:
    """Return a value in a message: a text or a number as it is, anything else by its type."""
    if isinstance(value, str):
        return plain(value)
    return plain(repr(value)) if isinstance(value, int | float) else type(value).__name__
