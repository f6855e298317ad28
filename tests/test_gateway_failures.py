"""Engines that fail: every client gets an error, and no answer that only looks complete."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from llmdeploy.gateway.gateway import Limits
from llmdeploy.gateway.route import Load
from llmdeploy.gateway.suspects import Suspect, named
from tests.gateway_world import (
    CHAT,
    LOOPS,
    EngineRequest,
    Peer,
    assert_refused,
    chunked,
    echo,
    noted_order,
    on_loops,
    post,
    run,
    until,
    world,
)


@on_loops
async def test_a_lost_server_and_a_replaced_one_are_told_apart() -> None:
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
async def test_request_that_a_server_ends_with_is_never_sent_again() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        if asked.document["user"] == "poison":
            peer.transport.abort()
        else:
            await echo(peer, asked)

    async with world(handler, Limits(lost_seconds=60)) as it:
        told: list[list[Suspect]] = []
        it.gateway.route.on_suspects = told.append
        app = await it.app()
        assert_refused(await app.ask(post("poison", headers="X-Request-ID: abc-1\r\n")), 502, "(abc-1), which is not")
        assert (await app.ask(post("good"))).document == {"tag": "good"}
        # The same on a connection that was used before.
        answer = await app.ask(post("poison", headers="X-Request-ID: a b\r\n"))
        assert_refused(answer, 502, "ended before it answered this request")
        assert answer.error["code"] == "engine_died"
        assert it.engine.tags == ["poison", "good", "poison"]
        await until(lambda: sum(map(len, told)) == 2)
    first, second = (suspect for suspects in told for suspect in suspects)
    assert (first.id, first.path, first.size) == ("abc-1", CHAT, len(post("poison").partition(b"\r\n\r\n")[2]))
    assert len(second.id) == 16


@on_loops
async def test_requests_of_a_server_that_ended_are_named_together() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        if len(peer.engine.asked) == 7:
            for it in peer.engine.peers:
                it.transport.abort()
        await peer.gone.wait()

    async with world(handler) as it:
        told: list[list[Suspect]] = []
        it.gateway.route.on_suspects = told.append
        apps = [await it.app() for _ in range(7)]
        for number, app in enumerate(apps):
            await app.send(post(headers=f"X-Request-ID: r{number}\r\n"))
        for app in apps:
            assert_refused(await app.answer(), 502)
        await until(lambda: told)
        ((*suspects,),) = told
        suspects.sort(key=lambda suspect: suspect.id)
        size = suspects[0].size
        assert named(suspects) == (
            "`llamacpp` did not finish 7 requests, which are not sent again ("
            + "; ".join(f"r{number}: {CHAT}, {size} bytes" for number in range(5))
            + "; and 2 more)"
        )
        assert named(suspects[:1]) == (
            f"`llamacpp` did not finish 1 request, which is not sent again (r0: {CHAT}, {size} bytes)"
        )


@on_loops
async def test_lost_requests_come_before_those_that_wait() -> None:
    async with world(pointed=False) as it:
        apps = [await it.app() for _ in range(3)]
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            it.gateway.route.point(replace(it.target, port=closed.getsockname()[1]))
            for number in (0, 1):
                await apps[number].send(post(number))
                await until(lambda: it.gateway.traffic.held == number + 1)  # noqa: B023
            it.gateway.route.hold("restart")
            await apps[2].send(post(2))
            await until(lambda: it.gateway.traffic.held == 3)
        with noted_order() as sent:
            it.gateway.route.point(it.target)
            assert [(await app.answer()).document["tag"] for app in apps] == [0, 1, 2]
        assert sent == [0, 1, 2]


@on_loops
async def test_request_that_no_server_could_be_sent_waits_for_the_next_as_often_as_needed() -> None:
    async with world(pointed=False) as it:
        app = await it.app()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            for _ in range(3):
                it.gateway.route.point(replace(it.target, port=closed.getsockname()[1]))
                await app.send(post(1) if not it.gateway.traffic.held else b"")
                await until(lambda: it.gateway.route._lost)
                it.gateway.route.hold("restart")
        it.gateway.route.point(it.target)
        assert (await app.answer()).document == {"tag": 1}


@on_loops
async def test_model_that_the_engine_does_not_know_any_more_is_missing_for_the_moment() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        text = {"message": "model 'm' not found", "type": "not_found_error", "param": None, "code": None}
        await peer.answer(json.dumps({"error": text}).encode(), "404 Not Found")

    async with world(handler) as it:
        told: list[bool] = []
        it.gateway.route.on_missing = lambda: told.append(True)
        answer = await it.ask(post())
        assert_refused(answer, 503, "does not have `m` any more")
        assert "retry-after" in answer.headers
        assert told == [True]


@on_loops
async def test_load_of_a_server_counts_requests_that_wait_for_it_and_its_pieces() -> None:
    go_on = asyncio.Event()

    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await go_on.wait()
        await peer.event(1)
        await peer.end_stream()

    async with world(handler) as it:
        route = it.gateway.route
        assert route.load(it.target) == Load(0, 0)
        app = await it.app()
        await app.send(post(stream=True))
        await app.head()
        assert route.load(it.target) == Load(1, 1)
        (client,) = it.gateway.clients
        client.is_blocked = True
        assert route.load(it.target) == Load(0, 1)
        client.is_blocked = False
        go_on.set()
        await app.chunk()
        await until(lambda: route.load(it.target).waiting == 0)
        assert route.load(it.target).received > 1


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


def test_a_bug_while_connecting_is_reported_and_leaves_no_request_waiting() -> None:
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
async def test_a_paused_connection_reads_again_for_the_next_request() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_an_error_event_of_the_engine_breaks_off_the_stream() -> None:
    """vLLM sends such an event, and then a clean end, when one of its workers dies."""

    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_text_that_looks_like_an_error_event_is_forwarded() -> None:
    text = json.dumps({"choices": [{"delta": {"content": 'data: {"error": 1}'}}]}).encode()

    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await peer.write(chunked(b"data: " + text + b"\n\n") + b"0\r\n\r\n")

    async with world(handler) as it:
        answer = await it.ask(post(stream=True))
        assert answer.whole
        assert answer.events == [text.decode()]


@on_loops
async def test_a_piece_of_an_event_is_not_joined_with_the_error() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_an_answer_whose_engine_dies_is_never_complete() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_http_1_0_clients_see_that_an_answer_broke_off() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_answers_that_are_not_http_are_errors() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.write(BROKEN[asked.document["user"]])

    async with world(handler) as it:
        app = await it.app()
        for number in range(len(BROKEN)):
            assert_refused(await app.ask(post(number)), 502)
        assert all(peer.gone.is_set() for peer in it.engine.peers[:-1])


@on_loops
async def test_a_malformed_chunk_breaks_off_the_answer() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await peer.event(1)
        await asyncio.sleep(0.02)
        await peer.write(b"zz\r\n")

    async with world(handler) as it:
        answer = await it.ask(post(stream=True))
        assert not answer.whole
        await it.engine.peers[0].gone.wait()
