"""Requests to the Hub: the files of a repository, and parts of one file without a download."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

from llmdeploy.errors import DownloadFailed
from llmdeploy.models import remote_file
from llmdeploy.models.hub import documents, library
from llmdeploy.models.hub.failures import explaining
from llmdeploy.models.listing_check import LARGEST_BYTES, Source
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.source import Listing, RemoteFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def listing(repo: HubRepo) -> Listing:
    """Request the commit of the revision, and then the files of that commit. Raises DownloadFailed."""
    with explaining(HubFile(repo.repo, "", repo.revision)):
        from huggingface_hub import constants
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(repo.repo)
        source = Source(constants.ENDPOINT, "HF_ENDPOINT")
        model = f"{constants.ENDPOINT}/api/models/{repo.repo}"
        commit = source.commit(repo, documents.one(f"{model}/revision/{quote(repo.revision, safe='')}")["sha"])
        entries = documents.pages(f"{model}/tree/{commit}?recursive=True", source)
        return source.listing(repo, commit, (_file(entry) for entry in entries if entry["type"] == "file"))


def open_remote(file: HubFile) -> BinaryIO:
    """Open a file of the Hub for seeking and reading. Raises DownloadFailed, here and from reads."""
    remote = _Remote(file)
    with explaining(file):
        remote.locate()
    return remote_file.opened(remote.get, remote.size, str(file))


def _file(entry: dict[str, Any]) -> RemoteFile:
    """Return the file of an entry as the Hub states it: `Source.listing` checks it."""
    lfs = entry.get("lfs") or {}
    return RemoteFile(
        entry["path"],
        lfs.get("size", entry["size"]),
        sha256=lfs.get("oid", ""),
        git_oid="" if lfs else entry["oid"],
        xet=entry.get("xetHash") or "",
    )


class _Remote:
    """A file at the Hub, or at the storage that the Hub redirects to."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.size = 0

    def locate(self) -> None:
        """Request the size of the file and the address of its bytes."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import FileMetadataError

        self._url = hf_hub_url(self._file.repo, self._file.file, revision=self._file.revision)
        # One request without retries, so that a dead network is reported within HF_HUB_ETAG_TIMEOUT.
        metadata = get_hf_file_metadata(self._url)
        if metadata.size is None or not 0 <= metadata.size <= LARGEST_BYTES:
            raise FileMetadataError("it states no size")
        self._location, self.size = metadata.location, metadata.size

    def get(self, start: int, end: int) -> bytes:
        from huggingface_hub.errors import HfHubHTTPError

        with explaining(self._file):
            try:
                return self._got(start, end)
            except HfHubHTTPError as error:
                if not self._may_pass(error.response.status_code):
                    raise
            self.locate()
            return self._got(start, end)

    def _may_pass(self, status: int) -> bool:
        """Return whether another try may succeed: the signed address has expired, or the server had an error."""
        return status >= 500 or (status in {401, 403} and not self._at_the_hub)

    def _got(self, start: int, end: int) -> bytes:
        sink = _LimitedBuffer(end - start)
        try:
            library.http_get(self._location, sink, end - start, self._headers(start, end))
        except _MoreThanAsked:
            raise DownloadFailed(
                f"`{urlsplit(self._location).netloc}` sends `{self._file}` only as a whole: of its {self.size:,} bytes"
                f" {end - start:,} were asked for",
                "a mirror or a proxy that drops `Range` is in the way: check `HF_ENDPOINT`, and `env | grep -i proxy`",
            ) from None
        return sink.getvalue()

    def _headers(self, start: int, end: int) -> dict[str, str]:
        """Return the headers of a range. Only the Hub gets the token: the address of the storage is signed."""
        from huggingface_hub.utils import build_hf_headers

        # Ranges of a compressed answer would be ranges of other bytes.
        ours = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        headers: dict[str, str] = build_hf_headers(token=None if self._at_the_hub else False, headers=ours)
        return headers

    @property
    def _at_the_hub(self) -> bool:
        return urlsplit(self._location).netloc == urlsplit(self._url).netloc


class _MoreThanAsked(Exception):
    """The server sends more than the range."""


class _LimitedBuffer(io.BytesIO):
    """A buffer of at most `limit` bytes; one more ends the transfer."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: ReadableBuffer) -> int:
        if self.tell() + memoryview(data).nbytes > self._limit:
            raise _MoreThanAsked
        return super().write(data)
