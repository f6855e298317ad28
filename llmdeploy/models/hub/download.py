"""Downloads of the Hub's files, from its Xet storage or over plain HTTP."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, BinaryIO, cast

from llmdeploy.errors import DownloadFailed, LlmdeployError
from llmdeploy.models.hub import library, xet_memory
from llmdeploy.models.hub.failures import explaining
from llmdeploy.models.reference import HubFile
from llmdeploy.models.source import Listing, RemoteFile, Sink

POLL_SECONDS = 0.01
"""Seconds between two checks of what hf_xet has written."""


def copy(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    """Download a file from offset `start` on. Raises DownloadFailed, and what the sink raises."""
    with explaining(HubFile(listing.repo.repo, file.path, listing.commit)):
        from huggingface_hub import constants

        if not (file.xet and library.has_xet()):
            _require_plain(file)
            _by_http(listing, file, start, sink)
            return
        try:
            _by_xet(listing, file, start, sink)
        except LlmdeployError:
            raise
        except Exception:  # hf_xet has its own; if only its storage is unreachable, the Hub sends the file
            if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
                raise
            sink.follow()  # if hf_xet still writes, the digest will show it
            _by_http(listing, file, sink.tell(), sink)


def _by_xet(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    from hf_xet import XetFileInfo  # type: ignore[import-untyped]

    info = XetFileInfo(file.xet, file.size)
    access = library.xet_access(listing.repo.repo, listing.commit, file.xet)
    with xet_memory.reused():
        if start:
            _rest_by_xet(access, info, start, sink)
        else:
            _all_by_xet(access, info, sink)
    if sink.tell() < file.size:  # after an error the stream may end as if it were complete
        raise EOFError(f"Xet sent {sink.tell()} of {file.size} bytes")


def _all_by_xet(access: dict[str, Any], info: Any, sink: Sink) -> None:
    """Let hf_xet write the file itself, in order: that takes half the processor time of its streams."""
    with xet_memory.session().new_file_download_group(**access) as group:
        download = group.start_download_file(info, str(sink.path))
        wait = threading.Thread(target=_wait, args=(download,), daemon=True)
        wait.start()
        while wait.is_alive():
            sink.follow(group.progress().total_transfer_bytes_completed)
            wait.join(POLL_SECONDS)
    sink.follow()


def _wait(download: Any) -> None:
    with suppress(Exception):  # the group raises the same
        download.result()


def _rest_by_xet(access: dict[str, Any], info: Any, start: int, sink: Sink) -> None:
    for piece in xet_memory.session().new_download_stream_group(**access).download_stream(info, start=start):
        sink.write(piece)


def _by_http(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(listing.repo.repo, file.path, revision=listing.commit)
    # A compressed answer could not be resumed by a range.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    library.http_get(url, cast("BinaryIO", sink), file.size, headers, start)


def _require_plain(file: RemoteFile) -> None:
    from huggingface_hub import constants

    if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        limit = constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9
        raise DownloadFailed(
            f"`{file.path}` has more than {limit:.0f} GB, which the Hub sends by Xet only",
            "`unset HF_HUB_DISABLE_XET`" if constants.HF_HUB_DISABLE_XET else "`pip install hf_xet`",
        )
