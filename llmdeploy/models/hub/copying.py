"""The bytes of the Hub's files: from its Xet storage, or over plain HTTP."""

from __future__ import annotations

from typing import Any, BinaryIO

from llmdeploy.errors import DownloadFailed, LlmdeployError
from llmdeploy.models.hub.failures import explaining
from llmdeploy.models.reference import HubFile
from llmdeploy.models.source import Listing, RemoteFile

BLOCK = 2**20
"""Bytes that are written at once, and lost at most where a process is killed."""


def copy(listing: Listing, file: RemoteFile, start: int, sink: BinaryIO) -> None:
    """Raises DownloadFailed, and what the sink raises."""
    with explaining(HubFile(listing.repo.repo, file.path, listing.commit)):
        from huggingface_hub import constants
        from huggingface_hub.utils._runtime import is_xet_available

        if not (file.xet and is_xet_available()):
            _demand_plain(file)
            _by_http(listing, file, start, sink)
            return
        try:
            _by_xet(listing, file, start, sink)
        except LlmdeployError:
            raise
        except Exception:  # hf_xet has its own; where only its storage is out of reach, the Hub sends the file itself
            if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
                raise
            _by_http(listing, file, sink.tell(), sink)


def _by_xet(listing: Listing, file: RemoteFile, start: int, sink: BinaryIO) -> None:
    from hf_xet import XetFileInfo  # type: ignore[import-untyped]
    from huggingface_hub.utils import _xet as xet
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers()
    route = xet.xet_connection_info_refresh_url(
        token_type=xet.XetTokenType.READ, repo_id=listing.repo.repo, repo_type="model", revision=listing.commit
    )
    connection = xet.refresh_xet_connection_info(file_data=xet.XetFileData(file.xet, route), headers=headers)
    session = xet.get_xet_session()  # type: ignore[no-untyped-call]
    group = session.new_download_stream_group(
        endpoint=connection.endpoint,
        token=connection.access_token,
        token_expiry_unix_secs=connection.expiration_unix_epoch,
        token_refresh_url=route,
        token_refresh_headers=headers,
        custom_headers=xet.xet_headers_without_auth(headers),
    )
    for piece in group.download_stream(XetFileInfo(file.xet, file.size), start=start):
        sink.write(piece)
    if sink.tell() < file.size:  # after an error its stream may end as if all had come
        raise EOFError(f"Xet sent {sink.tell()} of {file.size} bytes")


def _by_http(listing: Listing, file: RemoteFile, start: int, sink: BinaryIO) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    constants.DOWNLOAD_CHUNK_SIZE = BLOCK
    http_get(
        hf_hub_url(listing.repo.repo, file.path, revision=listing.commit),
        sink,
        resume_size=start,
        # Of a compressed answer no range could be asked for.
        headers={**build_hf_headers(), "Accept-Encoding": "identity"},
        expected_size=file.size,
        tqdm_class=NoBar,
    )


def _demand_plain(file: RemoteFile) -> None:
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
