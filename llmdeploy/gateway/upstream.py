"""One connection to a server: a request goes out, the framing of the answer is followed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from llmdeploy.gateway.header_cache import answered
from llmdeploy.http1 import END_OF_HEAD, MAX_HEAD, BadFraming, Body, Chunked, Length, Response, UntilClose

if TYPE_CHECKING:
    from llmdeploy.gateway.pool import Pool
    from llmdeploy.gateway.relay import Relay

JOINED = 16 * 1024
"""Up to so many bytes a body is copied behind its head, to be written at once."""


class Upstream(asyncio.Protocol):
    """One connection to a server, with at most one request on it."""

    __slots__ = (
        "_body",
        "_call",
        "_decodes",
        "_head",
        "_is_paused",
        "_response",
        "closing",
        "idle_since",
        "is_reused",
        "pool",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.idle_since = 0.0
        self.is_reused = False
        self.closing = False
        self._call: Relay | None = None
        self._head = b""
        self._response: Response | None = None
        self._body: Body | None = None
        self._decodes = False
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, call: Relay, head: bytes, body: bytes) -> None:
        """Puts a request on this connection."""
        self._call = call
        if len(body) <= JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.drop()  # nobody asked
            return
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

    def _take_head(self, call: Relay, data: bytes) -> None:
        if self._head:
            data = self._head + data
        while True:
            end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
            if end < len(END_OF_HEAD):
                if len(data) > MAX_HEAD:
                    raise BadFraming("the head of the answer has no end")
                self._head = data
                return
            answer = answered(data[:end])
            response = answer.head
            if response.status == 101:
                raise BadFraming("nobody asked for another protocol")
            if response.status >= 200:
                break
            data = data[end:]  # `100 Continue` and its like
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

    def _take_decoded(self, call: Relay, body: Body, data: bytes) -> None:
        payload: list[bytes] = []
        end = body.feed(data, payload)
        for piece in payload:
            call.take(piece)
        if body.done and self._call is call:
            self._finish(call, end < len(data))

    def _finish(self, call: Relay, has_more: bool) -> None:
        """The answer is whole. A connection with more bytes, or one that has not sent all, is not reused."""
        response = self._response
        self._call = self._response = self._body = None
        self.resume()
        is_sent = not self.transport.get_write_buffer_size()
        if response is not None and response.keep_alive and is_sent and not has_more and not self.closing:
            self.is_reused = True
            self.pool.give_back(self)
        else:
            self.drop()
        call.finished()

    def _break(self) -> None:
        """The server does not speak HTTP."""
        call, self._call = self._call, None
        self.drop()
        if call is not None:
            call.lost(self, answered=True)

    def drop(self) -> None:
        """Ends the connection at once; its request hears nothing more of it."""
        self._call = None
        self.closing = True
        self.transport.abort()

    def pause(self) -> None:
        """The client does not keep up."""
        if not self._is_paused and not self.closing:
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if not self.closing:
                self.transport.resume_reading()

    def at_boundary(self) -> bool:
        """Whether an event could be put in after what was forwarded."""
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


def _body_of(response: Response) -> Body:
    if response.status in (204, 304):
        return Length(0)
    if response.chunked:
        return Chunked()
    return UntilClose() if response.length is None else Length(response.length)
