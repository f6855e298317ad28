"""A large body, received straight into its place."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmdeploy.gateway.downstream import Downstream

_STEP = bytes(256 * 1024)
"""A body grows by so much: memory follows what came, not what was announced."""


class Filling(asyncio.BufferedProtocol):
    """Stands in for the client's protocol until the body is whole; then gives the connection back."""

    __slots__ = ("_body", "_client", "_filled", "_length")

    def __init__(self, client: Downstream, length: int, begun: bytes) -> None:
        self._client = client
        self._length = length
        self._body = bytearray(begun)
        self._filled = len(begun)

    def get_buffer(self, hint: int) -> memoryview:
        if self._filled == len(self._body):
            left = self._length - self._filled
            self._body += _STEP if left >= len(_STEP) else _STEP[:left]
        return memoryview(self._body)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._client.since = time.monotonic()
        if self._filled == self._length:
            body, self._body = self._body, bytearray()
            self._client.filled(body)

    def eof_received(self) -> bool | None:
        return self._client.eof_received()

    def connection_lost(self, exception: Exception | None) -> None:
        self._client.connection_lost(exception)

    def pause_writing(self) -> None:
        self._client.pause_writing()

    def resume_writing(self) -> None:
        self._client.resume_writing()
