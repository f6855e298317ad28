"""The use of huggingface_hub: its settings before the import, its silence, and the parts of it that are not public.

Only this file may use what huggingface_hub does not promise to keep. `PRIVATE` names all of it, and a test looks for
each name, so that a release without one fails there.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, BinaryIO

PRIVATE = (
    "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE",
    "huggingface_hub.file_download.http_get",
    "huggingface_hub.utils._xet.refresh_xet_connection_info",
)
CHUNK_BYTES = 2**20
"""Bytes of one write, and the most that are lost if a process is killed."""


def disable_telemetry() -> None:
    """Disable the reports of huggingface_hub, before its first import: it reads the environment only then.

    It would request a list of programs from the Hub, to name them in its user agent, and wait 3 s for that list when
    there is no network.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def silence() -> None:
    """Silence its warnings and its log, for good, because other threads download too.

    Everything important is raised as an exception.
    """
    disable_telemetry()
    warnings.filterwarnings("ignore", module=r"(huggingface_hub|llmdeploy\.models\.hub)(\..*)?$")
    from logging import CRITICAL

    from huggingface_hub.utils import logging

    logging.set_verbosity(CRITICAL + 1)


def has_xet() -> bool:
    """Return whether hf_xet, which downloads from the Hub's Xet storage, is installed and not disabled by the user."""
    from importlib.util import find_spec

    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def xet_access(repo: str, commit: str, xet_hash: str) -> dict[str, Any]:
    """Return the arguments with which hf_xet opens the storage of a file: the address, and a token it can renew."""
    from huggingface_hub import constants
    from huggingface_hub.utils import XetFileData, build_hf_headers
    from huggingface_hub.utils._xet import refresh_xet_connection_info

    headers = build_hf_headers()
    route = f"{constants.ENDPOINT}/api/models/{repo}/xet-read-token/{commit}"
    connection = refresh_xet_connection_info(file_data=XetFileData(xet_hash, route), headers=headers)
    return {
        "endpoint": connection.endpoint,
        "token": connection.access_token,
        "token_expiry_unix_secs": connection.expiration_unix_epoch,
        "token_refresh_url": route,
        "token_refresh_headers": headers,
        # The token of the Hub is not for the storage.
        "custom_headers": {name: value for name, value in headers.items() if name.lower() != "authorization"},
    }


def http_get(url: str, stream: BinaryIO, size: int, headers: dict[str, str], start: int = 0) -> None:
    """Download `size` bytes into a stream, with huggingface_hub's retries; `start`: bytes that are there already."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    http_get(url, stream, resume_size=start, headers=headers, expected_size=size, tqdm_class=NoBar)


class NoBar:
    """The part of tqdm's interface that huggingface_hub uses; its progress bar would be drawn on the terminal."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def update(self, *_: object) -> None: ...

    set_postfix_str = refresh = close = update

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *_: Any) -> None: ...
