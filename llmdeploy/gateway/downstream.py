"""One connection of an application: its requests, one after the other."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from enum import Enum
from typing import Any, Protocol, cast

import msgspec

from llmdeploy.address import is_loopback
from llmdeploy.gateway import api_routes, responses
from llmdeploy.gateway.errors import Refused, body_of
from llmdeploy.gateway.interfaces import Host, Work
from llmdeploy.gateway.reader import Intake, RequestReader, Unread
from llmdeploy.gateway.relay import Relay
from llmdeploy.gateway.route import Route
from llmdeploy.http1 import MAX_HEAD, BadFraming, Request

LINGER_SECONDS = 2.0
"""After a refusal the rest of a request is read for so long: a connection closed over unread bytes loses its answer."""

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


_READING, _BUSY, _LINGERING, _CLOSING = State
_ENDING = (_LINGERING, _CLOSING)


class Front(Intake, Host, Protocol):
    """The gateway, as a client's connection sees it."""

    clients: set[Downstream]
    route: Route

    def answer_elsewhere(self, client: Downstream, head: Request, body: bytes) -> Work:
        """Start a task that answers the request."""

    def document(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the document of a request that is answered at once. Raises Refused."""


class Downstream(asyncio.Protocol):
    """One connection of an application. The next request is not looked at until the answer to this one is out."""

    __slots__ = (
        "_advancing",
        "_gateway",
        "_reader",
        "_reading_paused",
        "_state",
        "_unblocked",
        "_work",
        "is_blocked",
        "is_local",
        "since",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, gateway: Front) -> None:
        self._gateway = gateway
        self._state = _READING
        self._reader = RequestReader(gateway, self)
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
        state, reader = self._state, self._reader
        if state in _ENDING:
            return
        if reader.in_body or (state is _READING and not reader.pending):
            self.since = time.monotonic()
        reader.feed(data)
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
        self._reader.drop()
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
        while self.is_blocked and self._state is not _CLOSING:
            self._unblocked = asyncio.get_running_loop().create_future()
            await self._unblocked

    def _unblock(self) -> None:
        if self._unblocked is not None and not self._unblocked.done():
            self._unblocked.set_result(None)

    def sweep(self, now: float) -> None:
        """Ends what takes too long."""
        limits, waited, reader = self._gateway.limits, now - self.since, self._reader
        if self._state is _READING:
            if reader.in_body or (reader.pending and not self.is_blocked):
                if waited > limits.head_seconds:
                    self._reject(responses.too_slow(limits.head_seconds))
            elif waited > limits.idle_seconds:
                self._close()
        elif (self._state is _LINGERING and waited > LINGER_SECONDS) or (
            self._state is _CLOSING and waited > limits.idle_seconds
        ):
            self.transport.abort()

    # Requests

    def _advance(self) -> None:
        """Takes requests out of what came, until one is not whole or not answered yet."""
        if self._advancing:
            return
        self._advancing = True
        reader = self._reader
        try:
            while self._state is _READING and not self.is_blocked and (body := reader.read()) is not None:
                self._dispatch(body)
        except BadFraming as bad:
            self._reject(responses.malformed(bad.status, bad.message))
        except Unread as unread:
            self._reject(unread.refused)
        finally:
            self._advancing = False
        reader.compact()
        self._throttle()

    def _throttle(self) -> None:
        """Stop receiving when more than one request's worth of bytes waits, or the client does not keep up."""
        pending, state = self._reader.pending, self._state
        is_full = len(pending) > MAX_HEAD and state is _BUSY
        if (is_full or (self.is_blocked and bool(pending))) != self._reading_paused and state not in _ENDING:
            self._reading_paused = not self._reading_paused
            if self._reading_paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def filled(self, body: bytes) -> None:
        """The large body is whole."""
        self.become(self)
        self._reader.in_body = False
        self._dispatch(body)
        self._advance()

    def become(self, protocol: asyncio.BaseProtocol) -> None:
        """Bytes go to another protocol from now on. uvloop asks which kind it is when reading begins."""
        self.transport.pause_reading()
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()

    def _dispatch(self, body: bytes) -> None:
        """Answers a whole request, or has it answered."""
        self._state = _BUSY
        reader = self._reader
        head, asked = reader.head, reader.asked
        assert head is not None
        assert asked is not None
        if reader.refused is not None:
            self.refuse(reader.refused)
        elif head.path in api_routes.RELAYED:
            route = self._gateway.route
            call = Relay(self._gateway, route, self, asked, body)
            self._work = call
            route.relay(call)
        elif head.path.startswith(api_routes.CONTROL) or head.path == "/metrics":
            self._work = self._gateway.answer_elsewhere(self, head, body)
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

    def refuse(self, refused: Refused) -> None:
        """Answers with an error."""
        self._count(refused.status)
        self.answer(refused.status, body_of(refused), headers=refused.headers)

    def answer(self, status: int, body: bytes, content_type: bytes = responses.JSON, headers: bytes = b"") -> None:
        """Answers the request of now."""
        head = self._reader.head
        assert head is not None
        is_head = head.method == "HEAD"
        self.transport.write(
            responses.answer(status, body, content_type, headers, close=not head.keep_alive, bodiless=is_head)
        )
        self.done()

    def done(self) -> None:
        """The answer is out."""
        self._work = None
        reader = self._reader
        if reader.reserved:
            self.release_body()
        keep_alive = reader.head is not None and reader.head.keep_alive
        reader.head = reader.asked = None
        if not keep_alive:
            self._close()
            return
        self._state = _READING
        self.since = time.monotonic()
        if reader.pending or self._reading_paused:
            self._advance()

    def release_body(self) -> None:
        """The body is not needed any more."""
        reader = self._reader
        self._gateway.buffered -= reader.reserved
        reader.reserved = 0

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

    def _reject(self, refused: Refused) -> None:
        """Answers a request that is not read to its end, and ends the connection."""
        if self._state in _ENDING:
            return
        self._count(refused.status)
        reader = self._reader
        if reader.head is None or reader.head.method != "HEAD":
            body = body_of(refused)
            self.transport.write(
                responses.answer(refused.status, body, responses.JSON, refused.headers, close=True, bodiless=False)
            )
        self.release_body()
        reader.drop()
        self._state = _LINGERING
        self.since = time.monotonic()
        if self.transport.get_protocol() is not self:
            self.become(self)
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
        if work is None and self._state not in _ENDING:
            self._close()

    def _count(self, status: int) -> None:
        head = self._reader.head
        path = "" if head is None else head.path
        self._gateway.metrics.answered("", "", path, status)
