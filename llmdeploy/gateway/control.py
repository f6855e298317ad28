"""Requests that the service answers itself: commands of llmdeploy talk to it through the gateway's port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from llmdeploy.gateway import responses
from llmdeploy.gateway.errors import Refused, body_of
from llmdeploy.gateway.interfaces import Client, Host
from llmdeploy.http1 import LAST_CHUNK, Request, chunk

NDJSON = b"application/x-ndjson"


class ControlRequest:
    """One request and its answer: a JSON document, or a stream of JSON lines."""

    def __init__(self, host: Host, client: Client, head: Request, body: bytes) -> None:
        self.method = head.method
        self.path = head.path
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.fields}
        self.headers.pop("content-length", None)  # `body` has the length
        self.body = bytes(body)
        self.is_local = client.is_local
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """A future that is done once the client has left."""
        self._host = host
        self._client = client
        self._head = head
        self._has_begun = False
        self._has_ended = False

    async def answer(self, status: int, document: Any) -> None:
        """Answer with one JSON document."""
        await self.answer_bytes(status, msgspec.json.encode(document), responses.JSON)

    async def answer_bytes(self, status: int, body: bytes, content_type: bytes) -> None:
        """Answer with a body of any type."""
        self._end(status)
        if not self.left.done():
            self._client.answer(status, body, content_type)

    async def begin(self) -> None:
        """Start a stream of JSON documents, one on each line."""
        self._has_begun = True
        framing = b"transfer-encoding: chunked\r\n" if self._head.is_1_1 else b""
        head = responses.head(200, NDJSON, framing, close=not self._head.keep_alive)
        if not self.left.done():
            self._client.transport.write(head)

    async def event(self, document: Any) -> None:
        """Send one document of the stream, and wait until the client keeps up."""
        if self.left.done():
            return
        line = msgspec.json.encode(document) + b"\n"
        self._client.transport.write(chunk(line) if self._head.is_1_1 else line)
        await self._client.writable()

    async def end(self) -> None:
        """End the stream."""
        self._end(200)
        if not self.left.done():
            if self._head.is_1_1:
                self._client.transport.write(LAST_CHUNK)
            self._client.done()

    async def run(self, handler: Callable[[ControlRequest], Awaitable[None]]) -> None:
        """Run the handler that answers, and break off an answer that it leaves open, lest it look complete."""
        try:
            await handler(self)
            if not self._has_ended:
                raise RuntimeError(f"`{self.path}` was not answered")
        except Exception as error:
            self._host.report(error)
            self._fail(responses.bug(error))
        except asyncio.CancelledError:
            self._fail(responses.closing())
            raise

    def _fail(self, refused: Refused) -> None:
        if self._has_ended:
            return
        self._end(refused.status)
        if self.left.done():
            return
        if self._has_begun:
            self._client.break_off(reset=not self._head.is_1_1)
        else:
            self._client.answer(refused.status, body_of(refused))

    def _end(self, status: int) -> None:
        if self._has_ended:
            raise RuntimeError("the request was answered already")
        self._has_ended = True
        self._host.metrics.answered("", "", self.path, status)

    # Called by the connection

    def abandon(self) -> None:
        """Tell the handler, through `left`, that the client has left."""
        if not self.left.done():
            self.left.set_result(None)

    def pause(self) -> None:
        """Do nothing: `event` waits for the client by itself."""

    def resume(self) -> None:
        """Do nothing: `event` continues by itself."""
