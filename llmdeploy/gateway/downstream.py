"""One connection of an application: its requests, one after the other."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from llmdeploy.address import is_loopback
from llmdeploy.gateway import responses, routes
from llmdeploy.gateway.auth import denied
from llmdeploy.gateway.errors import Refused, body_of
from llmdeploy.gateway.filling import Filling
from llmdeploy.gateway.header_cache import Asked, asked
from llmdeploy.gateway.relay import Relay
from llmdeploy.http1 import CONTINUE, END_OF_HEAD, MAX_HEAD, BadFraming, Chunked, Request, check_beginning

if TYPE_CHECKING:
    from llmdeploy.gateway.gateway import Gateway

SMALL = 64 * 1024
"""Bodies up to this are gathered as they come, and read to their end even when they are refused."""
LINGER_SECONDS = 2.0
"""After a refusal the rest of a request is read for so long: a connection closed over unread bytes loses its answer."""

_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

_HEAD, _BODY, _BUSY, _LINGERING, _CLOSING = range(5)


class Work(Protocol):
    """A request that is being answered."""

    def abandon(self) -> None:
        """The client has left."""

    def pause(self) -> None:
        """The client does not keep up."""

    def resume(self) -> None:
        """It does again."""


class Downstream(asyncio.Protocol):
    """One connection of an application. The next request is not looked at until the answer to this one is out."""

    __slots__ = (
        "_advancing",
        "_asked",
        "_at",
        "_chunks",
        "_gateway",
        "_head",
        "_payload",
        "_pending",
        "_reading_paused",
        "_refused",
        "_reserved",
        "_state",
        "_unblocked",
        "_work",
        "is_blocked",
        "is_local",
        "since",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._state = _HEAD
        self._pending: bytes | bytearray = b""
        self._at = 0
        """How much of what is pending was taken already."""
        self._asked: Asked | None = None
        self._head: Request | None = None
        self._chunks: Chunked | None = None
        self._payload: list[bytes] = []
        self._refused: tuple[Refused, bytes] | None = None
        """What the request is answered with once its body is read."""
        self._reserved = 0
        self._work: Work | None = None
        self._advancing = False
        self._reading_paused = False
        self._unblocked: asyncio.Future[None] | None = None
        self.is_blocked = False
        """Whether more than enough is still to be written."""
        self.is_local = False
        self.since = time.monotonic()
        """When the state of now began, or made progress."""

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        own = transport.get_extra_info("sockname")
        self.is_local = bool(peer) and (is_loopback(peer[0]) or peer[0] == own[0])
        self._gateway.clients.add(self)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state >= _LINGERING:
            return
        if not self._pending:
            self._pending = data
            if state == _HEAD:
                self.since = time.monotonic()
        elif isinstance(self._pending, bytearray):
            self._pending += data
        else:
            self._pending = bytearray(self._pending) + data
        if state == _BODY:
            self.since = time.monotonic()
        self._advance()

    def eof_received(self) -> bool | None:
        """Half a close counts as a whole one: a client that has died looks the same, and nobody should work for it."""
        self._leave()
        self._state = _CLOSING
        self.since = time.monotonic()
        return None

    def connection_lost(self, exception: Exception | None) -> None:
        self._leave()
        self._state = _CLOSING
        self._gateway.clients.discard(self)
        self.release_body()
        self._pending = b""
        self._unblock()

    def _leave(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.abandon()

    def pause_writing(self) -> None:
        self.is_blocked = True
        if self._work is not None:
            self._work.pause()

    def resume_writing(self) -> None:
        self.is_blocked = False
        self._unblock()
        if self._work is not None:
            self._work.resume()
        self._advance()

    async def writable(self) -> None:
        """Until the client keeps up, or is gone."""
        while self.is_blocked and self._state != _CLOSING:
            self._unblocked = asyncio.get_running_loop().create_future()
            await self._unblocked

    def _unblock(self) -> None:
        if self._unblocked is not None and not self._unblocked.done():
            self._unblocked.set_result(None)

    def sweep(self, now: float) -> None:
        """Ends what takes too long."""
        limits, waited = self._gateway.limits, now - self.since
        if self._state == _BODY or (self._state == _HEAD and self._pending and not self.is_blocked):
            if waited > limits.head_seconds:
                self._reject(responses.too_slow(limits.head_seconds))
        elif self._state == _HEAD:
            if waited > limits.idle_seconds:
                self._close()
        elif (self._state == _LINGERING and waited > LINGER_SECONDS) or (
            self._state == _CLOSING and waited > limits.idle_seconds
        ):
            self.transport.abort()

    # Requests

    def _advance(self) -> None:
        """Takes requests out of what came, until one is not whole or not answered yet."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._at < len(self._pending) and not self.is_blocked and self._step():
                pass
        except BadFraming as bad:
            self._reject(responses.malformed(bad.status, bad.message))
        finally:
            self._advancing = False
        self._compact()

    def _compact(self) -> None:
        """Drops what was taken, and reads no more than one could need."""
        pending = self._pending
        if self._at == len(pending):
            self._pending = b""
        elif self._at:
            self._pending = bytearray(memoryview(pending)[self._at :])
        self._at = 0
        is_full = len(self._pending) > MAX_HEAD and self._state == _BUSY
        if (is_full or (self.is_blocked and bool(self._pending))) != self._reading_paused and self._state < _LINGERING:
            self._reading_paused = not self._reading_paused
            if self._reading_paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _step(self) -> bool:
        """Whether a step forward was made."""
        if self._state == _HEAD:
            return self._take_head()
        if self._state == _BODY:
            return self._take_body()
        return False

    def _take_head(self) -> bool:
        pending, at = self._pending, self._at
        end = pending.find(END_OF_HEAD, at) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD):
            check_beginning(pending[at:] if at else pending)
            return False
        if end - at > MAX_HEAD:
            raise BadFraming(f"the head is longer than {MAX_HEAD} bytes", 431)
        self._asked = asked(bytes(pending[at:end]))
        self._head = head = self._asked.head
        self._at = end
        has_body = bool(head.length) or head.chunked
        refused = self._judge(head)
        if refused is not None:
            is_read = not head.chunked and head.length <= SMALL and not head.expects_continue
            if has_body and not is_read:
                self._reject(*refused)
                return False
            self._refused = refused
        if not has_body:
            self._dispatch(head, b"")
            return True
        return self._expect_body(head)

    def _judge(self, head: Request) -> tuple[Refused, bytes] | None:
        """Why a request is not served, as far as its head tells."""
        gateway = self._gateway
        refused = denied(head, gateway.key, gateway.host)
        if refused is not None:
            return refused, b""
        path = head.path
        if path not in routes.RELAYED or head.method != "POST":
            no_route = routes.refused(head.method, path, has_control=gateway.control is not None)
            if no_route is not None:
                refused, allow = no_route
                return refused, b"allow: %b\r\n" % allow.encode() if allow else b""
        if head.length > gateway.limits.body:
            return responses.too_large(gateway.limits.body), b""
        return None

    def _expect_body(self, head: Request) -> bool:
        if not self._reserve(head.length):
            return False
        self._state = _BODY
        self.since = time.monotonic()
        if head.chunked:
            self._chunks = Chunked()
        if head.expects_continue and self._at == len(self._pending):
            self.transport.write(CONTINUE)
        left = len(self._pending) - self._at
        if head.length > SMALL and left < head.length:
            self._fill(head.length)
            return False
        return True

    def _reserve(self, size: int) -> bool:
        gateway = self._gateway
        if gateway.buffered + size > gateway.limits.buffered:
            self._reject(responses.out_of_memory(), responses.RETRY_AFTER)
            return False
        gateway.buffered += size
        self._reserved += size
        return True

    def release_body(self) -> None:
        """The body is not needed any more."""
        self._gateway.buffered -= self._reserved
        self._reserved = 0

    def _take_body(self) -> bool:
        head, pending, at = self._head, self._pending, self._at
        assert head is not None
        if self._chunks is not None:
            return self._take_chunks(head, self._chunks, bytes(pending[at:]))
        end = at + head.length
        if len(pending) < end:
            return False
        self._at = end
        self._dispatch(head, bytes(pending[at:end]))
        return True

    def _take_chunks(self, head: Request, chunks: Chunked, data: bytes) -> bool:
        before = len(self._payload)
        self._at += chunks.feed(data, self._payload)
        if not self._reserve(sum(map(len, self._payload[before:]))):
            return False
        if self._reserved > self._gateway.limits.body:
            self._reject(responses.too_large(self._gateway.limits.body))
            return False
        if not chunks.done:
            return False
        body = b"".join(self._payload)
        self._chunks = None
        self._payload = []
        self._dispatch(head, body)
        return True

    def _fill(self, length: int) -> None:
        """Has the rest of a large body received in its place."""
        filling = Filling(self, length, bytes(self._pending[self._at :]))
        self._at = len(self._pending)
        self._become(filling)

    def filled(self, body: bytearray) -> None:
        """The large body is whole."""
        self._become(self)
        assert self._head is not None
        # Whoever reads a body takes any bytes; a copy of 10 MB would take a millisecond.
        self._dispatch(self._head, cast("bytes", body))
        self._advance()

    def _become(self, protocol: asyncio.BaseProtocol) -> None:
        """Bytes go to another protocol from now on. uvloop asks which kind it is when reading begins."""
        self.transport.pause_reading()
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()

    def _dispatch(self, head: Request, body: bytes) -> None:
        """Answers a whole request, or has it answered."""
        self._state = _BUSY
        if self._refused is not None:
            (refused, more), self._refused = self._refused, None
            self.refuse(refused, more)
        elif head.path in routes.RELAYED:
            assert self._asked is not None
            call = Relay(self._gateway, self, self._asked, body)
            self._work = call
            self._gateway.relay(call)
        elif head.path.startswith(routes.CONTROL) or head.path == "/metrics":
            self._work = self._gateway.exchange(self, head, body)
        else:
            self._answer_here(head)

    def _answer_here(self, head: Request) -> None:
        try:
            status, document = self._gateway.document(head.path)
        except Refused as refused:
            self.refuse(refused)
            return
        self._count(status)
        self.answer(status, msgspec.json.encode(document))

    # Answers

    def refuse(self, refused: Refused, more: bytes = b"") -> None:
        """Answers with an error."""
        self._count(refused.status)
        self.answer(refused.status, body_of(refused), more=more)

    def answer(self, status: int, body: bytes, content_type: bytes = responses.JSON, more: bytes = b"") -> None:
        """Answers the request of now."""
        head = self._head
        assert head is not None
        is_head = head.method == "HEAD"
        self.transport.write(
            responses.answer(status, body, content_type, more, close=not head.keep_alive, bodiless=is_head)
        )
        self.done()

    def done(self) -> None:
        """The answer is out."""
        self._work = None
        if self._reserved:
            self.release_body()
        keep_alive = self._head is not None and self._head.keep_alive
        self._head = self._asked = None
        if not keep_alive:
            self._close()
            return
        self._state = _HEAD
        self.since = time.monotonic()
        if self._pending or self._reading_paused:
            self._advance()

    def break_off(self, *, reset: bool) -> None:
        """Ends the connection in the middle of an answer."""
        self._work = None
        if reset:
            # The end of the connection would be the end of the answer; so the connection fails.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._state = _CLOSING
            self.transport.abort()
        else:
            self._close()

    def _reject(self, refused: Refused, more: bytes = b"") -> None:
        """Answers a request that is not read to its end, and ends the connection."""
        if self._state >= _LINGERING:
            return
        self._count(refused.status)
        if self._head is None or self._head.method != "HEAD":
            body = body_of(refused)
            self.transport.write(
                responses.answer(refused.status, body, responses.JSON, more, close=True, bodiless=False)
            )
        self.release_body()
        self._payload = []
        self._pending, self._at = b"", 0
        self._state = _LINGERING
        self.since = time.monotonic()
        if self.transport.get_protocol() is not self:
            self._become(self)
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        """Ends the connection once all is written."""
        self._state = _CLOSING
        self.since = time.monotonic()
        self.transport.close()

    def close(self) -> None:
        """The gateway stops."""
        work = self._work
        if work is None and self._state < _LINGERING:
            self._close()

    def _count(self, status: int) -> None:
        path = "" if self._head is None else self._head.path
        self._gateway.metrics.answered("", "", path, status)
