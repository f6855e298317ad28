"""The state of a client's connection, the bytes that its client has not taken yet, and its end by a reset."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from enum import Enum

_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class State(Enum):
    """The state of a client's connection."""

    READING = 0
    """The next request is read, or awaited."""
    BUSY = 1
    """A request is answered."""
    LINGERING = 2
    """The last answer was sent, and bytes that the client still sends are read and dropped."""
    CLOSING = 3
    """Everything was written, and the connection is being closed."""


class Untaken:
    """The bytes that were written to a client and are not taken by it, looked at from time to time."""

    __slots__ = ("_since", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._since = 0.0

    def seconds(self, size: int, now: float) -> float:
        """Return for how long the client has taken nothing. `size`: the bytes that it could take now."""
        if not size or not self._size or size < self._size:
            self._since = now
        self._size = size
        return now - self._since

    def took_some(self) -> None:
        """Take note that the client has taken some of the bytes."""
        self._size = 0


def end_by_reset(transport: asyncio.Transport) -> None:
    """End a connection so that the client sees an error: a normal end could look like the end of an answer."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
