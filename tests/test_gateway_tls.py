"""The relay to a server that is reached over TLS, or under a path prefix."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from llmdeploy.gateway.gateway import Gateway, Limits, Target
from llmdeploy.tls import trusting
from tests.gateway_world import CHAT, LOOPS, Engine, EngineRequest, Handler, Peer, World, echo, post, run, silent, until
from tests.tls_world import CERTIFICATE, security

on_loops = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    trusting.cache_clear()
    yield
    trusting.cache_clear()


@contextlib.asynccontextmanager
async def behind_tls(handler: Handler, prefix: str = "", **limits: float) -> AsyncIterator[World]:
    """Yield a gateway whose target is `localhost` over TLS."""
    engine = Engine(handler)
    server = await asyncio.get_running_loop().create_server(lambda: Peer(engine), "127.0.0.1", 0, ssl=security())
    port = server.sockets[0].getsockname()[1]
    target = Target("ollama", "m", "localhost", port, ("text",), 4096, tls=True, prefix=prefix)
    gateway = Gateway(Limits(**limits))  # type: ignore[arg-type]
    await gateway.listen("127.0.0.1", 0)
    gateway.route.point(target)
    it = World(gateway, engine, target)
    try:
        yield it
    finally:
        for app in it.apps:
            app.leave()
        await gateway.close()
        server.close()
        for peer in engine.peers:
            peer.transport.abort()
        await server.wait_closed()


@on_loops
def test_requests_and_streams_are_relayed_on_one_connection(loop: str) -> None:
    async def test() -> None:
        async with behind_tls(echo, "/ollama") as it:
            whole = await it.ask(post("a"))
            streamed = await it.ask(post("b", stream=True))
            assert (whole.status, whole.document) == (200, {"tag": "a"})
            assert [json.loads(event)["number"] for event in streamed.events[:-1]] == [0, 1, 2]
            assert streamed.whole
            assert [asked.line for asked in it.engine.asked] == [f"POST /ollama{CHAT} HTTP/1.1"] * 2
            assert it.engine.asked[0].headers["host"] == f"localhost:{it.target.port}"
            assert len(it.engine.peers) == 1

    run(loop, test)


@on_loops
def test_a_body_of_megabytes_goes_through_whole(loop: str) -> None:
    async def test() -> None:
        async with behind_tls(echo) as it:
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 5_000_000}], "user": 7})
            answer = await it.ask(post(body=body.encode()))
            assert answer.document == {"tag": 7}
            (asked,) = it.engine.asked
            assert asked.body == body.encode()

    run(loop, test)


@on_loops
def test_a_client_that_leaves_ends_its_request_at_the_server(loop: str) -> None:
    async def test() -> None:
        async with behind_tls(silent) as it:
            app = await it.app()
            await app.send(post("a"))
            await until(lambda: it.engine.asked)
            app.leave()
            await asyncio.wait_for(it.engine.peers[0].gone.wait(), 2)

    run(loop, test)


@on_loops
def test_a_server_that_ends_within_a_stream_is_reported(loop: str) -> None:
    async def begin_and_die(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await peer.event({"number": 0})
        peer.transport.abort()

    async def test() -> None:
        async with behind_tls(begin_and_die) as it:
            answer = await it.ask(post("a", stream=True))
            assert not answer.whole
            assert json.loads(answer.events[-1])["error"]["code"] == "engine_died"

    run(loop, test)


@on_loops
def test_a_server_with_an_untrusted_certificate_gets_no_request(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    trusting.cache_clear()

    async def test() -> None:
        async with behind_tls(echo, lost_seconds=0.2) as it:
            answer = await it.ask(post("a"))
            assert (answer.status, answer.error["code"]) == (502, "engine_unreachable")
            assert it.engine.asked == []

    run(loop, test)


@pytest.mark.parametrize(
    ("host", "port", "tls", "authority"),
    [
        ("127.0.0.1", 11434, False, "127.0.0.1:11434"),
        ("::1", 11434, False, "[::1]:11434"),
        ("gpu.example", 443, True, "gpu.example"),
        ("gpu.example", 80, False, "gpu.example"),
        ("gpu.example", 80, True, "gpu.example:80"),
        ("::1", 443, True, "[::1]"),
    ],
)
def test_the_host_header_has_the_port_unless_it_is_the_default(host: str, port: int, tls: bool, authority: str) -> None:
    target = Target("ollama", "m", "", 0)
    assert replace(target, host=host, port=port, tls=tls).authority == authority
