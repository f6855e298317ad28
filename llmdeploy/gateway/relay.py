"""One relayed request, from its complete body to the end of its answer."""

from __future__ import annotations

import time
from enum import Enum
from typing import Protocol

from llmdeploy.gateway import responses
from llmdeploy.gateway.api_routes import PASSED
from llmdeploy.gateway.errors import Refused, body_of, explained
from llmdeploy.gateway.header_cache import ParsedRequest, ParsedResponse
from llmdeploy.gateway.interfaces import Client, Host
from llmdeploy.gateway.suspects import Suspect, id_of
from llmdeploy.gateway.upstream import Pool, Upstream
from llmdeploy.gateway.validation import prepare
from llmdeploy.http1 import LAST_CHUNK, Response, chunk

MAX_ERROR = 2**20
"""Bytes of an engine's error answer that are read."""

# The type is set here: vLLM refuses a body that is not declared as JSON, and curl does not declare it.
_HEAD = b"POST %b%b HTTP/1.1\r\n%b%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_EVENT = b"data: {"
_FAILURE = b'data: {"error"'
"""The start of an error event of the engine. Text of the model cannot look like it: its quotes are escaped."""

_MISSING = b'"code":"model_not_found"'
"""A part of the answer for an engine that does not know the model. A message cannot look like it, either."""


class Mode(Enum):
    """The form in which the body of an answer reaches the client."""

    SPLICED = 0
    """The server's own framing, chunks or a length, unchanged."""
    COLLECTED = 1
    """Not forwarded: the body is an error, which is collected and then explained."""
    WRAPPED = 2
    """Chunks that are made here, because the server ends its answer with the connection."""
    BARE = 3
    """No framing; the end of the connection ends the answer, because the client speaks HTTP/1.0."""


_SPLICED, _COLLECTED, _WRAPPED, _BARE = Mode


class Queue(Protocol):
    """The route of a request, as the request sees it."""

    def lost(self, call: Relay, pool: Pool) -> None:
        """Make a request wait whose server cannot be reached."""

    def forget(self, call: Relay) -> None:
        """Drop a request whose client has left."""

    def missing(self) -> None:
        """Take note that the server does not have the model any more."""

    def suspect(self, suspect: Suspect) -> None:
        """Take note of a request whose server ended before its answer was complete."""


class Relay:
    """One relayed request. Its answer comes from one server alone; two answers are never mixed."""

    __slots__ = (
        "_answer",
        "_body",
        "_client",
        "_collected",
        "_ended",
        "_events",
        "_first",
        "_head",
        "_host",
        "_is_stream",
        "_length",
        "_mode",
        "_onward",
        "_pool",
        "_route",
        "_sent",
        "_sent_head",
        "_size",
        "_status",
        "_tail",
        "_unsent",
        "_upstream",
        "_write",
        "deadline",
        "received",
    )

    def __init__(self, host: Host, route: Queue, client: Client, parsed: ParsedRequest, body: bytes) -> None:
        self._host = host
        self._route = route
        self._client = client
        self._head = parsed.head
        self._onward = parsed.onward
        self._body = body
        self.received = time.monotonic()
        self.deadline = 0.0
        """`monotonic()` until which the request waits for a server."""
        self._pool: Pool | None = None
        self._upstream: Upstream | None = None
        self._ended = False
        self._sent = b""
        self._sent_head = b""
        self._length = len(body)
        self._answer: Response | None = None
        self._status = 0
        self._mode = _SPLICED
        self._is_stream = False
        self._unsent = b""
        self._collected: list[bytes] = []
        self._size = 0
        self._first = 0.0
        self._events = 0
        self._tail = b""
        self._write = client.transport.write

    @property
    def is_blocked(self) -> bool:
        """Whether its answer waits for the client, which does not keep up."""
        return self._client.is_blocked

    # To the server

    def send(self, pool: Pool) -> None:
        """Check the request and send it to the server of this pool."""
        self._pool = pool
        pool.calls.add(self)
        target = pool.target
        try:
            # A large body is kept once: if it is sent again, it is sent in this form.
            self._body = self._sent = prepare(self._head.path, self._body, target)
        except Refused as refused:
            self.refuse(refused)
            return
        except Exception as error:
            self._host.report(error)
            self.refuse(responses.bug(error))
            return
        self._sent_head = _HEAD % (
            pool.prefix,
            self._head.target,
            pool.headers,
            self._onward,
            len(self._sent),
        )
        pool.serve(self)

    def go(self, upstream: Upstream) -> None:
        """Send the request on that connection."""
        self._upstream = upstream
        if self._client.is_blocked:
            upstream.pause()
        upstream.send(self, self._sent_head, self._sent)

    # From the server

    def begin(self, parsed: ParsedResponse) -> bool:
        """Take the head of the answer. Return whether the body is wanted without its framing."""
        response = parsed.head
        self._answer = response
        self._status = response.status
        self._body = self._sent = b""  # after its head has come, the request is never sent again
        self._client.release_body()
        if response.status >= 400:
            self._mode = _COLLECTED
            return True
        is_1_1 = self._head.is_1_1
        if response.length is not None:
            framing = b"content-length: %d\r\n" % response.length
        elif response.status in (204, 304):
            framing = b""
        elif not is_1_1:
            framing, self._mode = b"", _BARE
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._mode = _SPLICED if response.chunked else _WRAPPED
        self._is_stream = parsed.is_stream
        self._unsent = b"HTTP/1.1 %d %b\r\n%b%bx-llmdeploy-engine: %b\r\n%b%b\r\n" % (
            response.status,
            response.reason,
            parsed.onward,
            framing,
            self._engine.encode(),
            self._client.cors,
            b"" if self._head.keep_alive else b"connection: close\r\n",
        )
        return self._mode is not _SPLICED

    def forward(self, data: bytes) -> None:
        """Send a piece of the answer to the client as the server framed it."""
        if self._is_stream and data:
            if _FAILURE in data:
                self._fail(data)
                return
            self._events += data.count(_EVENT)
            self._tail = data
            if not self._first:
                self._began()
        if self._unsent:
            data = self._unsent + data
            self._unsent = b""
        if data:
            self._write(data)

    def _fail(self, data: bytes) -> None:
        """Break off the answer at an error event of the engine. vLLM ends such a stream as if it were complete."""
        assert self._pool is not None
        at = data.find(_FAILURE)
        event = data[at : data.find(b"\n", at)].removeprefix(b"data: ")
        _, error = explained(500, event, self._pool.target)
        end = b"\n\n\r\n" if self._mode is not _BARE else b"\n\n"
        can_tell = not self._tail or self._tail.endswith(end)
        if self._unsent:
            self._write(self._unsent)
        self._end_open(error, "engine_failed", can_tell=can_tell)

    def take(self, payload: bytes) -> None:
        """Take a piece of the answer without its framing: collect it, or frame it for the client."""
        mode = self._mode
        if mode is not _COLLECTED:
            self.forward(chunk(payload) if mode is _WRAPPED else payload)
            return
        if self._size < MAX_ERROR:
            self._collected.append(payload)
            self._size += len(payload)
            if self._size >= MAX_ERROR:
                self._let_go()
                self.finished()

    def finished(self) -> None:
        """End the request: its answer is complete."""
        if self._ended:
            return
        if self._mode is _COLLECTED:
            self._explain()
            return
        if self._mode is _WRAPPED:
            self._write(LAST_CHUNK)
        if self._is_stream:
            self._measure()
        self._end(self._status)
        self._client.done()

    def _explain(self) -> None:
        """Answer with the engine's error, in the form that all errors have."""
        assert self._pool is not None
        body = b"".join(self._collected)[:MAX_ERROR]
        target = self._pool.target
        status = self._status
        try:
            if status == 404 and self._head.path in PASSED and b"model" not in body:
                status, text = 404, body_of(responses.no_such_route(target.engine, self._head.path), target.engine)
            else:
                status, text = explained(status, body, target)
                if status == 404 and _MISSING in text:  # the name was right: it was checked
                    self._route.missing()
                    self.refuse(responses.model_missing(target.engine, target.model))
                    return
        except Exception as error:
            self._host.report(error)
            status, text = 502, body_of(responses.bug(error), target.engine)
        self._reply(status, text, _retry_after(status, self._answer))

    def _began(self) -> None:
        self._first = time.monotonic()
        self._host.metrics.first_token(self._engine, self._model, self._first - self.received)

    def _measure(self) -> None:
        seconds = time.monotonic() - self._first
        if self._events > 1 and seconds > 0:
            self._host.metrics.streamed(self._engine, self._model, (self._events - 1) / seconds)

    # Ends before the answer is complete

    def lost(self, upstream: Upstream, *, answered: bool) -> None:
        """Handle the end of the connection to the server before the answer was complete.

        The request is not sent again: the server may have read it and ended because of it.
        """
        assert self._pool is not None
        self._upstream = None
        suspect = Suspect(self._pool.target, id_of(self._head), self._head.path, self._length)
        self._route.suspect(suspect)
        if self._answer is not None and self._mode is not _COLLECTED:
            self._break_off(responses.broke_off(self._engine), upstream)
        elif answered:
            self.refuse(responses.broke_off(self._engine))
        else:
            self.refuse(responses.died(self._engine, suspect.id))

    def unreachable(self) -> None:
        """Hand the request back to its route: no byte of it was sent, so another server may get it."""
        assert self._pool is not None
        pool = self._pool
        pool.remove(self)
        self._route.lost(self, pool)

    def give_up(self) -> None:
        """Refuse the request: no other server came."""
        self.refuse(responses.unreachable(self._engine))

    def cut(self) -> None:
        """End the request early: its server is stopped."""
        refused = responses.switched_off(self._engine)
        upstream = self._upstream
        if self._answer is None or self._mode is _COLLECTED or upstream is None:
            self._let_go()
            self.refuse(refused)
        else:
            self._break_off(refused, upstream)

    def _break_off(self, refused: Refused, upstream: Upstream) -> None:
        """Abort an answer in progress so that no client takes it as complete.

        A stream gets an error event, and the framing is left unfinished.
        """
        if self._unsent:
            self._write(self._unsent)
        can_tell = upstream.at_boundary() if self._mode is _SPLICED else True
        self._end_open(body_of(refused, self._engine), refused.code or "", can_tell=can_tell)

    def _end_open(self, error: bytes, code: str, *, can_tell: bool) -> None:
        if self._is_stream and can_tell:
            event = responses.event_of(error)
            payload = self._tail if self._mode is _BARE else self._tail.removesuffix(b"\r\n")
            if payload and not payload.endswith(b"\n\n"):
                event = b"\n\n" + event
            self._write(event if self._mode is _BARE else chunk(event))
        self._let_go()
        self._host.metrics.failed(self._engine, code)
        self._end(self._status)
        self._client.break_off(reset=self._mode is _BARE and not self._is_stream)

    def refuse(self, refused: Refused) -> None:
        """Answer with an error of the gateway."""
        self._host.metrics.failed(self._engine, refused.code or "")
        headers = responses.RETRY_AFTER if refused.status == 503 else b""
        self._reply(refused.status, body_of(refused, self._engine or None), headers)

    def _reply(self, status: int, body: bytes, headers: bytes) -> None:
        if self._engine:
            headers += b"x-llmdeploy-engine: %b\r\n" % self._engine.encode()
        self._end(status)
        self._client.answer(status, body, headers=headers)

    def abandon(self) -> None:
        """End the request: its client has left."""
        if self._ended:
            return
        self._route.forget(self)
        self._let_go()
        self._host.metrics.failed(self._engine, "client_left")
        self._end(self._status or 499)

    def _let_go(self) -> None:
        """End the connection to the server, so that the engine stops its work for this request."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()

    def _end(self, status: int) -> None:
        self._ended = True
        self._body = self._sent = b""
        self._upstream = None
        self._host.metrics.answered(self._engine, self._model, self._head.path, status)
        if self._pool is not None:
            self._pool.remove(self)

    # Back-pressure

    def pause(self) -> None:
        """Stop reading from the server: the client does not keep up."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """Read from the server again."""
        if self._upstream is not None:
            self._upstream.resume()

    @property
    def _engine(self) -> str:
        return "" if self._pool is None else self._pool.target.engine

    @property
    def _model(self) -> str:
        return "" if self._pool is None else self._pool.target.model


def _retry_after(status: int, response: Response | None) -> bytes:
    value = None if response is None else response.get(b"retry-after")
    if value is None:
        return responses.RETRY_AFTER if status == 503 else b""
    return b"retry-after: %b\r\n" % value
