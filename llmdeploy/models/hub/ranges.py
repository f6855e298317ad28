"""A file of a repository read at the Hub itself, by ranges: what a header says needs no download."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from llmdeploy.errors import DownloadFailed
from llmdeploy.models import remote_file
from llmdeploy.models.hub.download import NoBar
from llmdeploy.models.hub.failures import explaining
from llmdeploy.models.reference import HubFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def open(file: HubFile) -> BinaryIO:
    """The file, to seek and read in. Raises DownloadFailed, here and where it is read."""
    remote = _Remote(file)
    with explaining(file):
        remote.look()
    return remote_file.opened(remote.get, remote.size, str(file))


class _Remote:
    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.size = 0

    def look(self) -> None:
        """Find out how large it is and where its bytes are."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import FileMetadataError

        self._url = hf_hub_url(self._file.repo, self._file.file, revision=self._file.revision)
        # Asked once without retries, so that a dead network is told within HF_HUB_ETAG_TIMEOUT.
        metadata = get_hf_file_metadata(self._url)
        if metadata.size is None:
            raise FileMetadataError("it tells no size")
        self._location, self.size = metadata.location, metadata.size

    def get(self, start: int, end: int) -> bytes:
        from huggingface_hub.errors import HfHubHTTPError

        with explaining(self._file):
            try:
                return self._got(start, end)
            except HfHubHTTPError as error:
                if not self._may_pass(error.response.status_code):
                    raise
            self.look()
            return self._got(start, end)

    def _may_pass(self, status: int) -> bool:
        """Whether another try may do: the right in the store's address has run out, or the server had a bad moment."""
        return status >= 500 or (status in {401, 403} and not self._at_the_hub)

    def _got(self, start: int, end: int) -> bytes:
        from huggingface_hub.file_download import http_get

        sink = _Sink(end - start)
        try:
            # Its progress bar would be drawn on the terminal.
            http_get(
                self._location, sink, headers=self._headers(start, end), expected_size=end - start, tqdm_class=NoBar
            )
        except _MoreThanAsked:
            raise DownloadFailed(
                f"`{urlsplit(self._location).netloc}` sends `{self._file}` only as a whole: of its {self.size:,} bytes"
                f" {end - start:,} were asked for",
                "a mirror or a proxy that drops `Range` is in the way: check `HF_ENDPOINT`, and `env | grep -i proxy`",
            ) from None
        return sink.getvalue()

    def _headers(self, start: int, end: int) -> dict[str, str]:
        """The token is for the Hub: the store that the Hub sends us to finds a right in the address itself."""
        from huggingface_hub.utils._headers import build_hf_headers

        # Compressed, the ranges would be those of other bytes.
        ours = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        headers: dict[str, str] = build_hf_headers(token=None if self._at_the_hub else False, headers=ours)
        return headers

    @property
    def _at_the_hub(self) -> bool:
        return urlsplit(self._location).netloc == urlsplit(self._url).netloc


class _MoreThanAsked(Exception):
    """The server sends the file from its beginning to its end."""


class _Sink(io.BytesIO):
    """Takes so many bytes; one more ends the transfer."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: ReadableBuffer) -> int:
        if self.tell() + memoryview(data).nbytes > self._limit:
            raise _MoreThanAsked
        return super().write(data)
