"""Remote files that are read like local ones: only the ranges that are read are downloaded."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Get = Callable[[int, int], bytes]
"""A function that returns the bytes from one offset up to, but not including, another."""

FIRST = 256 * 1024
"""Bytes of the first request, and of a request after a jump: most headers need no more."""
LARGEST = 8 * 1024**2
"""The most bytes of one request, which are all that is kept in memory."""
MOST = 256 * 1024**2
"""The most bytes of all requests. The largest known header has 100 MB; a damaged one must not load a whole model."""


class RangeFile(io.RawIOBase):
    """A seekable file of `size` bytes. A request that continues the last one is for twice as many bytes."""

    def __init__(self, get: Get, size: int, name: str = "") -> None:
        self._get = get
        self._size = size
        self._name = name
        self._at = 0
        self._start = 0
        """Offset of the window, which has the bytes that were downloaded last."""
        self._window = b""
        self._next = FIRST
        self._fetched = 0

    @property
    def name(self) -> str:
        """Name of the file, for people."""
        return self._name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"there is no offset {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        if not self._start <= self._at < self._start + len(self._window):
            self._fetch()
        part = self._window[self._at - self._start :][: len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _fetch(self) -> None:
        """Move the window to the current offset. Raises OSError if too much was read or the server sent too little."""
        end = self._start + len(self._window)
        goes_on = end <= self._at < end + FIRST  # a header is read with small jumps
        start = end if goes_on else self._at
        length = min(self._next if goes_on else FIRST, self._size - start)
        if self._fetched + length > MOST:
            raise OSError(f"it does not end within {MOST:,} bytes")
        window = self._get(start, start + length)
        if len(window) != length:
            raise OSError(f"{length:,} bytes were asked for at {start:,}, and {len(window):,} came")
        self._start, self._window = start, window
        self._fetched += length
        self._next = min(2 * length, LARGEST)


def opened(get: Get, size: int, name: str = "") -> BinaryIO:
    """Return a buffered file, which makes small reads cheap."""
    return cast(BinaryIO, io.BufferedReader(RangeFile(get, size, name), FIRST))
