"""The bytes of the Hub's files: from its Xet storage, or over plain HTTP."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, BinaryIO, cast

from llmdeploy.errors import DownloadFailed, LlmdeployError
from llmdeploy.models.hub import xet_memory
from llmdeploy.models.hub.failures import explaining
from llmdeploy.models.reference import HubFile
from llmdeploy.models.source import Listing, RemoteFile, Sink

BLOCK = 2**20
"""Bytes that are written at once, and lost at most where a process is killed."""
POLL = 0.01
"""Seconds between two looks at what hf_xet has written."""


def copy(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    """Raises DownloadFailed, and what the sink raises."""
    with explaining(HubFile(listing.repo.repo, file.path, listing.commit)):
        from huggingface_hub import constants
        from huggingface_hub.utils._runtime import is_xet_available

        if not (file.xet and is_xet_available()):
            _require_plain(file)
            _by_http(listing, file, start, sink)
            return
        try:
            _by_xet(listing, file, start, sink)
        except LlmdeployError:
            raise
        except Exception:  # hf_xet has its own; where only its storage is out of reach, the Hub sends the file itself
            if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
                raise
            sink.follow()  # should hf_xet write on even now, the digest tells
            _by_http(listing, file, sink.tell(), sink)


def _by_xet(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    from hf_xet import XetFileInfo  # type: ignore[import-untyped]

    info = XetFileInfo(file.xet, file.size)
    access = _access(listing, file)
    with xet_memory.reused():
        if start:
            _rest_by_xet(access, info, start, sink)
        else:
            _all_by_xet(access, info, sink)
    if sink.tell() < file.size:  # after an error its stream may end as if all had come
        raise EOFError(f"Xet sent {sink.tell()} of {file.size} bytes")


def _all_by_xet(access: dict[str, Any], info: Any, sink: Sink) -> None:
    """It writes the file itself, from its beginning on and in order, with half the processor time of its streams."""
    with xet_memory.session().new_file_download_group(**access) as group:
        download = group.start_download_file(info, str(sink.path))
        wait = threading.Thread(target=_wait, args=(download,), daemon=True)
        wait.start()
        while wait.is_alive():
            sink.follow(group.progress().total_transfer_bytes_completed)
            wait.join(POLL)
    sink.follow()


def _wait(download: Any) -> None:
    with suppress(Exception):  # the group raises it too
        download.result()


def _rest_by_xet(access: dict[str, Any], info: Any, start: int, sink: Sink) -> None:
    for piece in xet_memory.session().new_download_stream_group(**access).download_stream(info, start=start):
        sink.write(piece)


def _access(listing: Listing, file: RemoteFile) -> dict[str, Any]:
    """Where the storage is, and how it lets us in."""
    from huggingface_hub.utils import _xet as xet
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers()
    route = xet.xet_connection_info_refresh_url(
        token_type=xet.XetTokenType.READ, repo_id=listing.repo.repo, repo_type="model", revision=listing.commit
    )
    connection = xet.refresh_xet_connection_info(file_data=xet.XetFileData(file.xet, route), headers=headers)
    return {
        "endpoint": connection.endpoint,
        "token": connection.access_token,
        "token_expiry_unix_secs": connection.expiration_unix_epoch,
        "token_refresh_url": route,
        "token_refresh_headers": headers,
        "custom_headers": xet.xet_headers_without_auth(headers),
    }


def _by_http(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    constants.DOWNLOAD_CHUNK_SIZE = BLOCK
    http_get(
        hf_hub_url(listing.repo.repo, file.path, revision=listing.commit),
        cast("BinaryIO", sink),
        resume_size=start,
        # Of a compressed answer no range could be asked for.
        headers={**build_hf_headers(), "Accept-Encoding": "identity"},
        expected_size=file.size,
        tqdm_class=NoBar,
    )


def _require_plain(file: RemoteFile) -> None:
    from huggingface_hub import constants

    if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        limit = constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9
        raise DownloadFailed(
            f"`{file.path}` has more than {limit:.0f} GB, which the Hub sends by Xet only",
            "`unset HF_HUB_DISABLE_XET`" if constants.HF_HUB_DISABLE_XET else "`pip install hf_xet`",
        )


class NoBar:
    """The part of tqdm's interface that huggingface_hub uses."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def update(self, *_: object) -> None: ...

    set_postfix_str = refresh = close = update

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *_: Any) -> None: ...
