"""The relay: what goes through, what waits, what is refused, and how things end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from llmdeploy.errors import LlmdeployError
from llmdeploy.gateway.downstream import State
from llmdeploy.gateway.gateway import ControlRequest, Gateway, Limits, Target
from llmdeploy.gateway.upstream import Upstream
from tests.gateway_world import (
    CHAT,
    LOOPS,
    Answer,
    App,
    Asked,
    Engine,
    Peer,
    chunked,
    echo,
    get,
    on_loops,
    post,
    run,
    silent,
    until,
    world,
)

ERROR = LlmdeployError("`llamacpp` ended five times in a row", "`llmdeploy logs` tells why", code="server_died")


def assert_refused(answer: Answer, status: int, words: str = "") -> None:
    """It is an error in OpenAI's shape, with a sentence and a hint."""
    assert answer.status == status, answer
    assert answer.whole
    assert set(answer.error) >= {"message", "type", "param", "code", "llmdeploy"}
    assert words in answer.error["message"]
    assert answer.error["llmdeploy"]["hint"]


@contextlib.contextmanager
def noted_order() -> Iterator[list[Any]]:
    """The tags of the requests in the order in which they go out."""
    sent: list[Any] = []
    send = Upstream.send

    def noted(upstream: Upstream, call: Any, head: bytes, body: bytes) -> None:
        sent.append(json.loads(body)["user"])
        send(upstream, call, head, body)

    with patch.object(Upstream, "send", noted):
        yield sent


# What goes through


@on_loops
async def test_a_request_and_its_answer_are_relayed() -> None:
    async with world() as it:
        answer = await it.ask(post("a", headers="X-Request-Id: 7\r\nContent-Type: text/plain\r\n"))
        assert (answer.status, answer.document) == (200, {"tag": "a"})
        assert answer.headers["x-llmdeploy-engine"] == "llamacpp"
        (asked,) = it.engine.asked
        assert asked.line == f"POST {CHAT} HTTP/1.1"
        assert asked.headers["host"] == f"127.0.0.1:{it.target.port}"
        assert asked.headers["x-request-id"] == "7"
        assert asked.headers["content-type"] == "application/json", "whatever the client calls it"


@on_loops
async def test_the_bytes_of_a_body_are_not_changed() -> None:
    odd = b'{"a":1 , "b":"\xc3\xa9"}\n'

    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.answer(odd)

    async with world(handler) as it:
        body = b'{ "model":"m",\n"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]  }'
        assert (await it.ask(post(body=body))).body == odd
        assert it.engine.asked[0].body == body


@on_loops
async def test_a_stream_is_relayed_piece_by_piece() -> None:
    go_on = asyncio.Event()

    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.event(1)
        await go_on.wait()
        await peer.event(2)
        await peer.end_stream()

    async with world(handler) as it:
        app = await it.app()
        await app.send(post(stream=True))
        status, headers = await app.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await app.chunk() == b"data: 1\n\n"
        assert it.gateway.traffic.in_flight() == {("llamacpp", "m"): 1}
        go_on.set()
        assert [await app.chunk(), await app.chunk(), await app.chunk()] == [
            b"data: 2\n\n",
            b"data: [DONE]\n\n",
            b"",
        ]
        await until(lambda: it.gateway.traffic.in_flight().total() == 0)


@on_loops
async def test_a_chunked_answer_split_at_every_byte_is_relayed_whole() -> None:
    pieces = [b"data: {\r\n\r\n0\r\n\r\n}\n\n", b"x" * 300, b"data: [DONE]\n\n"]
    body = b"".join(map(chunked, pieces)) + b"0\r\n\r\n"

    async def handler(peer: Peer, asked: Asked) -> None:
        at = asked.document["user"]
        await peer.begin_stream()
        await peer.write(body[:at])
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        await peer.write(body[at:])

    async with world(handler) as it:
        app = await it.app()
        for at in range(0, len(body), 7):
            answer = await app.ask(post(at))
            assert answer.whole
            assert answer.body == b"".join(pieces)
        assert len(it.engine.peers) == 1, "one connection served them all"


@on_loops
async def test_an_answer_without_a_length_is_framed_anew() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await peer.write(b"data: 2\n\n")
        peer.transport.close()

    async with world(handler) as it:
        app = await it.app()
        for _ in range(2):
            answer = await app.ask(post())
            assert answer.whole
            assert answer.headers["transfer-encoding"] == "chunked"
            assert answer.events == ["1", "2"]


@on_loops
async def test_http_1_0_gets_no_chunks_and_a_closed_connection() -> None:
    async with world() as it:
        app = await it.app()
        await app.send(post("a", stream=True, version="1.0", headers="Connection: keep-alive\r\n"))
        status, headers = await app.head()
        assert status == 200
        assert headers["connection"] == "close"
        assert "transfer-encoding" not in headers
        body = await app.reader.read()
        assert body.startswith(b'data: {"tag": "a", "number": 0}\n\n')
        assert body.endswith(b"data: [DONE]\n\n")


@on_loops
async def test_interim_answers_are_not_passed_on() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3)
        await echo(peer, asked)

    async with world(handler) as it:
        assert (await it.ask(post("a"))).document == {"tag": "a"}


@on_loops
async def test_what_concerns_one_connection_is_not_passed_on() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        more = b"connection: keep-alive, x-mine\r\nkeep-alive: timeout=5\r\nx-mine: 1\r\nx-yours: 2\r\n"
        more += b"access-control-allow-origin: *\r\nproxy-authenticate: Basic\r\nx-llmdeploy-engine2: 3\r\n"
        await peer.answer(b"{}", more=more)

    async with world(handler, api_key="secret") as it:
        headers = "Connection: x-secret\r\nX-Secret: 1\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\nX-Ok: 2\r\n"
        headers += "Upgrade: h2c\r\nAuthorization: Bearer secret\r\nX-Api-Key: secret\r\nOrigin: https://a.example\r\n"
        answer = await it.ask(post(headers=headers))
        assert set(it.engine.asked[0].headers) == {"host", "x-ok", "content-type", "content-length"}
        assert set(answer.headers) == {
            "content-type",
            "x-yours",
            "x-llmdeploy-engine",
            "x-llmdeploy-engine2",
            "content-length",
        }


@on_loops
async def test_errors_of_the_engine_are_explained() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.answer(b"no more memory", "500 Oops", b"retry-after: 9\r\n")

    async with world(handler) as it:
        app = await it.app()
        for _ in range(2):
            answer = await app.ask(post())
            assert answer.status >= 400
            assert "no more memory" in answer.error["message"]
            assert answer.error["llmdeploy"]["source"] == "engine"
            assert answer.headers["retry-after"] == "9"
        assert len(it.engine.peers) == 1


@on_loops
async def test_an_endless_error_is_cut_short() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.write(b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n")
        while not peer.gone.is_set():
            await peer.write(chunked(b"x" * 100_000))

    async with world(handler) as it:
        answer = await it.ask(post())
        assert answer.status >= 400
        assert answer.whole
        await it.engine.peers[0].gone.wait()


@on_loops
async def test_a_route_that_the_engine_lacks_is_a_clear_error() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        if "messages" in asked.line:
            await peer.answer(b"404 page not found", "404 Not Found")
        else:
            await echo(peer, asked)

    async with world(handler) as it:
        answer = await it.ask(post(path="/v1/messages?beta=true"))
        assert_refused(answer, 404, "`llamacpp` has no route `/v1/messages`")
        assert it.engine.asked[0].line == "POST /v1/messages?beta=true HTTP/1.1"
        assert (await it.ask(post("a", path="/v1/responses"))).document == {"tag": "a"}


# Connections


@on_loops
async def test_connections_are_kept_and_shared() -> None:
    async with world() as it:
        one, other = await it.app(), await it.app()
        for number in range(5):
            assert (await one.ask(post(number))).document == {"tag": number}
            assert (await other.ask(post(-number))).document == {"tag": -number}
        assert len(it.engine.peers) == 1


@on_loops
async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with world() as it:
        app = await it.app()
        await app.send(post(1) + get("/health") + post(2, stream=True) + get("/v1/models") + post(3))
        answers = [await app.answer() for _ in range(5)]
        assert [it.status for it in answers] == [200] * 5
        assert answers[0].document == {"tag": 1}
        assert answers[1].document["status"] == "ok"
        assert '"tag": 2' in answers[2].events[0]
        assert answers[3].document["object"] == "list"
        assert answers[4].document == {"tag": 3}


@on_loops
async def test_the_next_request_is_not_sent_before_the_answer_is_out() -> None:
    async with world(silent) as it:
        app = await it.app()
        await app.send(post(1) + post(2))
        await until(lambda: it.engine.asked)
        await asyncio.sleep(0.05)
        assert it.engine.tags == [1]
        app.leave()


@on_loops
async def test_many_pipelined_requests_are_all_answered() -> None:
    async with world() as it:
        app = await it.app()
        number = 20_000
        sending = asyncio.ensure_future(app.send(get("/health") * number))
        for _ in range(number):
            assert (await app.head())[0] == 200
            await app.reader.readexactly(len(b'{"status":"ok","engine":"llamacpp","model":"m"}'))
        await sending


@on_loops
async def test_a_client_that_pipelines_and_does_not_read_is_not_read() -> None:
    async with world() as it:
        app = await it.app()
        app.writer.transport.set_write_buffer_limits(2**30)
        app.reader._transport.pause_reading()  # type: ignore[attr-defined]
        app.writer.write(get("/health") * 300_000)
        (client,) = it.gateway.clients
        await until(lambda: client._reading_paused)
        await asyncio.sleep(0.2)
        assert client.transport.get_write_buffer_size() < 2**20
        assert len(client._reader.pending) < 2**20
        app.leave()


@on_loops
async def test_a_connection_that_the_engine_closed_meanwhile_is_not_noticed() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        if len(peer.engine.asked) == 2:
            peer.transport.abort()  # as if it had been closed while the request was on its way
        else:
            await echo(peer, asked)

    async with world(handler) as it:
        app = await it.app()
        assert (await app.ask(post(1))).document == {"tag": 1}
        assert (await app.ask(post(2))).document == {"tag": 2}
        assert it.engine.tags == [1, 2, 2]
        assert len(it.engine.peers) == 2


@on_loops
async def test_an_idle_connection_is_dropped_before_the_engine_does() -> None:
    async with world() as it:
        await it.ask(post(1))
        pool = it.gateway.traffic.pools[it.target]
        (upstream,) = pool._idle
        upstream.idle_since -= 4.1
        assert (await it.ask(post(2))).document == {"tag": 2}
        await it.engine.peers[0].gone.wait()
        (upstream,) = pool._idle
        upstream.idle_since -= 4.1
        await it.engine.peers[1].gone.wait()  # by the sweep
        assert pool._idle == []


@on_loops
async def test_bytes_that_nobody_asked_for_end_a_connection() -> None:
    answered = asyncio.Event()

    async def handler(peer: Peer, asked: Asked) -> None:
        await echo(peer, asked)
        if asked.document["user"] == 1:
            await answered.wait()
            await peer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"tag": "no"}')

    async with world(handler) as it:
        app = await it.app()
        assert (await app.ask(post(1))).document == {"tag": 1}
        answered.set()
        async with asyncio.timeout(2):  # at once, and not for being idle
            await it.engine.peers[0].gone.wait()
        assert (await app.ask(post(2))).document == {"tag": 2}
        assert await app.ask(get("/health"))


@on_loops
async def test_both_sides_send_without_delay() -> None:
    async with world() as it:
        app = await it.app()
        await app.ask(post())
        (client,) = it.gateway.clients
        (upstream,) = it.gateway.traffic.pools[it.target]._idle
        for transport in (client.transport, upstream.transport):
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@on_loops
async def test_idle_clients_are_sent_away() -> None:
    async with world(limits=Limits(idle_seconds=0.1)) as it:
        fresh, used = await it.app(), await it.app()
        await used.ask(post())
        assert await fresh.is_closed()
        assert await used.is_closed()


# Leaving


@on_loops
async def test_a_client_that_leaves_ends_the_work_for_it() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        if asked.document["stream"]:
            await peer.begin_stream()
            await peer.event(1)
        await peer.gone.wait()

    async with world(handler) as it:
        for stream in (True, False):
            seconds = []
            for _ in range(3):
                app = await it.app()
                known = len(it.engine.asked)
                await app.send(post(stream=stream))
                await until(lambda: len(it.engine.asked) > known)  # noqa: B023
                if stream:
                    await app.head()
                    await app.chunk()
                began = time.monotonic()
                app.writer.close()
                await it.engine.peers[-1].gone.wait()
                seconds.append(time.monotonic() - began)
            assert min(seconds) < 0.1, "the best of some: the machine may be busy"
        await until(lambda: it.gateway.traffic.in_flight().total() == 0)
        assert it.gateway.metrics.errors["llamacpp", "client_left"] == 6


@on_loops
async def test_a_client_that_leaves_while_it_is_held_is_forgotten() -> None:
    async with world(pointed=False) as it:
        app = await it.app()
        await app.send(post(1))
        await until(lambda: it.gateway.traffic.held == 1)
        app.leave()
        await until(lambda: it.gateway.traffic.held == 0)
        it.gateway.route.point(it.target)
        assert (await it.ask(post(2))).document == {"tag": 2}
        assert it.engine.tags == [2]


@on_loops
async def test_a_slow_reader_does_not_fill_the_memory() -> None:
    total = 100 * 2**20

    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        piece = chunked(b"x" * 2**16)
        for _ in range(total // 2**16):
            await peer.write(piece)
        await peer.end_stream()

    async with world(handler) as it:
        app = await it.app()
        reading = app.reader._transport  # type: ignore[attr-defined]
        await app.send(post())
        await app.head()
        reading.pause_reading()
        await until(lambda: it.engine.peers[0]._writable.is_set() is False)
        await asyncio.sleep(0.3)
        (client,) = it.gateway.clients
        assert client.transport.get_write_buffer_size() < 2**20
        assert it.engine.peers[0].written < 30 * 2**20, "the rest is at the engine, not here"
        reading.resume_reading()
        got = 0
        while piece := await app.chunk():
            got += len(piece)
        assert got == total + len(b"data: [DONE]\n\n")
        answer = await app.ask(post())  # the connection to the engine reads again
        assert answer.status == 200


# Waiting


@on_loops
async def test_held_requests_are_served_in_their_order_and_no_more_are_held_than_may() -> None:
    async with world(pointed=False) as it:
        apps = [await it.app() for _ in range(200)]
        for number, app in enumerate(apps):
            await app.send(post(number))
            await until(lambda: it.gateway.traffic.held == number + 1)  # noqa: B023
        refused = await it.ask(post("201st"))
        assert_refused(refused, 503, "200 requests wait already")
        assert int(refused.headers["retry-after"]) > 0
        with noted_order() as sent:
            it.gateway.route.point(it.target)
            assert [(await app.answer()).document for app in apps] == [{"tag": number} for number in range(200)]
        assert sent == list(range(200))
        assert it.gateway.traffic.held == 0


@on_loops
async def test_a_request_is_not_held_for_ever() -> None:
    async with world(limits=Limits(hold_seconds=0.2), pointed=False) as it:
        it.gateway.route.hold("`vllm` starts")
        answer = await it.ask(post())
        assert_refused(answer, 503, "no server was ready within 0.2 s (`vllm` starts)")
        assert "retry-after" in answer.headers


@on_loops
async def test_a_gateway_that_refuses_says_why_until_it_is_pointed_again() -> None:
    async with world(pointed=False) as it:
        app = await it.app()
        await app.send(post(1))
        await until(lambda: it.gateway.traffic.held == 1)
        it.gateway.route.refuse(ERROR)
        for answer in (await app.answer(), await it.ask(post(2))):
            assert_refused(answer, 503, ERROR.message)
            assert answer.error["llmdeploy"]["hint"] == ERROR.hint
            assert "retry-after" in answer.headers
        it.gateway.route.hold("restart")
        await app.send(post(3))
        await until(lambda: it.gateway.traffic.held == 1)
        it.gateway.route.point(it.target)
        assert (await app.answer()).document == {"tag": 3}


@on_loops
async def test_new_requests_go_to_the_new_target_and_running_ones_stay() -> None:
    go_on = asyncio.Event()

    async def old(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.event("old")
        await go_on.wait()
        await peer.event("old")
        await peer.end_stream()

    async def new(peer: Peer, asked: Asked) -> None:
        await peer.answer(b'"new"')

    async with world(old) as it:
        other = Engine(new)
        target = replace(await other.start(), engine="vllm")
        app = await it.app()
        await app.send(post(stream=True))
        await app.head()
        assert await app.chunk() == b'data: "old"\n\n'
        it.gateway.route.point(target)
        answer = await it.ask(post())
        assert (answer.document, answer.headers["x-llmdeploy-engine"]) == ("new", "vllm")
        assert [len(it.gateway.traffic.pools[where].calls) for where in (it.target, target)] == [1, 0]
        draining = asyncio.ensure_future(it.gateway.route.drain(it.target, 10))
        await asyncio.sleep(0.02)
        assert not draining.done()
        go_on.set()
        assert await draining == 0
        assert await app.chunk() == b'data: "old"\n\n'
        await it.engine.peers[0].gone.wait()
        assert (await app.chunk(), await app.chunk()) == (b"data: [DONE]\n\n", b"")
        assert (await app.ask(post())).document == "new"
        await other.stop()


@on_loops
async def test_what_does_not_end_is_cut() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        if asked.document["stream"]:
            await peer.begin_stream()
            await peer.event(1)
        elif asked.document["user"] == "half":
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await peer.gone.wait()

    async with world(handler) as it:
        stream, plain, half = [await it.app() for _ in range(3)]
        await stream.send(post(stream=True))
        await plain.send(post())
        await half.send(post("half"))
        await until(lambda: len(it.engine.asked) == 3)
        await stream.head()
        it.gateway.route.hold("switch")
        assert await it.gateway.route.drain(it.target, 0.1) == 3
        assert await stream.chunk() == b"data: 1\n\n"
        event = json.loads((await stream.chunk()).removeprefix(b"data: "))
        assert event["error"]["code"] == "cut"
        assert await stream.reader.read() == b"", "no last chunk"
        assert_refused(await plain.answer(), 503, "was stopped before the answer was whole")
        cut = await half.answer()
        assert (cut.body, cut.whole) == (b"half", False)
        assert it.gateway.traffic.in_flight().total() == 0


@on_loops
async def test_an_idle_server_is_drained_at_once() -> None:
    async with world() as it:
        await it.ask(post())
        it.gateway.route.hold("switch")
        assert await it.gateway.route.drain(it.target, 10) == 0
        await it.engine.peers[0].gone.wait()
        assert it.gateway.traffic.pools == {}


# Engines that fail


@on_loops
async def test_a_server_that_is_gone_is_told_from_one_that_is_replaced() -> None:
    async with world(limits=Limits(lost_seconds=0.2)) as it:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = replace(it.target, port=closed.getsockname()[1])
            it.gateway.route.point(dead)
            answer = await it.ask(post())
            assert_refused(answer, 502, "cannot be reached")
            app = await it.app()
            await app.send(post("a"))
            await until(lambda: it.gateway.traffic.held == 1)
            it.gateway.route.hold("restart")
            await asyncio.sleep(0.3)
            assert it.gateway.traffic.held == 1, "somebody said that it comes back"
            it.gateway.route.point(it.target)
            assert (await app.answer()).document == {"tag": "a"}


@on_loops
async def test_a_request_that_ends_two_servers_is_not_sent_to_a_third() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        peer.transport.abort()

    async with world(handler, Limits(lost_seconds=60)) as it:
        app = await it.app()
        await app.send(post("poison"))
        await until(lambda: it.gateway.traffic.held == 1)
        it.gateway.route.point(replace(it.target))
        assert_refused(await app.answer(), 502, "ended before it answered")
        assert it.engine.tags == ["poison", "poison"]


@on_loops
async def test_lost_requests_come_before_those_that_wait() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        if len(peer.engine.asked) > 2:
            await echo(peer, asked)

    async with world(handler) as it:
        apps = [await it.app() for _ in range(3)]
        for number in (0, 1):
            await apps[number].send(post(number))
            await until(lambda: len(it.engine.asked) == number + 1)  # noqa: B023
        it.gateway.route.hold("restart")
        await apps[2].send(post(2))
        await until(lambda: it.gateway.traffic.held == 1)
        for number in (1, 0):
            it.engine.peers[number].transport.abort()
            await until(lambda: it.gateway.traffic.held == 3 - number)  # noqa: B023
        with noted_order() as sent:
            it.gateway.route.point(replace(it.target))
            assert [(await app.answer()).document["tag"] for app in apps] == [0, 1, 2]
        assert sent == [0, 1, 2]


@on_loops
async def test_an_engine_that_hangs_up_at_once_is_an_error() -> None:
    async with world(limits=Limits(lost_seconds=0.05)) as it:

        def hang_up(peer: Peer, transport: Any) -> None:
            transport.abort()

        with patch.object(Peer, "connection_made", hang_up), patch.object(Peer, "connection_lost"):
            for _ in range(20):
                assert_refused(await it.ask(post()), 502)


def test_a_connection_that_ends_while_it_is_made_is_not_used() -> None:
    async def test() -> None:
        async with world(limits=Limits(lost_seconds=0.05)) as it:
            loop = asyncio.get_running_loop()
            connect = loop.create_connection

            async def connect_too_late(*arguments: Any, **options: Any) -> Any:
                transport, upstream = await connect(*arguments, **options)
                transport.abort()
                await until(lambda: upstream.closing)
                return transport, upstream

            app = await it.app()
            with patch.object(loop, "create_connection", connect_too_late):
                assert_refused(await app.ask(post()), 502)
            assert (await app.ask(post("a"))).document == {"tag": "a"}

    run("stdlib", test)


def test_a_mistake_in_connecting_is_told_and_leaves_no_request_waiting() -> None:
    reported: list[dict[str, Any]] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        async with world(limits=Limits(lost_seconds=0.05)) as it:
            app = await it.app()
            with patch.object(loop, "create_connection", side_effect=TypeError("a mistake")):
                assert_refused(await app.ask(post()), 502)

    run("stdlib", test)
    assert str(reported[0]["exception"]) == "a mistake"


@on_loops
async def test_a_connection_that_was_held_back_reads_on_for_the_next_request() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.answer(json.dumps("x" * asked.document["user"]).encode())

    async with world(handler) as it:
        app = await it.app()
        await app.ask(post(1))
        (client,) = it.gateway.clients
        client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.transport.set_write_buffer_limits(high=1000)
        app.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await app.send(post(200_000))
        await until(lambda: client.is_blocked and it.gateway.traffic.in_flight().total() == 0)
        assert (await it.ask(post(2))).document == "xx"
        assert len(it.engine.peers) == 1
        app.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await app.answer()).document) == 200_000


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("at_boundary", [True, False])
def test_a_stream_whose_engine_dies_ends_with_an_error_and_not_cleanly(loop: str, at_boundary: bool) -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.event(1)
        if not at_boundary:
            await peer.write(b"20\r\ndata: half")
        await asyncio.sleep(0.05)
        peer.transport.abort()

    async def test() -> None:
        async with world(handler) as it:
            answer = await it.ask(post(stream=True))
            assert answer.status == 200
            assert not answer.whole, "nobody may take it for complete"
            first, *rest = answer.events
            assert first == "1"
            if at_boundary:
                (error,) = rest
                assert json.loads(error)["error"]["code"] == "engine_died"

    run(loop, test)


VLLM_FAILS = b'{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}'


@on_loops
async def test_an_engine_that_tells_of_its_failure_and_ends_cleanly_is_broken_off() -> None:
    """As vLLM does when a worker of its dies."""

    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.event(1)
        await asyncio.sleep(0.05)
        await peer.write(chunked(b"data: " + VLLM_FAILS + b"\n\n") + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with world(handler) as it:
        answer = await it.ask(post(stream=True))
        assert not answer.whole
        first, failure = answer.events
        assert first == "1"
        error = json.loads(failure)["error"]
        assert (error["code"], error["type"]) == ("engine_failed", "server_error")
        assert error["llmdeploy"]["source"] == "engine"


@on_loops
async def test_a_text_that_looks_like_a_failure_is_none() -> None:
    text = json.dumps({"choices": [{"delta": {"content": 'data: {"error": 1}'}}]}).encode()

    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.write(chunked(b"data: " + text + b"\n\n") + b"0\r\n\r\n")

    async with world(handler) as it:
        answer = await it.ask(post(stream=True))
        assert answer.whole
        assert answer.events == [text.decode()]


@on_loops
async def test_a_piece_of_an_event_is_not_joined_with_the_error() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.write(chunked(b"data: {"))
        await asyncio.sleep(0.05)
        peer.transport.abort()

    async with world(handler) as it:
        answer = await it.ask(post(stream=True))
        assert not answer.whole
        assert answer.events[0] == "{"
        assert json.loads(answer.events[1])["error"]["code"] == "engine_died"


@on_loops
async def test_an_answer_whose_engine_dies_is_never_whole() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        if asked.document["user"] == "length":
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n123")
        else:
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            await peer.write(chunked(b"123"))
        await asyncio.sleep(0.05)
        peer.transport.close()

    async with world(handler) as it:
        for tag in ("length", "chunked"):
            answer = await it.ask(post(tag))
            assert (answer.status, answer.whole, answer.body) == (200, False, b"123")


@on_loops
async def test_http_1_0_can_tell_that_an_answer_broke_off() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.write(chunked(b"123"))
        await asyncio.sleep(0.05)
        peer.transport.close()

    async with world(handler) as it:
        app = await it.app()
        await app.send(post(version="1.0"))
        with pytest.raises(ConnectionResetError):
            await app.reader.read()


BROKEN = [
    b"nonsense\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n{}",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000,
    b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n",
]


@on_loops
async def test_answers_that_are_no_http_are_errors() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.write(BROKEN[asked.document["user"]])

    async with world(handler) as it:
        app = await it.app()
        for number in range(len(BROKEN)):
            assert_refused(await app.ask(post(number)), 502)
        assert all(peer.gone.is_set() for peer in it.engine.peers[:-1])


@on_loops
async def test_a_chunk_that_is_none_breaks_the_answer_off() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.event(1)
        await asyncio.sleep(0.02)
        await peer.write(b"zz\r\n")

    async with world(handler) as it:
        answer = await it.ask(post(stream=True))
        assert not answer.whole
        await it.engine.peers[0].gone.wait()


# What is answered here


@on_loops
async def test_health_tells_at_once_how_things_stand() -> None:
    async with world(pointed=False) as it:
        answer = await it.ask(get("/health"))
        assert (answer.status, answer.document) == (503, {"status": "waiting", "reason": "starting"})
        it.gateway.route.refuse(ERROR)
        assert (await it.ask(get("/health"))).document["reason"] == ERROR.message
        it.gateway.route.point(it.target)
        answer = await it.ask(get("/health"))
        assert (answer.status, answer.document) == (200, {"status": "ok", "engine": "llamacpp", "model": "m"})


@on_loops
async def test_models_lists_the_one_that_is_served_and_remembers_it_while_requests_wait() -> None:
    async with world(pointed=False) as it:
        assert (await it.ask(get("/v1/models"))).document == {"object": "list", "data": []}
        it.gateway.route.point(replace(it.target, model="Qwen/Qwen 3"))
        for _ in range(2):
            (model,) = (await it.ask(get("/v1/models"))).document["data"]
            assert abs(model.pop("created") - time.time()) < 60
            assert model == {
                "id": "Qwen/Qwen 3",
                "object": "model",
                "owned_by": "llmdeploy",
                "max_model_len": 4096,
                "capabilities": ["text", "image"],
            }
            assert (await it.ask(get("/v1/models/Qwen/Qwen%203"))).document["id"] == "Qwen/Qwen 3"
            assert_refused(await it.ask(get("/v1/models/other")), 404, "`other`")
            it.gateway.route.hold("restart")


@on_loops
async def test_head_is_answered_as_get_is_but_without_the_body() -> None:
    async with world() as it:
        app = await it.app()
        for path in ("/health", "/v1/models", "/metrics"):
            await app.send(get(path, method="HEAD"))
            head = await app.answer("HEAD")
            assert head.status == 200
            assert int(head.headers["content-length"]) > 0
        await app.send(get("/v1/models/no", method="HEAD") + get("/health"))
        assert (await app.answer("HEAD")).status == 404
        assert (await app.answer()).document["status"] == "ok"


@on_loops
async def test_other_routes_and_methods_are_refused() -> None:
    async with world() as it:
        app = await it.app()
        answer = await app.ask(get("/v1/chat"))
        assert_refused(answer, 404, "`/v1/chat`")
        assert CHAT in answer.error["llmdeploy"]["hint"]
        assert_refused(await app.ask(get("/llmdeploy/stop")), 404)
        for request, allowed in (
            (get(CHAT), "POST"),
            (get(CHAT, method="OPTIONS", headers="Origin: http://localhost:3000\r\n"), "POST"),
            (post(path="/health"), "GET, HEAD"),
            (get("/v1/models/m", method="DELETE"), "GET, HEAD"),
        ):
            answer = await app.ask(request)
            assert_refused(answer, 405)
            assert answer.headers["allow"] == allowed
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert_refused(await app.ask(get("*", method="OPTIONS")), 404)
        assert it.engine.asked == []


@on_loops
async def test_the_target_of_a_request_may_be_an_address() -> None:
    async with world() as it:
        app = await it.app()
        answer = await app.ask(b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.status == 200
        answer = await app.ask(b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert_refused(answer, 403, "evil.example")


@on_loops
async def test_metrics_count_what_happened() -> None:
    async with world() as it:
        await it.ask(post())
        await it.ask(post(stream=True))
        await it.ask(get("/nothing/of/that/name"))
        it.gateway.route.point(replace(it.target, model='a "b"\n'))
        await it.ask(post())
        it.gateway.metrics.switched("ollama", "vllm", "done")
        answer = await it.ask(get("/metrics"))
        assert answer.headers["content-type"].startswith("text/plain; version=")
        lines = answer.body.decode().splitlines()
        chat = 'engine="llamacpp",model="m",route="/v1/chat/completions",status="200"'
        assert f"llmdeploy_requests_total{{{chat}}} 2.0" in lines
        assert any('model="a \\"b\\"\\n"' in line for line in lines)
        assert any('route="other",status="404"' in line for line in lines)
        assert 'llmdeploy_time_to_first_token_seconds_count{engine="llamacpp",model="m"} 1.0' in lines
        assert 'llmdeploy_stream_tokens_per_second_count{engine="llamacpp",model="m"} 1.0' in lines
        assert 'llmdeploy_switches_total{from="ollama",outcome="done",to="vllm"} 1.0' in lines
        assert "llmdeploy_requests_held 0.0" in lines


# Who may


@on_loops
async def test_a_key_is_asked_for_where_one_is_set() -> None:
    async with world(api_key="secret") as it:
        app = await it.app()
        for headers in ("", "Authorization: Bearer wrong\r\n", "Authorization: secret\r\n", "X-Api-Key: secre\r\n"):
            for request in (post("a", headers=headers), get("/v1/models", headers), get("/metrics", headers)):
                answer = await app.ask(request)
                assert_refused(answer, 401)
                assert answer.error["code"] == "invalid_api_key"
        for headers in (
            "Authorization: Bearer secret\r\n",
            "authorization: bearer  secret\r\n",
            "X-API-Key: secret\r\n",
        ):
            assert (await app.ask(post("a", headers=headers))).document == {"tag": "a"}
        assert (await app.ask(get("/health"))).status == 200
        foreign = post("a", headers="Authorization: Bearer secret\r\nOrigin: https://a.example\r\n")
        foreign = foreign.replace(b"Host: localhost", b"Host: llm.example")
        assert (await app.ask(foreign)).status == 200


@on_loops
async def test_web_pages_of_other_origins_may_not_use_it() -> None:
    def request(host: str, headers: str = "") -> bytes:
        return post(headers=headers).replace(b"Host: localhost", b"Host: " + host.encode())

    async with world() as it:
        app = await it.app()
        for host in ("evil.example", "127.evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80"):
            assert_refused(await app.ask(request(host)), 403, host)
        for origin in ("https://evil.example", "null", "http://127.evil.example", "http://localhost.evil.example"):
            assert_refused(await app.ask(request("localhost", f"Origin: {origin}\r\n")), 403, origin)
        for host in ("LOCALHOST:1", "127.0.0.2", "[::1]:11435", "192.168.1.7:80"):
            assert (await app.ask(request(host))).status == 200
        for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8"):
            assert (await app.ask(request("localhost", f"Origin: {origin}\r\n"))).status == 200


# Bodies


def chunks(*pieces: bytes, headers: str = "") -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(map(chunked, pieces)) + b"0\r\n\r\n"


@on_loops
async def test_a_chunked_body_is_sent_with_its_length() -> None:
    body = post("a").partition(b"\r\n\r\n")[2]
    async with world() as it:
        app = await it.app()
        request = chunks(body[:5], body[5:]) + post("b")
        for at in range(0, len(request), 3):
            await app.send(request[:at])
            await asyncio.sleep(0)
            await app.send(request[at:])
            assert (await app.answer()).document == {"tag": "a"}
            assert (await app.answer()).document == {"tag": "b"}
        assert it.engine.asked[0].headers["content-length"] == str(len(body))
        assert it.engine.asked[0].body == body


@on_loops
async def test_large_bodies_go_through() -> None:
    async with world() as it:
        app = await it.app()
        for size in (60_000, 66_000, 300_000, 5_000_000):
            filler = b"a" * size
            body = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"user":%d}' % (filler, size)
            await app.send(post(body=body) + get("/health"))
            assert (await app.answer()).document == {"tag": size}
            assert (await app.answer()).status == 200
            assert it.engine.asked[-1].body == body
            assert it.gateway.buffered == 0


@on_loops
async def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    async with world(limits=Limits(body=100_000)) as it:
        app = await it.app()
        await app.send(post(body=b"a" * 100_001)[:500])
        answer = await app.answer()
        assert_refused(answer, 413, "larger than")
        assert answer.headers["connection"] == "close"
        assert await app.is_closed()
        answer = await it.ask(chunks(*[b"a" * 30_000] * 4))
        assert_refused(answer, 413)
        assert it.engine.asked == []


@on_loops
async def test_the_answer_to_a_body_that_is_too_large_is_not_lost() -> None:
    async with world() as it:
        app = await it.app()
        reading = app.reader._transport  # type: ignore[attr-defined]
        reading.pause_reading()
        app.writer.write(post(body=b"a" * (65 * 2**20)))
        (client,) = it.gateway.clients
        await until(lambda: client._state is State.LINGERING)
        await asyncio.sleep(0.2)  # for the connection to fail meanwhile
        reading.resume_reading()
        assert_refused(await app.answer(), 413, "64 MiB")


@on_loops
async def test_bodies_fill_no_more_memory_than_they_may() -> None:
    async with world(limits=Limits(buffered=150_000), pointed=False) as it:
        first = await it.app()
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a" * 100_000}], "user": 1}).encode()
        await first.send(post(body=body))
        await until(lambda: it.gateway.traffic.held == 1)
        answer = await it.ask(post(body=body))
        assert_refused(answer, 503, "memory")
        assert "retry-after" in answer.headers
        it.gateway.route.point(it.target)
        assert (await first.answer()).document == {"tag": 1}
        assert (await it.ask(post(body=body))).status == 200


@on_loops
async def test_expect_continue() -> None:
    async with world(limits=Limits(body=1000)) as it:
        app = await it.app()
        request = post("a", headers="Expect: 100-continue\r\n")
        head, _, body = request.partition(b"\r\n\r\n")
        await app.send(head + b"\r\n\r\n")
        assert (await app.head())[0] == 100
        assert (await app.ask(body)).document == {"tag": "a"}
        assert (await app.ask(request)).document == {"tag": "a"}, "who does not wait is not told to go on"
        head, _, _ = post(body=b"a" * 1001, headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        answer = await app.ask(head + b"\r\n\r\n")
        assert_refused(answer, 413)
        assert await app.is_closed()
        assert_refused(await it.ask(post(headers="Expect: tea\r\n")), 417)


@on_loops
async def test_what_comes_too_slowly_is_refused() -> None:
    async with world(limits=Limits(head_seconds=0.2)) as it:
        for data in (b"GET /health HT", post()[:-1], post(body=b"a" * 100_000)[:-1], chunks(b"a" * 10)[:-3]):
            app = await it.app()
            await app.send(data)
            assert_refused(await app.answer(), 408)
            assert await app.is_closed()
        app = await it.app()
        request = post("a")
        for at in range(0, len(request), 20):
            await asyncio.sleep(0.03 if at > 100 else 0)  # slow, but it goes on
            await app.send(request[at : at + 20])
        assert (await app.answer()).document == {"tag": "a"}


# Framing

OK = "GET /health HTTP/1.1\r\nHost: localhost\r\n"
HOSTILE = {
    "two lengths": post().replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
    "two equal lengths": post(body=b"abc").replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
    "a list of lengths": post(body=b"abc").replace(b"Length: 3", b"Length: 3, 3"),
    "a signed length": post(body=b"abc").replace(b"Length: 3", b"Length: +3"),
    "a negative length": post(body=b"abc").replace(b"Length: 3", b"Length: -3"),
    "a length in hex": post(body=b"abc").replace(b"Length: 3", b"Length: 0x3"),
    "a length with a space": post(body=b"abc").replace(b"Length: 3", b"Length: 3 3"),
    "a huge length": post(body=b"abc").replace(b"Length: 3", b"Length: 99999999999999999999"),
    "an empty length": post(body=b"abc").replace(b"Length: 3", b"Length: "),
    "length and encoding": chunks(b"a", headers="Content-Length: 3\r\n"),
    "encoding and length": chunks(b"a").replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1),
    "another encoding": chunks(b"a").replace(b": chunked", b": gzip, chunked"),
    "chunked twice": chunks(b"a", headers="Transfer-Encoding: chunked\r\n"),
    "chunked and identity": chunks(b"a").replace(b": chunked", b": chunked, identity"),
    "almost chunked": chunks(b"a").replace(b": chunked", b": xchunked"),
    "chunked in 1.0": chunks(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a space before the colon": chunks(b"a").replace(b"Encoding:", b"Encoding :"),
    "a folded line": f"{OK}A: b\r\n c\r\n\r\n".encode(),
    "a folded encoding": chunks(b"a").replace(b": chunked", b":\r\n chunked"),
    "bare LF": f"{OK}A: b\nC: d\r\n\r\n".encode(),
    "only LF": f"{OK}\r\n".replace("\r", "").encode(),
    "bare CR": f"{OK}A: b\rC: d\r\n\r\n".encode(),
    "NUL in a value": f"{OK}A: b\0c\r\n\r\n".encode(),
    "NUL in a name": f"{OK}A\0: b\r\n\r\n".encode(),
    "NUL in the target": b"GET /hea\0lth HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an empty name": f"{OK}: b\r\n\r\n".encode(),
    "no colon": f"{OK}A\r\n\r\n".encode(),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": f"{OK}Host: localhost\r\n\r\n".encode(),
    "a host that is none": b"GET /health HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "two spaces": b"GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tab": b"GET\t/health\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an empty line": b"\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an unknown method": b"FETCH /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an authority": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another scheme": b"GET https://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target without a slash": b"GET health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target of high bytes": b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk size that is none": chunks(b"a").replace(b"1\r\na", b"g\r\na"),
    "a chunk size with a sign": chunks(b"a").replace(b"1\r\na", b"+1\r\na"),
    "a chunk size with 0x": chunks(b"a").replace(b"1\r\na", b"0x1\r\na"),
    "a chunk size with an underscore": chunks(b"a" * 17).replace(b"11\r\n", b"1_1\r\n"),
    "a huge chunk size": chunks(b"a").replace(b"1\r\na", b"fffffffff\r\na"),
    "a negative chunk size": chunks(b"a").replace(b"1\r\na", b"-1\r\na"),
    "a long chunk extension": chunks(b"a").replace(b"1\r\na", b"1;" + b"x" * 1000 + b"\r\na"),
    "a chunk extension with a bare LF": chunks(b"a").replace(b"1\r\na", b"1;\n\r\na"),
    "a chunk that is longer": chunks(b"a").replace(b"1\r\na\r\n", b"1\r\naa\r\n"),
    "a chunk line with LF only": chunks(b"a").replace(b"1\r\na", b"1\na"),
    "a chunk that ends in LF": chunks(b"a").replace(b"a\r\n0", b"a\n0"),
    "a trailer": chunks(b"a")[:-2] + b"X: y\r\n\r\n",
}


@on_loops
async def test_framing_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed() -> None:
    async with world() as it:
        for name, request in HOSTILE.items():
            app = await it.app()
            await app.send(request + post("smuggled"))
            answer = await app.answer()
            assert answer.status == 400, name
            assert_refused(answer, 400)
            assert answer.headers["connection"] == "close", name
            assert await app.is_closed(), name
        assert it.engine.asked == []


@on_loops
async def test_a_head_that_is_too_long_is_refused() -> None:
    long = f"{OK}A: {'b' * 66_000}\r\n\r\n".encode()
    async with world() as it:
        for request in (long, long[:-4], b"GET /" + b"a" * 66_000, f"{OK}{'A: b' * 1}\r\n".encode() * 3000):
            app = await it.app()
            await app.send(request)
            assert (await app.answer()).status in (400, 431)
            assert await app.is_closed()
        assert (await it.ask(f"{OK}A: {'b' * 60_000}\r\n\r\n".encode())).status == 200


@on_loops
async def test_a_hostile_request_does_not_touch_the_one_before_it() -> None:
    async with world() as it:
        app = await it.app()
        await app.send(post("a") + HOSTILE["two lengths"])
        assert (await app.answer()).document == {"tag": "a"}
        assert_refused(await app.answer(), 400)
        assert await app.is_closed()


@on_loops
async def test_half_a_close_ends_what_is_not_answered_and_loses_nothing_that_is() -> None:
    async with world(silent) as it:
        app = await it.app()
        await app.send(get("/health"))
        app.writer.write_eof()
        assert (await app.answer()).status == 200
        assert await app.is_closed()
        app = await it.app()
        await app.send(post())
        await until(lambda: it.engine.asked)
        app.writer.write_eof()
        await it.engine.peers[0].gone.wait()
        assert await app.is_closed()


# Commands


@on_loops
async def test_a_command_is_answered_by_its_handler() -> None:
    async def control(exchange: ControlRequest) -> None:
        assert exchange.is_local
        told = {"method": exchange.method, "path": exchange.path, "token": exchange.headers["x-token"]}
        await exchange.answer(201, {**told, "body": exchange.body.decode()})

    async with world(api_key="secret", control=control) as it:
        app = await it.app()
        request = post(path="/llmdeploy/switch", body=b"to vllm", headers="X-Token: t\r\n")
        answer = await app.ask(request + request)
        expected = {"method": "POST", "path": "/llmdeploy/switch", "token": "t", "body": "to vllm"}
        assert (answer.status, answer.document) == (201, expected)
        assert (await app.answer()).document == expected
        assert (await app.ask(get("/health"))).status == 200


@on_loops
async def test_a_command_may_answer_with_a_stream() -> None:
    go_on = asyncio.Event()

    async def control(exchange: ControlRequest) -> None:
        await exchange.begin()
        await exchange.event({"step": 1})
        await go_on.wait()
        await exchange.event({"step": 2})
        await exchange.end()

    async with world(control=control) as it:
        app = await it.app()
        await app.send(get("/llmdeploy/switch"))
        assert (await app.head())[1]["content-type"] == "application/x-ndjson"
        assert await app.chunk() == b'{"step":1}\n'
        go_on.set()
        assert [await app.chunk(), await app.chunk()] == [b'{"step":2}\n', b""]
        await app.send(get("/llmdeploy/switch").replace(b"1.1", b"1.0"))
        assert (await app.answer()).body == b'{"step":1}\n{"step":2}\n'


@on_loops
async def test_a_handler_hears_that_its_client_has_gone() -> None:
    left = asyncio.Event()

    async def control(exchange: ControlRequest) -> None:
        await exchange.begin()
        await exchange.left
        left.set()
        await exchange.event({"to": "nobody"})
        await exchange.end()

    async with world(control=control) as it:
        app = await it.app()
        await app.send(get("/llmdeploy/logs"))
        await app.head()
        assert not left.is_set()
        app.leave()
        await left.wait()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_handler_that_fails_is_a_clear_error_and_is_not_lost(loop: str) -> None:
    reported: list[dict[str, Any]] = []

    async def control(exchange: ControlRequest) -> None:
        if exchange.path.endswith("late"):
            await exchange.begin()
            await exchange.event(1)
        if not exchange.path.endswith("never"):
            raise ERROR

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with world(control=control) as it:
            assert_refused(await it.ask(get("/llmdeploy/fails")), 500, ERROR.message)
            assert reported.pop()["exception"] is ERROR
            late = await it.ask(get("/llmdeploy/late"))
            assert (late.status, late.body, late.whole) == (200, b"1\n", False)
            assert reported.pop()["exception"] is ERROR
            assert_refused(await it.ask(get("/llmdeploy/never")), 500, "was not answered")
            assert reported.pop()

    run(loop, test)
    assert not reported


@on_loops
async def test_a_command_does_not_run_ahead_of_a_slow_reader() -> None:
    sent = 0

    async def control(exchange: ControlRequest) -> None:
        nonlocal sent
        await exchange.begin()
        for _ in range(1000):
            await exchange.event("x" * 100_000)
            sent += 1
        await exchange.end()

    async with world(control=control) as it:
        app = await it.app()
        await app.send(get("/llmdeploy/logs"))
        await app.head()
        app.reader._transport.pause_reading()  # type: ignore[attr-defined]
        (client,) = it.gateway.clients
        await until(lambda: client.is_blocked)
        await asyncio.sleep(0.1)
        assert sent < 300
        app.reader._transport.resume_reading()  # type: ignore[attr-defined]
        got = 0
        while await app.chunk():
            got += 1
        assert got == 1000


# The end, and the beginning


@on_loops
async def test_a_gateway_that_closes_leaves_nobody_waiting() -> None:
    async def handler(peer: Peer, asked: Asked) -> None:
        await peer.begin_stream()
        await peer.event(1)
        await peer.gone.wait()

    async with world(handler) as it:
        stream, held, idle = [await it.app() for _ in range(3)]
        await stream.send(post(stream=True))
        await stream.head()
        await stream.chunk()
        it.gateway.route.hold("switch")
        await held.send(post())
        await until(lambda: it.gateway.traffic.held == 1)
        await it.gateway.close()
        assert_refused(await held.answer(), 503, "the gateway stops")
        assert b'"error"' in await stream.chunk()
        for app in (stream, held, idle):
            assert await app.is_closed()
        with pytest.raises(OSError, match=r"refused|Connect call failed|Errno"):
            await it.app()


@on_loops
async def test_an_address_that_is_taken_is_the_systems_error() -> None:
    async with world() as it:
        second = Gateway(Limits())
        with pytest.raises(OSError, match="in use"):
            await second.listen("127.0.0.1", it.gateway.port)
        await second.close()


@on_loops
async def test_localhost_is_a_name_for_the_loopback_addresses() -> None:
    gateway = Gateway(Limits())
    await gateway.listen("localhost", 0)
    app = await App.at(gateway)
    assert (await app.ask(get("/health"))).status == 503
    app.leave()
    await gateway.close()


def test_memory_stays_flat() -> None:
    """Requests leave nothing behind: neither objects nor what they hold."""
    import gc

    async def test() -> None:
        async with world() as it:
            app = await it.app()

            async def ask(number: int) -> None:
                for tag in range(number):
                    await app.send(post(tag) + post(tag, stream=True))
                    await app.answer()
                    await app.answer()
                it.engine.asked.clear()

            await ask(300)
            gc.collect()
            before = len(gc.get_objects())
            await ask(1000)
            gc.collect()
            assert len(gc.get_objects()) - before < 300

    run(LOOPS[0], test)


def test_targets_are_told_apart() -> None:
    target = Target("vllm", "m", "127.0.0.1", 1)
    assert target != replace(target)
