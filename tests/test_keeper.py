"""The keeping of a deployment, without a server."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmdeploy import hardware
from llmdeploy.background import in_thread
from llmdeploy.config import Settings
from llmdeploy.engines import registry
from llmdeploy.engines.base import ServerSpec
from llmdeploy.errors import DoesNotFit, LlmdeployError, PortInUse, Remedy, ServerDied, StartFailed
from llmdeploy.gateway.target import Target
from llmdeploy.models.reference import CatalogName
from llmdeploy.plan import Setting
from llmdeploy.service import history, supervisor
from llmdeploy.service.launch import Abandoned, Event, Launch, Order
from llmdeploy.service.placement import HeldMemory
from llmdeploy.service.supervisor import Supervisor
from llmdeploy.service.switch import holds
from llmdeploy.units import GIB


def a_keeper(folder: Path, events: list[Event]) -> Supervisor:
    """Made inside a loop: it tells what happens there."""
    order = Order(CatalogName("selftest"), Settings())
    return Supervisor(order, registry.get("llamacpp", Settings()), events.append, folder / "server.log")


@pytest.mark.parametrize("kind", [StartFailed, DoesNotFit, PortInUse])
def test_a_server_that_served_long_and_starts_no_more_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[LlmdeployError]
) -> None:
    monkeypatch.setattr(supervisor, "STEADY", -1)  # whatever served, served long
    delays = []

    async def serve(_: object) -> None:
        raise ServerDied("it was killed", "")

    async def restart(_: object, ended: object, delay: float) -> None:
        delays.append(delay)
        if len(delays) == 20:
            pytest.fail("it is started for ever")
        raise kind("it does not start", "")

    async def keep() -> None:
        await a_keeper(tmp_path, []).keep()

    monkeypatch.setattr(Supervisor, "_serve", serve)
    monkeypatch.setattr(Supervisor, "_restart", restart)
    with pytest.raises(ServerDied, match="the server ended 5 times in a row; at last: it does not start"):
        asyncio.run(keep())
    assert delays == [0.5, 1, 2, 4]


def test_what_went_by_the_memory_of_the_moment_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[history.Start] = []
    monkeypatch.setattr(history, "save", lambda kind, start: kept.append(start))

    class Starts:
        version = "1"
        machine = hardware.detect()

        def launch(self) -> None: ...

        async def until_ready(self) -> None: ...

    async def start() -> None:
        one = a_keeper(tmp_path, [])
        one.candidate = cast("Any", Starts())
        one.remedies = (Remedy("gpu_memory_utilization", 0.4, lasts=False), Remedy("max_model_len", 384))
        await one.start()

    asyncio.run(start())
    assert [start.remedies for start in kept] == [(Remedy("max_model_len", 384),)]


def test_a_server_of_anothers_that_is_away_is_told_and_so_is_its_return(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor, "WATCH", 0.01)
    events: list[Event] = []

    class Another:
        away = False
        spec = ServerSpec((), "http://127.0.0.1:5000", "/api/version")

        def __init__(self) -> None:
            self.ended = asyncio.get_running_loop().create_future()

        async def keep(self) -> None:
            await asyncio.sleep(3600)

        def raise_if_over(self) -> None: ...

    async def told(count: int) -> list[str]:
        while len(events) < count:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # once is enough
        return [event["event"] for event in events]

    async def serve() -> None:
        one = a_keeper(tmp_path, events)
        one.candidate = another = cast("Any", Another())
        serving = asyncio.ensure_future(one._serve())
        assert await told(0) == []
        another.away = True
        assert await told(2) == ["note", "down"]
        assert events[0]["text"] == "`http://127.0.0.1:5000` does not answer; requests wait until it does"
        assert events[1]["error"].message == "`http://127.0.0.1:5000` does not answer"
        another.away = False
        assert await told(4) == ["note", "down", "note", "serving"]
        serving.cancel()

    asyncio.run(asyncio.wait_for(serve(), 10))


def test_what_a_start_took_of_a_gpu_stays_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also once the server beside which it was started has gone, and while it is started again."""

    def machine(free: int) -> hardware.Hardware:
        return replace(hardware.detect(), gpus=(hardware.Gpu(0, "A", 80 * GIB, free * GIB),))

    before, ready, later = machine(40), machine(10), machine(50)

    class Starts:
        version, machine, server = "1", before, None

        def launch(self) -> None: ...

        async def until_ready(self) -> None: ...

    async def start() -> None:
        one = a_keeper(tmp_path, [])
        restarting, one.candidate = one.candidate, cast("Any", Starts())
        monkeypatch.setattr(hardware, "detect", lambda: ready)
        await one.start()
        monkeypatch.setattr(hardware, "detect", lambda: later)
        assert holds(one).gpus == ((0, 30 * GIB),)
        one.candidate = restarting
        assert holds(one).gpus == ((0, 30 * GIB),)

    asyncio.run(start())


class Waits(Launch):
    """One whose preparing lasts until it is stopped, as that of one that waits for a daemon does."""

    def __init__(self, given: Launch) -> None:
        vars(self).update(vars(given))
        self.begun, self.stopped = threading.Event(), threading.Event()

    def look(self, spare: HeldMemory | None = None) -> None:
        self.begun.set()
        assert self.stopped.wait(10), "it was not stopped"
        raise StartFailed("the daemon ended", "")

    def stop(self) -> None:
        self.stopped.set()


def test_a_start_that_is_called_off_ends_what_its_thread_waits_for(tmp_path: Path) -> None:
    async def call_off() -> Waits:
        one = a_keeper(tmp_path, [])
        one.candidate = waits = Waits(one.candidate)
        looking = asyncio.ensure_future(one.look())
        await in_thread(lambda: waits.begun.wait(10))
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        return waits

    assert asyncio.run(call_off()).stopped.is_set()


def test_two_who_stop_a_server_give_back_once_what_it_took(tmp_path: Path) -> None:
    """One was called off while it waited; the second must not undo what a third has begun meanwhile."""
    released: list[str] = []
    slow = threading.Event()

    def release(base_url: str, served_name: str) -> None:
        released.append(served_name)
        slow.wait(0.2)  # never set: giving back takes its time

    one = Launch(
        Order(CatalogName("selftest"), Settings()), cast("Any", SimpleNamespace(progress=list)), print, tmp_path / "log"
    )
    ended: Future[int] = Future()
    one.engine = cast("Any", SimpleNamespace(release=release))
    one.spec = ServerSpec((), "http://127.0.0.1:1", "/health", "selftest")
    one._runs = cast("Any", SimpleNamespace(ended=ended, let_go=lambda: ended.done() or ended.set_result(0)))
    one._loading = True
    others = [threading.Thread(target=one.stop) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert released == ["selftest"]


def test_a_download_that_is_called_off_ends_with_its_next_piece(tmp_path: Path) -> None:
    events: list[Event] = []
    candidate = Launch(
        Order(CatalogName("selftest"), Settings()),
        registry.get("llamacpp", Settings()),
        events.append,
        tmp_path / "log",
    )
    candidate._tell("download", file="x", done=1, total=2)
    candidate.abandon()
    with pytest.raises(Abandoned):
        candidate._tell("download", file="x", done=2, total=2)
    assert [event["done"] for event in events] == [1]


def test_what_a_thread_tells_comes_before_what_it_returns(tmp_path: Path) -> None:
    events: list[Event] = []

    async def work() -> None:
        one = a_keeper(tmp_path, events)
        for number in range(20):
            await in_thread(lambda number=number: one.candidate._tell("phase", phase=str(number)))  # type: ignore[misc]
            assert events[-1]["phase"] == str(number)

    asyncio.run(work())


def test_a_thread_that_nobody_waits_for_keeps_nothing_alive() -> None:
    never = threading.Event()

    async def leave() -> None:
        waiting = asyncio.ensure_future(in_thread(never.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    began = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - began < 5
    never.set()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:5000", ("127.0.0.1", 5000, False, "")),
        ("http://[::1]:5000", ("::1", 5000, False, "")),
        ("http://gpu.example/ollama", ("gpu.example", 80, False, "/ollama")),
        ("https://gpu.example/ollama", ("gpu.example", 443, True, "/ollama")),
        ("https://gpu.example:8443", ("gpu.example", 8443, True, "")),
    ],
)
def test_requests_go_to_the_whole_of_an_address(url: str, expected: tuple[str, int, bool, str], tmp_path: Path) -> None:
    async def target() -> Target:
        one = a_keeper(tmp_path, [])
        one.candidate.spec = ServerSpec((), url, "/health", served_name="selftest")
        one.candidate.facts = cast("Any", SimpleNamespace(capabilities=("text",)))
        one.candidate.plan = cast("Any", SimpleNamespace(context=Setting(8192, "")))
        return one.target()

    found = asyncio.run(target())
    assert (found.host, found.port, found.tls, found.prefix) == expected
