"""The memory of hf_xet, which allocates up to 64 MB for each piece of a file and frees them at once."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

BUFFER_BYTES = 512_000_000
"""Bytes of the buffers of all downloads together; hf_xet's own limit is 6 GB."""
TRIM_THRESHOLD_BYTES = 2**30
"""Free bytes that glibc keeps during downloads before it returns memory to the system."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULT_MMAP_MAX, DEFAULT_TRIM_THRESHOLD_BYTES = 65536, 2**17
"""The values that glibc starts with; they are restored because a service goes on after its downloads."""
_changing = threading.Lock()
_users = 0


@contextmanager
def reused() -> Iterator[None]:
    """Make glibc keep freed memory for the next piece, until the last download ends.

    Otherwise each piece gets new pages, which the kernel clears: a fifth of the processor time of a download.
    """
    global _users
    with _changing:
        _users += 1
        if libc := _glibc():
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    try:
        yield
    finally:
        with _changing:
            _users -= 1
            if (libc := _glibc()) and not _users:
                libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
                libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD_BYTES)
                libc.malloc_trim(0)


def session() -> Any:
    """Return the session of hf_xet for all downloads, with small buffers unless the user has set their size."""
    with _changing:
        return _session()


@cache
def _session() -> Any:
    from hf_xet import XetConfig, XetSession  # type: ignore[import-untyped]

    config = XetConfig()
    if not any(name.startswith(("HF_XET_RECONSTRUCTION_", "HF_XET_HIGH_PERFORMANCE")) for name in os.environ):
        sizes = {"size": BUFFER_BYTES, "perfile_size": 0, "limit": BUFFER_BYTES}
        config = config.with_config({f"reconstruction.download_buffer_{name}": size for name, size in sizes.items()})
    return XetSession(config)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
