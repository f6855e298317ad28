"""Connections to clients and to the engine: kept, shared, closed, and never read faster than written."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from unittest.mock import patch

import pytest

from llmdeploy.gateway.client_state import Untaken
from llmdeploy.gateway.downstream import MOST_AT_ONCE
from llmdeploy.gateway.gateway import Limits
from llmdeploy.gateway.turns import Turns
from llmdeploy.gateway.upstream import Upstream, _poll_of
from tests.gateway_world import (
    EngineRequest,
    Peer,
    assert_refused,
    chunked,
    echo,
    get,
    on_loops,
    post,
    silent,
    until,
    world,
)

# Kept and shared


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
async def test_the_next_request_is_not_sent_before_the_answer_is_complete() -> None:
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
async def test_many_pipelined_requests_leave_other_connections_their_turn() -> None:
    with patch("llmdeploy.gateway.turns.SECONDS", 0):
        await leave_a_turn()


async def leave_a_turn() -> None:
    async with world() as it:
        many, one = await it.app(), await it.app()
        turns = 0
        number = 10 * MOST_AT_ONCE

        def turn() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(turn)

        await many.send(get("/health") * number)
        turn()
        assert (await one.ask(get("/health"))).status == 200
        for _ in range(number):
            assert (await many.answer()).status == 200
        assert turns > 10
        assert (await many.ask(post("a"))).document == {"tag": "a"}


@on_loops
async def test_connections_with_many_requests_share_a_part_of_each_turn() -> None:
    turns, done, loop = Turns(), list[str](), asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, __: done.append("failed"))

    class Many:
        def __init__(self, name: str, number: int) -> None:
            self.name, self.left = name, number

        def go_on(self) -> None:
            done.append(self.name)
            self.left -= 1
            if self.left < 0:
                raise ValueError
            if self.left:
                turns.add(self)

    def turn() -> None:
        done.append("|")
        if len(done) < 20:
            loop.call_soon(turn)

    with patch("llmdeploy.gateway.turns.SECONDS", 0):
        for one in (Many("a", 3), Many("b", 2), Many("c", 0)):
            turns.add(one)
        loop.call_soon(turn)
        await until(lambda: len(done) >= 20)
    assert "".join(done).rstrip("|") == "a|b|cfailed|a|b|a"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a client that waits from one that has left")
@on_loops
async def test_many_requests_before_a_half_close_are_all_answered() -> None:
    async with world() as it:
        app = await it.app()
        app.writer.write(get("/health") * 5 * MOST_AT_ONCE)
        app.writer.write_eof()
        for _ in range(5 * MOST_AT_ONCE):
            assert (await app.answer()).status == 200
        assert await app.is_closed()


@on_loops
async def test_requests_of_a_client_that_does_not_read_are_not_read() -> None:
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
async def test_a_connection_that_the_engine_closed_is_replaced_unnoticed() -> None:
    async with world() as it:
        app = await it.app()
        assert (await app.ask(post(1))).document == {"tag": 1}
        pool = it.gateway.traffic.pools[it.target]
        (upstream,) = pool._idle
        # The end has arrived, and the event loop has not told of it yet.
        with patch.object(Upstream, "connection_lost"):
            it.engine.peers[0].transport.abort()
            await it.engine.peers[0].gone.wait()
        assert upstream.is_stale
        if upstream not in pool._idle:
            pool._idle.append(upstream)
        assert (await app.ask(post(2))).document == {"tag": 2}
        assert it.engine.tags == [1, 2]
        assert len(it.engine.peers) == 2


def test_a_connection_is_stale_once_its_other_end_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        is_stale = _poll_of(ours)
        assert not is_stale()
        theirs.close()
        assert is_stale()


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
        await it.engine.peers[1].gone.wait()  # closed by the periodic sweep
        assert pool._idle == []


@on_loops
async def test_unrequested_bytes_end_a_connection() -> None:
    answered = asyncio.Event()

    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await echo(peer, asked)
        if asked.document["user"] == 1:
            await answered.wait()
            await peer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"tag": "no"}')

    async with world(handler) as it:
        app = await it.app()
        assert (await app.ask(post(1))).document == {"tag": 1}
        answered.set()
        async with asyncio.timeout(2):  # at once, and not after the idle time
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
async def test_idle_client_connections_are_closed() -> None:
    async with world(limits=Limits(idle_seconds=0.1)) as it:
        fresh, used = await it.app(), await it.app()
        await used.ask(post())
        assert await fresh.is_closed()
        assert await used.is_closed()


@on_loops
async def test_a_connection_that_asks_nothing_is_closed_earlier_than_one_between_requests() -> None:
    async with world(limits=Limits(head_seconds=0.1)) as it:
        fresh, used = await it.app(), await it.app()
        await used.ask(post())
        assert await fresh.is_closed()
        assert (await used.ask(post(2))).document == {"tag": 2}


@on_loops
async def test_the_oldest_idle_connection_gives_way_to_a_new_one() -> None:
    async with world(limits=Limits(clients=4)) as it:
        apps = [await it.app() for _ in range(4)]
        for app in apps:
            await app.ask(get("/health"))
        await apps[0].ask(get("/health"))
        await apps[1].send(post()[:30])
        await until(lambda: it.gateway.buffered)
        for oldest in (apps[2], apps[3], apps[0]):
            assert (await (await it.app()).ask(post("a"))).document == {"tag": "a"}
            assert await oldest.is_closed()
            assert len(it.gateway.clients) <= 4
        assert (await apps[1].ask(post()[30:])).status == 200, "a request that is on its way comes last"


@on_loops
async def test_connections_that_never_end_a_request_give_way_too() -> None:
    async with world(limits=Limits(clients=4)) as it:
        held = [await it.app() for _ in range(4)]
        for app, begun in zip(held, (b"GET", post()[:-1], b"GET /", post(body=b"a" * 100_001)[:-1]), strict=True):
            await app.send(begun)
        await until(lambda: it.gateway.buffered > 100_000)
        for _ in held:
            assert (await (await it.app()).ask(post("a"))).document == {"tag": "a"}
        for app in held:
            assert await app.is_closed()


@on_loops
async def test_a_new_connection_is_refused_while_all_are_busy() -> None:
    async with world(silent, limits=Limits(clients=2)) as it:
        busy = [await it.app() for _ in range(2)]
        for app in busy:
            await app.send(post())
        await until(lambda: len(it.engine.asked) == 2)
        for _ in range(3):
            app = await it.app()
            answer = await app.answer()
            assert_refused(answer, 503, "connections")
            assert "retry-after" in answer.headers
            assert await app.is_closed()
        assert it.gateway.traffic.in_flight().total() == 2
        busy[0].leave()
        await until(lambda: it.gateway.traffic.in_flight().total() == 1)
        assert (await it.ask(get("/health"))).status == 200


# Clients that leave or do not read


@on_loops
async def test_a_client_that_takes_nothing_is_dropped() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        while True:
            await peer.write(chunked(b"x" * 2**16))

    async with world(handler, Limits(unread_seconds=0.5)) as it:
        slow, deaf = await it.app(), await it.app()
        for app in (slow, deaf):
            await app.send(post())
            await app.head()
        deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
        until_dropped = asyncio.ensure_future(until(lambda: any(peer.gone.is_set() for peer in it.engine.peers)))
        while not until_dropped.done():
            await slow.chunk()
            await asyncio.sleep(0.001)
        await until_dropped
        for _ in range(20):
            await slow.chunk()
        assert it.gateway.traffic.in_flight().total() == 1
        assert it.gateway.metrics.errors["llamacpp", "client_left"] == 1


@on_loops
async def test_a_client_that_leaves_ends_its_request_at_the_engine() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_a_held_request_whose_client_leaves_is_dropped() -> None:
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

    async def handler(peer: Peer, asked: EngineRequest) -> None:
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


def test_a_client_takes_something_when_less_is_left() -> None:
    untaken = Untaken()
    sizes = [0, 0, 500, 500, 400, 400, 900, 900, 0, 100, 100]
    seconds = [untaken.seconds(size, now) for now, size in enumerate(sizes)]
    assert seconds == [0, 0, 0, 1, 0, 1, 2, 3, 0, 0, 1]
    untaken.took_some()
    assert untaken.seconds(100, 20) == 0
