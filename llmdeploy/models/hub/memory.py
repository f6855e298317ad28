"""Memory for hf_xet, which takes up to 64 MB for each piece of a file and gives them back at once."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT = 2**30
"""Bytes."""


def reuse() -> None:
    """Have glibc keep what is given back for the next piece.

    Else each piece is mapped anew, and the kernel clears its pages: a quarter of a download's processor time.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """To the system, what is kept and not in use."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
