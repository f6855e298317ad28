"""One connection of an application: its requests are answered one after the other."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol, cast

import msgspec

from llmdeploy.address import is_loopback
from llmdeploy.gateway import api_routes, half_close, responses
from llmdeploy.gateway.client_state import State, Untaken, end_by_reset
from llmdeploy.gateway.errors import Refused, body_of
from llmdeploy.gateway.interfaces import Host, Work
from llmdeploy.gateway.origins import preflight_headers
from llmdeploy.gateway.reader import Intake, RequestReader, Unread
from llmdeploy.gateway.relay import Relay
from llmdeploy.gateway.route import Route
from llmdeploy.gateway.turns import Turns
from llmdeploy.http1 import MAX_HEAD, BadFraming, Request

LINGER_SECONDS = 2.0
"""Seconds for which the rest of a refused request is read: a reset over unread bytes would lose the answer."""
LOOK_SECONDS = 0.05
"""Seconds until a half-closed connection is looked at again: a client that leaves may let it go a little later."""
FRESH_SECONDS = 1.0
"""Seconds for which a connection without a request does not count as idle: its request may be on its way."""
MOST_AT_ONCE = 16
"""Requests of one connection that are answered before other connections have their turn."""

_READING, _BUSY, _LINGERING, _CLOSING = State
_ENDING = (_LINGERING, _CLOSING)


class Front(Intake, Host, Protocol):
    """The gateway, as a client's connection sees it."""

    clients: set[Downstream]
    route: Route
    turns: Turns

    def make_room(self, client: Downstream) -> None:
        """Keep the number of connections within its limit now that this one was made."""

    def answer_elsewhere(self, client: Downstream, head: Request, body: bytes) -> Work:
        """Start a task that answers the request."""

    def document(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the document of a request that is answered at once. Raises Refused."""


class Downstream(asyncio.Protocol):
    """One connection of an application. The next request is not parsed until the answer to the current one is sent."""

    __slots__ = (
        "_advancing",
        "_gateway",
        "_has_asked",
        "_is_half_closed",
        "_is_resting",
        "_reader",
        "_reading_paused",
        "_state",
        "_unblocked",
        "_untaken",
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
        self._has_asked = False
        self._is_resting = False
        """Whether other connections have their turn before the next request."""
        self._is_half_closed = False
        """Whether the client sends no more, and still reads."""
        self._untaken = Untaken()
        self.is_blocked = False
        """Whether the client does not keep up with what is written to it."""
        self.is_local = False
        self.since = time.monotonic()
        """`monotonic()` of the last state change, or of the last bytes of a request."""

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        own = transport.get_extra_info("sockname")
        self.is_local = bool(peer) and (is_loopback(peer[0]) or peer[0] == own[0])
        self._gateway.clients.add(self)
        if len(self._gateway.clients) > self._gateway.limits.clients:
            self._gateway.make_room(self)

    def data_received(self, data: bytes) -> None:
        state, reader = self._state, self._reader
        if state in _ENDING:
            return
        if reader.in_body or (state is _READING and not reader.pending):
            self.since = time.monotonic()
        reader.feed(data)
        self._advance()

    def eof_received(self) -> bool | None:
        """Treat a half-closed connection as one of a client that died, unless it is known to wait for its answer."""
        if (self._state is _BUSY or self._is_resting) and half_close.still_reads(self.transport):
            self._is_half_closed = True
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
            return True
        self._leave()
        self._state = _CLOSING
        self.since = time.monotonic()
        return None

    def _look(self) -> None:
        """End the request of a half-closed connection whose client has left after all."""
        if self._state is _BUSY and not half_close.still_reads(self.transport):
            self._drop()

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
        self._untaken.took_some()
        self._unblock()
        if self._work is not None:
            self._work.resume()
        self._advance()

    async def writable(self) -> None:
        """Wait until the client keeps up, or is gone."""
        while self.is_blocked and self._state is not _CLOSING:
            self._unblocked = asyncio.get_running_loop().create_future()
            await self._unblocked

    def _unblock(self) -> None:
        if self._unblocked is not None and not self._unblocked.done():
            self._unblocked.set_result(None)

    def sweep(self, now: float) -> None:
        """End the connection if the client takes too long."""
        limits, state, waited = self._gateway.limits, self._state, now - self.since
        if state is _READING:
            if not self.is_blocked and (refused := self._reader.overdue(now)) is not None:
                self.reject(refused)
            elif waited > limits.idle_seconds or (waited > limits.head_seconds and not self._has_asked):
                self._close()
        elif (state is _LINGERING and waited > LINGER_SECONDS) or (state is _CLOSING and waited > limits.idle_seconds):
            self.transport.abort()
        elif state is _BUSY and self._is_half_closed:
            self._look()
        if self._untaken.seconds(self.transport.get_write_buffer_size(), now) > limits.unread_seconds:
            self._drop()

    def dispensable(self, now: float) -> tuple[int, float] | None:
        """Return the place among those that are given up for new ones, the oldest idle one first; None while busy."""
        if self._state is _BUSY:
            return None
        is_idle = not self._reader.in_body and not self._reader.pending and now - self.since > FRESH_SECONDS
        return (0 if self._state in _ENDING else 1 if is_idle else 2), self.since

    def give_way(self) -> None:
        """End the connection, which is not busy, in favor of another."""
        self._gateway.clients.discard(self)
        if self._state is _READING and not self._reader.pending and not self.transport.get_write_buffer_size():
            self._close()
        else:
            self._drop()

    def _drop(self) -> None:
        """End the connection at once, and the request on it."""
        self._leave()
        self._state = _CLOSING
        self.transport.abort()

    # Requests

    def _advance(self) -> None:
        """Take requests out of the received bytes, until one is incomplete or not answered yet."""
        if self._advancing:
            return
        if self._is_resting:
            self._throttle()
            return
        self._advancing = True
        reader = self._reader
        try:
            for _ in range(MOST_AT_ONCE):
                if self._state is not _READING or self.is_blocked or (body := reader.read()) is None:
                    break
                self._dispatch(body)
            else:
                self._is_resting = True
                self._gateway.turns.add(self)
            if reader.pending and self._state is _READING:
                reader.count_pending()
        except BadFraming as bad:
            self.reject(responses.malformed(bad.status, bad.message))
        except Unread as unread:
            self.reject(unread.refused)
        finally:
            self._advancing = False
        reader.compact()
        if reader.pending or self._reading_paused:
            self._throttle()
        if self._is_half_closed and self._state is _READING and not reader.pending:
            self._close()

    def go_on(self) -> None:
        """Answer the requests that have come meanwhile."""
        self._is_resting = False
        self._advance()

    def _throttle(self) -> None:
        """Stop receiving when more than one request's worth of bytes waits, or the client does not keep up."""
        pending, state = self._reader.pending, self._state
        is_full = len(pending) > MAX_HEAD and (state is _BUSY or self._is_resting)
        if (is_full or (self.is_blocked and bool(pending))) != self._reading_paused and state not in _ENDING:
            self._reading_paused = not self._reading_paused
            if self._reading_paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def filled(self, body: bytes) -> None:
        """Take a large body that is complete."""
        self.become(self)
        self._reader.in_body = False
        self._dispatch(body)
        self._advance()

    def become(self, protocol: asyncio.BaseProtocol) -> None:
        """Make another protocol receive the bytes from now on.

        Reading stops meanwhile, because uvloop looks at the kind of the protocol only when reading starts.
        """
        self.transport.pause_reading()
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()

    def _dispatch(self, body: bytes) -> None:
        """Answer a complete request, or start the work that answers it."""
        self._state = _BUSY
        self._has_asked = True
        reader = self._reader
        head, parsed = reader.head, reader.parsed
        assert head is not None
        assert parsed is not None
        if reader.refused is not None:
            self.refuse(reader.refused)
        elif head.method == "OPTIONS":
            self._answer_preflight(head)
        elif head.path in api_routes.RELAYED:
            route = self._gateway.route
            call = Relay(self._gateway, route, self, parsed, body)
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

    def _answer_preflight(self, head: Request) -> None:
        """Tell a browser what a web page may send."""
        self._count(204)
        lines = self.cors + preflight_headers(head)
        self.transport.write(responses.bodiless(204, lines, close=not head.keep_alive))
        self.done()

    # Answers

    @property
    def cors(self) -> bytes:
        """The header lines that let a web page read the answer to the current request."""
        return self._reader.cors

    def refuse(self, refused: Refused) -> None:
        """Answer the current request with an error."""
        self._count(refused.status)
        self.answer(refused.status, body_of(refused), headers=refused.headers)

    def answer(self, status: int, body: bytes, content_type: bytes = responses.JSON, headers: bytes = b"") -> None:
        """Send a complete answer to the current request. `headers` are complete header lines."""
        head = self._reader.head
        assert head is not None
        headers += self._reader.cors
        is_head = head.method == "HEAD"
        self.transport.write(
            responses.answer(status, body, content_type, headers, close=not head.keep_alive, bodiless=is_head)
        )
        self.done()

    def done(self) -> None:
        """Continue with the next request: the answer to the current one is sent."""
        self._work = None
        reader = self._reader
        if reader.reserved:
            self.release_body()
        keep_alive = reader.head is not None and reader.head.keep_alive
        reader.head = reader.parsed = None
        if not keep_alive:
            self._close()
            return
        self._state = _READING
        self.since = time.monotonic()
        if reader.pending or self._reading_paused or self._is_half_closed:
            self._advance()

    def release_body(self) -> None:
        """Stop counting the body of the current request among the buffered bytes."""
        reader = self._reader
        self._gateway.buffered -= reader.reserved
        reader.reserved = 0

    def break_off(self, *, reset: bool) -> None:
        """Close the connection in the middle of an answer; with `reset`, so that the client sees an error."""
        self._work = None
        if reset:
            # An answer without framing ends with its connection, so a normal close would look like a complete answer.
            self._state = _CLOSING
            end_by_reset(self.transport)
        else:
            self._close()

    def reject(self, refused: Refused) -> None:
        """Answer a request that is not read to its end, and end the connection."""
        if self._state in _ENDING:
            return
        self._count(refused.status)
        reader = self._reader
        if reader.head is None or reader.head.method != "HEAD":
            body, lines = body_of(refused), refused.headers + reader.cors
            answer = responses.answer(refused.status, body, responses.JSON, lines, close=True, bodiless=False)
            self.transport.write(answer)
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
        """Close the connection once everything is written."""
        self._state = _CLOSING
        self.since = time.monotonic()
        self.transport.close()

    def close(self) -> None:
        """Close the connection unless a request is in progress: the gateway stops."""
        if self._work is None and self._state not in _ENDING:
            self._close()

    def _count(self, status: int) -> None:
        head = self._reader.head
        self._gateway.metrics.answered("", "", head.path if head is not None else "", status)
