"""The reader of requests in the bytes of one connection: it checks each complete head, then reads the body."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

from llmdeploy.gateway import api_routes, responses
from llmdeploy.gateway.auth import denied
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.header_cache import ParsedRequest, cached_request
from llmdeploy.gateway.route import Limits
from llmdeploy.http1 import CONTINUE, END_OF_HEAD, MAX_HEAD, BadFraming, Chunked, Request, check_beginning

SMALL = 64 * 1024
"""Bytes of the largest body that is gathered as it comes, and read to its end even if the request is refused."""

_STEP = bytes(256 * 1024)
"""The piece by which the memory of a large body grows: it follows what came, not what was announced."""


class Intake(Protocol):
    """The gateway, as the reader of a connection sees it."""

    limits: Limits
    key: bytes | None
    host: str
    has_control: bool
    buffered: int
    """Bytes of request bodies in memory, of all connections."""


class Connection(Protocol):
    """The connection of an application, as its reader sees it."""

    transport: asyncio.Transport
    since: float

    def become(self, protocol: asyncio.BaseProtocol) -> None:
        """Make another protocol receive the bytes from now on."""

    def filled(self, body: bytes) -> None:
        """Take a large body that is complete."""

    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exception: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Unread(Exception):
    """A request that is refused before its body was read; the connection cannot be used any further."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


class RequestReader:
    """Takes requests out of the bytes that one connection received."""

    __slots__ = (
        "_at",
        "_chunks",
        "_connection",
        "_gateway",
        "_payload",
        "head",
        "in_body",
        "parsed",
        "pending",
        "refused",
        "reserved",
    )

    def __init__(self, gateway: Intake, connection: Connection) -> None:
        self._gateway = gateway
        self._connection = connection
        self.pending: bytes | bytearray = b""
        """Bytes that were received; those before `_at` are taken already."""
        self._at = 0
        self.parsed: ParsedRequest | None = None
        self.head: Request | None = None
        """The head of the request that is read or answered."""
        self.in_body = False
        """Whether the head is complete, and the body is not."""
        self.refused: Refused | None = None
        """The answer to the request once its body is read; None if it is to be served."""
        self.reserved = 0
        """Bytes of the body that count among the gateway's buffered ones."""
        self._chunks: Chunked | None = None
        self._payload: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Add bytes that were received."""
        if not self.pending:
            self.pending = data
        elif isinstance(self.pending, bytearray):
            self.pending += data
        else:
            self.pending = bytearray(self.pending) + data

    def read(self) -> bytes | None:
        """Return the body of the next request once it is complete, else None; its head is `head`.

        Raises BadFraming for bytes that are not a request, and Unread for a request whose body is not worth reading.
        """
        if not self.in_body and not self._take_head():
            return None
        head = self.head
        assert head is not None
        if not self.in_body:
            return b""
        pending, at = self.pending, self._at
        if self._chunks is not None:
            return self._take_chunks(self._chunks, bytes(pending[at:]))
        end = at + head.length
        if len(pending) < end:
            return None
        self._at = end
        self.in_body = False
        return bytes(pending[at:end])

    def _take_head(self) -> bool:
        pending, at = self.pending, self._at
        if at == len(pending):
            return False
        end = pending.find(END_OF_HEAD, at) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD):
            check_beginning(pending[at:] if at else pending)
            return False
        if end - at > MAX_HEAD:
            raise BadFraming(f"the head is longer than {MAX_HEAD} bytes", 431)
        self.parsed = cached_request(bytes(pending[at:end]))
        self.head = head = self.parsed.head
        self._at = end
        has_body = bool(head.length) or head.chunked
        self.refused = refused = self._judge(head)
        if refused is not None and has_body:
            is_read = not head.chunked and head.length <= SMALL and not head.expects_continue
            if not is_read:
                raise Unread(refused)
        return not has_body or self._expect_body(head)

    def _judge(self, head: Request) -> Refused | None:
        """Return the reason to refuse a request, as far as its head tells it."""
        gateway = self._gateway
        refused = denied(head, gateway.key, gateway.host)
        if refused is not None:
            return refused
        path = head.path
        if path not in api_routes.RELAYED or head.method != "POST":
            refused = api_routes.refused(head.method, path, has_control=gateway.has_control)
            if refused is not None:
                return refused
        if head.length > gateway.limits.body:
            return responses.too_large(gateway.limits.body)
        return None

    def _expect_body(self, head: Request) -> bool:
        """Prepare for the body. Return whether a part of it that can be read now may be there."""
        self._reserve(head.length)
        self.in_body = True
        connection = self._connection
        connection.since = time.monotonic()
        if head.chunked:
            self._chunks = Chunked()
        if head.expects_continue and self._at == len(self.pending):
            connection.transport.write(CONTINUE)
        left = len(self.pending) - self._at
        if head.length > SMALL and left < head.length:
            self._fill(head.length)
            return False
        return True

    def _reserve(self, size: int) -> None:
        """Count bytes of the body. Raises Unread if there are too many of all requests together."""
        gateway = self._gateway
        if gateway.buffered + size > gateway.limits.buffered:
            raise Unread(responses.out_of_memory())
        gateway.buffered += size
        self.reserved += size

    def _take_chunks(self, chunks: Chunked, data: bytes) -> bytes | None:
        before = len(self._payload)
        self._at += chunks.feed(data, self._payload)
        self._reserve(sum(map(len, self._payload[before:])))
        if self.reserved > self._gateway.limits.body:
            raise Unread(responses.too_large(self._gateway.limits.body))
        if not chunks.done:
            return None
        body = b"".join(self._payload)
        self._chunks = None
        self._payload = []
        self.in_body = False
        return body

    def _fill(self, length: int) -> None:
        """Receive the rest of a large body in its place."""
        filling = Filling(self._connection, length, bytes(self.pending[self._at :]))
        self._at = len(self.pending)
        self._connection.become(filling)

    def compact(self) -> None:
        """Drop the bytes that are taken."""
        if self._at == len(self.pending):
            self.pending = b""
        elif self._at:
            self.pending = bytearray(memoryview(self.pending)[self._at :])
        self._at = 0

    def drop(self) -> None:
        """Forget all bytes, those of a request that is only partly there too."""
        self.pending, self._at = b"", 0
        self._payload = []


class Filling(asyncio.BufferedProtocol):
    """A large body on its way: receives it straight into its place, then gives the connection back."""

    __slots__ = ("_body", "_connection", "_filled", "_length")

    def __init__(self, connection: Connection, length: int, begun: bytes) -> None:
        self._connection = connection
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
        self._connection.since = time.monotonic()
        if self._filled == self._length:
            body, self._body = self._body, bytearray()
            # Every reader of a body takes any bytes; a copy of 10 MB would take a millisecond.
            self._connection.filled(cast("bytes", body))

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exception: Exception | None) -> None:
        self._connection.connection_lost(exception)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
