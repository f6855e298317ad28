"""The Hugging Face Hub: a source of repositories, and the cache that all programs of this machine share.

This is the only package that imports huggingface_hub, which reads these variables: HF_ENDPOINT (a mirror), HF_TOKEN,
HF_HOME and HF_HUB_CACHE (the folder of the cache), HF_HUB_OFFLINE, HF_HUB_DISABLE_XET, HF_HUB_ETAG_TIMEOUT and
HF_HUB_DOWNLOAD_TIMEOUT (seconds until a silent server is given up; 10 each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from llmdeploy.models.hub.cache import cache, cached, cached_paths, lock, part, place

if TYPE_CHECKING:
    from llmdeploy.models.reference import HubFile, HubRepo
    from llmdeploy.models.source import Listing, RemoteFile, Sink

__all__ = ["cache", "cached", "cached_paths", "copy", "listing", "lock", "open_remote", "part", "place"]


# The cache alone is enough for most commands, so what uses the network is imported by its first use.


def listing(repo: HubRepo) -> Listing:
    """Request the files of the repository. Raises DownloadFailed."""
    from llmdeploy.models.hub import api

    return api.listing(repo)


def open_remote(file: HubFile) -> BinaryIO:
    """Open a file at the Hub for seeking and reading; only what is read is downloaded. Raises DownloadFailed."""
    from llmdeploy.models.hub import api

    return api.open_remote(file)


def copy(listing: Listing, file: RemoteFile, start: int, sink: Sink) -> None:
    """Write the bytes of the file from `start` on to `sink`. Raises DownloadFailed, and what `sink` raises."""
    from llmdeploy.models.hub import download

    download.copy(listing, file, start, sink)
