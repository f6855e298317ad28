"""The reader of requests in the bytes of one connection: it checks each complete head, then reads the body."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

from llmdeploy.gateway import api_routes, origins, responses
from llmdeploy.gateway.auth import Access, denied
from llmdeploy.gateway.body_size import BodySize
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.header_cache import ParsedRequest, cached_request
from llmdeploy.gateway.limits import SMALL_BODY, Limits
from llmdeploy.http1 import CONTINUE, END_OF_HEAD, MAX_HEAD, BadFraming, Chunked, Request, check_beginning

MAX_FRAMING = 64 * 1024
"""Bytes between the chunks of a body that are accepted in any case: tiny chunks cost much time for few bytes."""

_FIRST_STEP = 16 * 1024
_STEP = bytes(256 * 1024)
"""The largest piece by which the memory of a body grows: it follows what came, not what was announced."""


class Intake(Protocol):
    """The gateway, as the reader of a connection sees it."""

    limits: Limits
    access: Access
    has_control: bool
    buffered: int
    """Bytes of incomplete requests and of request bodies in memory, of all connections."""

    def note_denial(self, connection: Connection) -> None:
        """Take note that a request had no API key or a wrong one."""


class Connection(Protocol):
    """The connection of an application, as its reader sees it."""

    transport: asyncio.Transport
    since: float

    def become(self, protocol: asyncio.BaseProtocol) -> None:
        """Make another protocol receive the bytes from now on."""

    def filled(self, body: bytes) -> None:
        """Take a large body that is complete."""

    def reject(self, refused: Refused) -> None:
        """Answer a request that is not read to its end, and end the connection."""

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
        "_began",
        "_chunks",
        "_connection",
        "_framing",
        "_gateway",
        "_payload",
        "_size",
        "cors",
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
        self.cors = b""
        """The header lines that let a web page read the answer to the request."""
        self.reserved = 0
        """Bytes of the request that count among the gateway's buffered ones: those that have come."""
        self._began = 0.0
        """`monotonic()` of the complete head of a request whose body is read."""
        self._chunks: Chunked | None = None
        self._payload = bytearray()
        self._framing = 0
        """Bytes between the chunks of the body."""
        self._size: BodySize | None = None

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
        self.hold(head.length)
        self._at = end
        self.in_body = False
        return bytes(pending[at:end])

    def _take_head(self) -> bool:
        pending, at = self.pending, self._at
        if at == len(pending):
            return False
        self.cors = b""
        end = pending.find(END_OF_HEAD, at) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD):
            check_beginning(pending[at:] if at else pending)
            return False
        if end - at > MAX_HEAD:
            raise BadFraming(f"the head is longer than {MAX_HEAD} bytes", 431)
        self.parsed = parsed = cached_request(bytes(pending[at:end]))
        self.head = head = parsed.head
        self._at = end
        has_body = bool(head.length) or head.chunked
        if parsed.origin is not None and not head.path.startswith(api_routes.CONTROL):
            self.cors = origins.headers(parsed.origin, self._gateway.access.origins)
        self.refused = refused = self._judge(parsed)
        if refused is not None and has_body:
            is_read = not head.chunked and head.length <= SMALL_BODY and not head.expects_continue
            if not is_read:
                raise Unread(refused)
        return not has_body or self._expect_body(head)

    def _judge(self, parsed: ParsedRequest) -> Refused | None:
        """Return the reason to refuse a request, as far as its head tells it."""
        gateway, head = self._gateway, parsed.head
        refused = denied(parsed, gateway.access)
        if refused is not None:
            if refused.status == 401:
                gateway.note_denial(self._connection)
            return refused
        path = head.path
        is_answered = head.method == "POST" and path in api_routes.RELAYED
        if not is_answered and (not parsed.is_preflight or path.startswith(api_routes.CONTROL)):
            refused = api_routes.refused(head.method, path, has_control=gateway.has_control)
            if refused is not None:
                return refused
        if parsed.encoding:
            return responses.compressed(parsed.encoding)
        return responses.too_large(self._most) if head.length > self._most else None

    @property
    def _most(self) -> int:
        """The largest body of the request, in bytes. A preflight needs no key, whatever its path."""
        head = self.head
        is_relayed = head is not None and head.method == "POST" and head.path in api_routes.RELAYED
        return self._gateway.limits.body if is_relayed else SMALL_BODY

    def _expect_body(self, head: Request) -> bool:
        """Prepare for the body. Return whether a part of it that can be read now may be there."""
        self.in_body = True
        connection = self._connection
        self._began = connection.since = time.monotonic()
        if head.chunked:
            self._chunks = Chunked()
            self._framing = 0
        if head.chunked or head.length > SMALL_BODY:
            self._size = BodySize()
        if head.expects_continue and self._at == len(self.pending):
            connection.transport.write(CONTINUE)
        left = len(self.pending) - self._at
        if head.length > SMALL_BODY and left < head.length:
            self._fill(head.length)
            return False
        return True

    def hold(self, size: int) -> None:
        """Count so many bytes of the request that have come. Raises Unread if those of all are too many.

        A request of which little has come is never refused, or a few large ones could keep out all others: the limit
        on connections is also one on the memory for these.
        """
        gateway = self._gateway
        buffered = gateway.buffered + size - self.reserved
        if buffered > gateway.limits.buffered and size > max(self.reserved, SMALL_BODY):
            raise Unread(responses.out_of_memory())
        gateway.buffered = buffered
        self.reserved = size

    def look(self, body: bytearray, end: int, *, is_last: bool) -> None:
        """Look at what has come of a large body. Raises Unread if it would take long to parse."""
        assert self._size is not None
        refused = self._size.look(body, end, is_last=is_last)
        if refused is not None:
            raise Unread(refused)

    def overdue(self, now: float) -> Refused | None:
        """Return the refusal of a request that comes too slowly. `now` is a time by `monotonic()`."""
        limits = self._gateway.limits
        paused = now - self._connection.since > limits.head_seconds
        if not self.in_body:
            return responses.too_slow(limits.head_seconds) if paused and self.pending else None
        most = min(limits.body_seconds, limits.head_seconds + self.reserved / limits.body_rate)
        if self.refused is not None:
            most = min(most, limits.head_seconds)
        return responses.body_too_slow(limits) if paused or now - self._began > most else None

    def _take_chunks(self, chunks: Chunked, data: bytes) -> bytes | None:
        pieces: list[bytes] = []
        body, before = self._payload, len(self._payload)
        size = chunks.feed(data, pieces)
        self._at += size
        for piece in pieces:
            body += piece
        self._framing += size - (len(body) - before)
        if len(body) > self._most:
            raise Unread(responses.too_large(self._most))
        if self._framing > MAX_FRAMING + len(body) // 4:
            raise Unread(responses.malformed(400, "the chunks of the body are too small"))
        self.hold(len(body))
        self.look(body, len(body), is_last=chunks.done)
        if not chunks.done:
            return None
        self._chunks = None
        self._payload = bytearray()
        self.in_body = False
        return cast("bytes", body)  # no copy: every reader of a body takes any bytes

    def _fill(self, length: int) -> None:
        """Receive the rest of a large body in its place."""
        begun = bytearray(memoryview(self.pending)[self._at :])
        self.hold(len(begun))
        self._at = len(self.pending)
        self._connection.become(Filling(self, self._connection, length, begun))

    def compact(self) -> None:
        """Drop the bytes that are taken."""
        if self._at == len(self.pending):
            self.pending = b""
        elif self._at:
            self.pending = bytearray(memoryview(self.pending)[self._at :])
        self._at = 0

    def count_pending(self) -> None:
        """Count the bytes of a request that is not complete. Raises Unread if those of all are too many."""
        if self._chunks is None and (left := len(self.pending) - self._at):
            self.hold(left)

    def drop(self) -> None:
        """Forget all bytes, those of a request that is only partly there too."""
        self.pending, self._at = b"", 0
        self._payload = bytearray()


class Filling(asyncio.BufferedProtocol):
    """A large body on its way: receives it straight into its place, then gives the connection back."""

    __slots__ = ("_body", "_connection", "_filled", "_length", "_reader")

    def __init__(self, reader: RequestReader, connection: Connection, length: int, begun: bytearray) -> None:
        self._reader = reader
        self._connection = connection
        self._length = length
        self._body = begun
        self._filled = len(begun)

    def get_buffer(self, hint: int) -> memoryview:
        if self._filled == len(self._body):
            step = min(self._length - self._filled, max(self._filled, _FIRST_STEP), len(_STEP))
            self._body += _STEP if step == len(_STEP) else _STEP[:step]
        return memoryview(self._body)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._connection.since = time.monotonic()
        try:
            self._reader.hold(self._filled)
            self._reader.look(self._body, self._filled, is_last=self._filled == self._length)
        except Unread as unread:
            self._body = bytearray()
            self._connection.reject(unread.refused)
            return
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
