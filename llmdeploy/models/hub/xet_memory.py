"""Memory for hf_xet, which takes up to 64 MB for each piece of a file and gives them back at once."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

BUFFER = 512_000_000
"""Bytes that all files on their way have together; hf_xet's own limit is 6 GB."""
KEPT = 2**30
"""Bytes."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MAPPED, TRIMMED = 65536, 2**17
"""What M_MMAP_MAX and M_TRIM_THRESHOLD are by themselves: a service that has fetched lives on."""
_changing = threading.Lock()
_users = 0


@contextmanager
def reused() -> Iterator[None]:
    """Have glibc keep what is given back for the next piece, until the last one leaves this.

    Else each piece is mapped anew, and the kernel clears its pages: a fifth of a download's processor time.
    """
    global _users
    with _changing:
        _users += 1
        if libc := _glibc():
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        with _changing:
            _users -= 1
            if (libc := _glibc()) and not _users:
                libc.mallopt(M_MMAP_MAX, MAPPED)
                libc.mallopt(M_TRIM_THRESHOLD, TRIMMED)
                libc.malloc_trim(0)


def session() -> Any:
    """Of hf_xet, one for all downloads; with little memory where the user has not said how much."""
    with _changing:
        return _session()


@cache
def _session() -> Any:
    from hf_xet import XetConfig, XetSession  # type: ignore[import-untyped]

    config = XetConfig()
    if not any(name.startswith(("HF_XET_RECONSTRUCTION_", "HF_XET_HIGH_PERFORMANCE")) for name in os.environ):
        name = "reconstruction.download_buffer_"
        config = config.with_config({f"{name}size": BUFFER, f"{name}perfile_size": 0, f"{name}limit": BUFFER})
    return XetSession(config)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
