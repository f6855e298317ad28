"""JSON documents of the Hub, read in bounds: a mirror may send one without end, or pages that never end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from llmdeploy import bounded_file
from llmdeploy.text import plain

if TYPE_CHECKING:
    from llmdeploy.models.listing_check import Source

LARGEST_BYTES = 16 * 2**20
"""The most bytes of one document: a page of a thousand files has about 300 KB."""
MOST_PAGES = 500
THE_HUB = ("https", "huggingface.co")
"""The server that the links of a mirror may lead to."""


def one(url: str) -> Any:
    """Return a document, from one request without retries: a dead network is reported within HF_HUB_ETAG_TIMEOUT."""
    from huggingface_hub.utils import get_session

    with get_session().stream("GET", url, headers=_headers(), timeout=_wait()) as response:
        return _read(response)


def pages(url: str, source: Source) -> Iterator[Any]:
    """Yield the entries of a list that comes in pages. Raises DownloadFailed for pages that never end."""
    from huggingface_hub.utils import http_stream_backoff

    first = urlsplit(url)
    for _ in range(MOST_PAGES):
        stream: AbstractContextManager[Any] = http_stream_backoff("GET", url, headers=_headers(), timeout=_wait())
        with stream as response:
            yield from _read(response)
            following = response.links.get("next", {}).get("url", "")
        if not following:
            return
        url = urljoin(url, following)
        if urlsplit(url)[:2] not in {first[:2], THE_HUB}:  # the next request would give the token to another server
            raise source.refusal(f"names a page of another server as the next one: `{plain(urlsplit(url).netloc)}`")
    raise source.refusal(f"sends more than {MOST_PAGES} pages of one list")


def _read(response: Any) -> Any:
    """Return the document in an answer. Raises HfHubHTTPError for a refusal, ValueError for anything else."""
    from huggingface_hub.utils import hf_raise_for_status

    hf_raise_for_status(response)
    content = bytearray()
    for block in response.iter_bytes():
        content += block
        if len(content) > LARGEST_BYTES:
            raise ValueError(f"the answer has more than {LARGEST_BYTES} bytes")
    return bounded_file.json_value(bytes(content))


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    headers: dict[str, str] = build_hf_headers()
    return headers


def _wait() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_ETAG_TIMEOUT)
