"""A gateway between an engine and applications, both of which a test controls to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from unittest.mock import patch

import pytest

from llmdeploy.errors import LlmdeployError
from llmdeploy.gateway.gateway import Control, Gateway, Limits, Target
from llmdeploy.gateway.upstream import Upstream

LOOPS = ["stdlib"] if sys.platform == "win32" else ["uvloop", "stdlib"]
CHAT = "/v1/chat/completions"

Handler = Callable[["Peer", "EngineRequest"], Awaitable[None]]


def run(loop: str, test: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    """Run a test on that event loop; an unhandled error fails it."""
    factory: Any = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with asyncio.timeout(seconds):
            await test()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert not errors, errors


def on_loops(test: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Turn a coroutine that needs no fixtures into a test that runs on every event loop."""

    def on_loop(loop: str) -> None:
        run(loop, test)

    on_loop.__doc__ = test.__doc__
    return pytest.mark.parametrize("loop", LOOPS)(on_loop)


# The engine


@dataclass(frozen=True)
class EngineRequest:
    """A request as the engine received it."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Peer(asyncio.Protocol):
    """One connection at the engine."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gone = asyncio.Event()
        self.written = 0
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.engine.peers.append(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            head = self._buffer[:end].decode("latin-1")
            length = re.search(r"\r\ncontent-length: (\d+)\r\n", head)
            whole = end + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            first, *rest = head.rstrip("\r\n").split("\r\n")
            headers = dict(line.split(": ", 1) for line in rest)
            names = [line.split(": ", 1)[0] for line in rest]
            assert names.count("host") == names.count("content-length") == 1, head
            assert "transfer-encoding" not in names, head
            asked = EngineRequest(first, headers, bytes(self._buffer[end:whole]))
            del self._buffer[:whole]
            self.engine.asked.append(asked)
            task = asyncio.ensure_future(self.engine.handler(self, asked))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # an error in the test's handler is reported by the loop

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exception: Exception | None) -> None:
        self.gone.set()
        self._writable.set()
        for task in self._tasks:
            task.cancel()

    async def write(self, data: bytes) -> None:
        self.transport.write(data)
        self.written += len(data)
        await self._writable.wait()

    async def answer(self, body: bytes, status: str = "200 OK", more: bytes = b"") -> None:
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        await self.write(head % (status.encode(), more, len(body)) + body)

    async def begin_stream(self) -> None:
        await self.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    async def event(self, document: Any) -> None:
        await self.write(chunked(b"data: %b\n\n" % json.dumps(document).encode()))

    async def end_stream(self) -> None:
        await self.write(chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")


class Engine:
    """An HTTP/1.1 server that answers with `handler`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.asked: list[EngineRequest] = []
        self.peers: list[Peer] = []

    async def start(self) -> Target:
        self._server = await asyncio.get_running_loop().create_server(lambda: Peer(self), "127.0.0.1", 0, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        return Target("llamacpp", "m", "127.0.0.1", port, ("text", "image"), 4096)

    async def stop(self) -> None:
        self._server.close()
        for peer in self.peers:
            peer.transport.abort()
        await self._server.wait_closed()

    @property
    def tags(self) -> list[Any]:
        """The tags of the requests, in the order received."""
        return [it.document.get("user") for it in self.asked]


async def echo(peer: Peer, asked: EngineRequest) -> None:
    """Answer with the tag of the request, as a stream if one is requested."""
    try:
        document = asked.document
    except ValueError:
        await peer.answer(b'{"error": {"message": "not JSON"}}', "400 Bad Request")
        return
    if not document.get("stream"):
        await peer.answer(json.dumps({"tag": document.get("user")}).encode())
        return
    await peer.begin_stream()
    for number in range(3):
        await peer.event({"tag": document.get("user"), "number": number})
    await peer.end_stream()


async def silent(peer: Peer, asked: EngineRequest) -> None:
    """Never answer."""
    await peer.gone.wait()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Applications


def post(
    tag: Any = None,
    *,
    path: str = CHAT,
    headers: str = "",
    stream: bool = False,
    body: bytes | None = None,
    version: str = "1.1",
) -> bytes:
    """Return a request with a tag that the engine repeats."""
    if body is None:
        messages = [{"role": "user", "content": "hi"}]
        body = json.dumps({"model": "m", "messages": messages, "user": tag, "stream": stream}).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path: str, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    """Whether the body ended as its framing says."""

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.document["error"]
        return error

    @property
    def events(self) -> list[str]:
        return [event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event]


class App:
    """One connection of an application."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def at(cls, gateway: Gateway) -> App:
        return cls(*await asyncio.open_connection("127.0.0.1", gateway.port, limit=2**20))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def head(self) -> tuple[int, dict[str, str]]:
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = text.rstrip("\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest)
        assert len(headers) == len(rest), f"a header twice: {text}"
        return int(first.split(" ")[1]), headers

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self, method: str = "GET") -> Answer:
        status, headers = await self.head()
        body, whole = bytearray(), True
        try:
            if method == "HEAD":
                pass
            elif headers.get("transfer-encoding") == "chunked":
                while piece := await self.chunk():
                    body += piece
            elif "content-length" in headers:
                body += await self.reader.readexactly(int(headers["content-length"]))
            else:
                body += await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            whole = False
            body += getattr(error, "partial", b"")
        return Answer(status, headers, bytes(body), whole)

    async def is_closed(self) -> bool:
        """Wait for the end of the connection. Return False if bytes come instead."""
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True

    def leave(self) -> None:
        self.writer.transport.abort()


@dataclass(frozen=True)
class World:
    gateway: Gateway
    engine: Engine
    target: Target
    apps: list[App] = field(default_factory=list)

    async def app(self) -> App:
        app = await App.at(self.gateway)
        self.apps.append(app)
        return app

    async def ask(self, data: bytes) -> Answer:
        """Send one request on a new connection, and return its answer."""
        app = await self.app()
        try:
            return await app.ask(data)
        finally:
            app.leave()


@contextlib.asynccontextmanager
async def world(
    handler: Handler = echo,
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
    control: Control | None = None,
    pointed: bool = True,
) -> AsyncIterator[World]:
    engine = Engine(handler)
    target = await engine.start()
    gateway = Gateway(limits or Limits(), api_key, control, origins=origins)
    await gateway.listen("127.0.0.1", 0)
    if pointed:
        gateway.route.point(target)
    it = World(gateway, engine, target)
    try:
        yield it
    finally:
        for app in it.apps:
            app.leave()
        try:
            await gateway.close()
        finally:  # uvloop does not close its servers while a connection is open
            for client in gateway.clients:
                client.transport.abort()
            for server in gateway._servers:
                server.close()
            await engine.stop()
        assert gateway.traffic.in_flight().total() == gateway.traffic.held == gateway.buffered == 0
        assert not gateway.clients


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


# Checks

ERROR = LlmdeployError("`llamacpp` ended five times in a row", "`llmdeploy logs` tells why", code="server_died")


def assert_refused(answer: Answer, status: int, words: str = "") -> None:
    """Assert that the answer is an error in OpenAI's form, with a message and a hint."""
    assert answer.status == status, answer
    assert answer.whole
    assert set(answer.error) >= {"message", "type", "param", "code", "llmdeploy"}
    assert words in answer.error["message"]
    assert answer.error["llmdeploy"]["hint"]


@contextlib.contextmanager
def noted_order() -> Iterator[list[Any]]:
    """Yield a list that gets the tags of the requests in the order in which they are sent to the engine."""
    sent: list[Any] = []
    send = Upstream.send

    def noted(upstream: Upstream, call: Any, head: bytes, body: bytes) -> None:
        sent.append(json.loads(body)["user"])
        send(upstream, call, head, body)

    with patch.object(Upstream, "send", noted):
        yield sent
