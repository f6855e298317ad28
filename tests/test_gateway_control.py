"""Requests that the service answers, and the life of a gateway."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from llmdeploy.gateway.gateway import ControlRequest, Gateway, Limits, Target
from tests.gateway_world import (
    ERROR,
    LOOPS,
    App,
    EngineRequest,
    Peer,
    assert_refused,
    get,
    on_loops,
    post,
    run,
    until,
    world,
)

# Requests that the service answers


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
async def test_a_handler_learns_that_its_client_has_left() -> None:
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
def test_a_failing_handler_is_a_clear_error_and_is_logged(loop: str) -> None:
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


# Start and stop


@on_loops
async def test_a_closing_gateway_leaves_no_client_waiting() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
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
async def test_a_port_in_use_raises_the_systems_error() -> None:
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
    """Requests leave no objects and no memory behind."""
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


def test_targets_are_never_equal() -> None:
    target = Target("vllm", "m", "127.0.0.1", 1)
    assert target != replace(target)
