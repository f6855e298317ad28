"""A route: requests wait for a server, go to it, move to another one, or are refused."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from llmdeploy.gateway.gateway import Limits
from tests.gateway_world import (
    ERROR,
    Engine,
    EngineRequest,
    Peer,
    assert_refused,
    noted_order,
    on_loops,
    post,
    until,
    world,
)


@on_loops
async def test_held_requests_are_served_in_order_up_to_the_limit() -> None:
    async with world(pointed=False) as it:
        apps = [await it.app() for _ in range(200)]
        for number, app in enumerate(apps):
            await app.send(post(number))
            await until(lambda: it.gateway.traffic.held == number + 1)  # noqa: B023
        refused = await it.ask(post("201st"))
        assert_refused(refused, 503, "200 requests are waiting already")
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
async def test_a_refusing_route_gives_its_reason_until_it_has_a_target() -> None:
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

    async def old(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await peer.event("old")
        await go_on.wait()
        await peer.event("old")
        await peer.end_stream()

    async def new(peer: Peer, asked: EngineRequest) -> None:
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
async def test_requests_that_do_not_end_are_cut() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
        assert_refused(await plain.answer(), 503, "was stopped before the answer was complete")
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
