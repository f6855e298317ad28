"""The connections to one server: a request goes out, the framing of its answer is followed, the connection is kept."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from llmdeploy.gateway.header_cache import ParsedResponse, cached_response
from llmdeploy.gateway.target import Target
from llmdeploy.http1 import END_OF_HEAD, MAX_HEAD, BadFraming, Body, Chunked, Length, Response, UntilClose
from llmdeploy.tls import trusting

if TYPE_CHECKING:
    import socket

IDLE_SECONDS = 4.0
"""Seconds after which an idle connection is closed. vLLM does so after 5 s, and no request must meet that."""
CONNECT_SECONDS = 5.0
"""Seconds to connect to the server."""
JOINED = 16 * 1024
"""Bytes of the largest body that is copied behind its head, so that both are written at once."""


class Call(Protocol):
    """A relayed request, as the connections to its server see it."""

    @property
    def is_blocked(self) -> bool:
        """Whether its answer waits for the client, which does not keep up."""

    def go(self, upstream: Upstream) -> None:
        """Send the request on that connection."""

    def begin(self, parsed: ParsedResponse) -> bool:
        """Take the head of the answer. Return whether the body is wanted without its framing."""

    def forward(self, data: bytes) -> None:
        """Take a piece of the answer as the server framed it."""

    def take(self, payload: bytes) -> None:
        """Take a piece of the answer without its framing."""

    def finished(self) -> None:
        """Take note that the answer is complete."""

    def lost(self, upstream: Upstream, *, answered: bool) -> None:
        """Take note that the connection ended before the answer was complete. `answered`: a part of it had come."""

    def unreachable(self) -> None:
        """Take note that no connection to the server can be made."""

    def cut(self) -> None:
        """End the request: its server is stopped."""


class Upstream(asyncio.Protocol):
    """One connection to a server, with at most one request on it."""

    __slots__ = (
        "_body",
        "_call",
        "_decodes",
        "_head",
        "_is_paused",
        "_poll",
        "_response",
        "closing",
        "idle_since",
        "pool",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.idle_since = 0.0
        self.closing = False
        self._call: Call | None = None
        self._head = b""
        self._response: Response | None = None
        self._body: Body | None = None
        self._decodes = False
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._poll = _poll_of(transport.get_extra_info("socket"))

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed this idle connection, or has sent something on it.

        The event loop may not have heard of it yet, and a request that was written to a closed connection cannot be
        told from one that ended the server.
        """
        return self._poll()

    def send(self, call: Call, head: bytes, body: bytes) -> None:
        """Send a request on this connection."""
        self._call = call
        if len(body) <= JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.drop()  # bytes without a request
            return
        self.pool.received += 1
        try:
            body = self._body
            if body is None:
                self._take_head(call, data)
            elif self._decodes:
                self._take_decoded(call, body, data)
            else:
                end = body.feed(data)
                if not body.done:
                    call.forward(data)
                else:
                    call.forward(data[:end])
                    self._finish(call, end < len(data))
        except BadFraming:
            self._break()

    def _take_head(self, call: Call, data: bytes) -> None:
        if self._head:
            data = self._head + data
        while True:
            end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
            if end < len(END_OF_HEAD):
                if len(data) > MAX_HEAD:
                    raise BadFraming("the head of the answer has no end")
                self._head = data
                return
            answer = cached_response(data[:end])
            response = answer.head
            if response.status == 101:
                raise BadFraming("the server switches to another protocol, unasked")
            if response.status >= 200:
                break
            data = data[end:]  # `100 Continue` and other interim answers
        rest = data[end:]
        self._head = b""
        self._response = response
        self._body = body = _body_of(response)
        self._decodes = call.begin(answer)
        if body.done:
            call.forward(b"")
            self._finish(call, bool(rest))
        elif not rest:
            call.forward(b"")
        elif self._decodes:
            self._take_decoded(call, body, rest)
        else:
            whole = body.feed(rest)
            call.forward(rest[:whole])
            if body.done:
                self._finish(call, whole < len(rest))

    def _take_decoded(self, call: Call, body: Body, data: bytes) -> None:
        payload: list[bytes] = []
        end = body.feed(data, payload)
        for piece in payload:
            call.take(piece)
        if body.done and self._call is call:
            self._finish(call, end < len(data))

    def _finish(self, call: Call, has_more: bool) -> None:
        """End the request: its answer is complete. Keep the connection unless bytes are left in either direction."""
        response = self._response
        self._call = self._response = self._body = None
        self.resume()
        is_sent = not self.transport.get_write_buffer_size()
        keeps = response is not None and response.keep_alive
        if response is not None and response.chunked and self.pool.target.closes_streams:
            keeps = False
        if keeps and is_sent and not has_more and not self.closing:
            self.pool.give_back(self)
        else:
            self.drop()
        call.finished()

    def _break(self) -> None:
        """End the connection: the server does not speak HTTP."""
        call, self._call = self._call, None
        self.drop()
        if call is not None:
            call.lost(self, answered=True)

    def drop(self) -> None:
        """End the connection at once, without a word to its request."""
        self._call = None
        self.closing = True
        self.transport.abort()

    def pause(self) -> None:
        """Stop reading: the client does not keep up."""
        if not self._is_paused and not self.closing:
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            if not self.closing:
                self.transport.resume_reading()

    def at_boundary(self) -> bool:
        """Return whether an event can be inserted after the bytes that were forwarded."""
        return self._body is not None and self._body.at_boundary

    def connection_lost(self, exception: Exception | None) -> None:
        self.closing = True
        call = self._call
        if call is None:
            self.pool.forget(self)
        elif exception is None and isinstance(self._body, UntilClose):
            self._finish(call, has_more=True)
        else:
            self._call = None
            call.lost(self, answered=bool(self._head) or self._body is not None)


def _poll_of(socket: socket.socket) -> Callable[[], bool]:
    """Return a function that tells whether the socket can be read, or was closed by the other side."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return lambda: bool(poll.poll(0))


def _body_of(response: Response) -> Body:
    if response.status in (204, 304):
        return Length(0)
    if response.chunked:
        return Chunked()
    return UntilClose() if response.length is None else Length(response.length)


def _own_headers(target: Target) -> bytes:
    key = f"authorization: Bearer {target.key}\r\n" if target.key else ""
    return f"host: {target.authority}\r\n{key}".encode()


class Pool:
    """The connections to one server. The one used last is reused first, so that surplus ones stay idle and close."""

    __slots__ = (
        "_idle",
        "_tasks",
        "_until_empty",
        "_wanting",
        "calls",
        "headers",
        "prefix",
        "received",
        "retired",
        "target",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.headers = _own_headers(target)
        """The header lines of every request that the application has no say in."""
        self.prefix = target.prefix.encode()
        self.calls: set[Call] = set()
        self.received = 0
        """Number of pieces of answers that have come from the server."""
        self.retired = False
        """Whether the server gets no new requests: connections are not kept for later."""
        self._idle: list[Upstream] = []
        self._wanting: dict[Call, None] = {}
        """Requests that wait for a new connection, or for one to become free, in the order of their arrival."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._until_empty: list[asyncio.Future[None]] = []

    def serve(self, call: Call) -> None:
        """Find a connection for a request: a free one, else the next that becomes free or is made."""
        upstream = self._take()
        if upstream is not None:
            call.go(upstream)
        else:
            self._wanting[call] = None
            self._connect()

    def _take(self) -> Upstream | None:
        """Return a free connection that was used recently, or None."""
        while self._idle:
            upstream = self._idle.pop()
            is_recent = time.monotonic() - upstream.idle_since < IDLE_SECONDS
            if is_recent and not upstream.closing and not upstream.is_stale:
                return upstream
            upstream.drop()
        return None

    def _connect(self) -> None:
        task = asyncio.get_running_loop().create_task(self._make())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self) -> None:
        upstream = await self._made()
        if upstream is not None and not upstream.closing and not upstream.is_stale:
            self.give_back(upstream)
        elif (call := self._first_wanting()) is not None:
            call.unreachable()

    async def _made(self) -> Upstream | None:
        """Return a new connection, or None if the server cannot be reached."""
        loop = asyncio.get_running_loop()
        host, port = self.target.host, self.target.port
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                trust = trusting() if self.target.tls else None
                _, upstream = await loop.create_connection(lambda: Upstream(self), host, port, ssl=trust)
        except OSError:
            return None
        except Exception as error:  # of any kind: a request waits for the outcome
            loop.call_exception_handler({"message": f"connecting to `{host}` failed", "exception": error})
            return None
        return upstream

    def _first_wanting(self) -> Call | None:
        call = next(iter(self._wanting), None)
        if call is not None:
            del self._wanting[call]
        return call

    def give_back(self, upstream: Upstream) -> None:
        """Take back a connection that has become free."""
        call = self._first_wanting() if self._wanting else None
        if call is not None:
            call.go(upstream)
        elif self.retired:
            upstream.drop()
        else:
            upstream.idle_since = time.monotonic()
            self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """Drop an idle connection that was closed."""
        if upstream in self._idle:
            self._idle.remove(upstream)

    def remove(self, call: Call) -> None:
        """Remove a request that has ended or goes elsewhere."""
        self.calls.discard(call)
        if self._wanting:
            self._wanting.pop(call, None)
        if self._until_empty and not self.calls:
            for waiter in self._until_empty:
                if not waiter.done():
                    waiter.set_result(None)
            self._until_empty.clear()

    async def until_empty(self, seconds: float) -> bool:
        """Wait until all requests have ended. Return whether they did within `seconds`."""
        if not self.calls:
            return True
        waiter = asyncio.get_running_loop().create_future()
        self._until_empty.append(waiter)
        done, _ = await asyncio.wait((waiter,), timeout=seconds)
        return bool(done)

    def sweep(self, now: float) -> None:
        """Close the connections that were idle too long; the oldest stand first."""
        idle = self._idle
        while idle and now - idle[0].idle_since >= IDLE_SECONDS:
            idle.pop(0).drop()

    def retire(self) -> None:
        """Close idle connections: the server gets no new requests, and finishes those that it has."""
        self.retired = True
        idle, self._idle = self._idle, []
        for upstream in idle:
            upstream.drop()

    def close(self) -> None:
        """Stop all attempts to connect."""
        self.retire()
        for task in self._tasks:
            task.cancel()
