"""The supervisor of a deployment, without a server."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from llmdeploy import hardware
from llmdeploy.background import in_thread
from llmdeploy.config import Settings
from llmdeploy.engines import registry
from llmdeploy.engines.base import ServerSpec
from llmdeploy.engines.diagnosis import Exit, Exited
from llmdeploy.errors import (
    DoesNotFit,
    LlmdeployError,
    ModelNotFound,
    Remedy,
    ServerDied,
    StartFailed,
    StateUnwritable,
)
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.reference import CatalogName
from llmdeploy.plan import Plan, Setting
from llmdeploy.service import history, launch, placement, supervisor
from llmdeploy.service.events import Down, Download, Internal, Note, Phase, Public, Serving
from llmdeploy.service.launch import Launch
from llmdeploy.service.order import Order
from llmdeploy.service.running import RunningServer
from llmdeploy.service.slot import target_of
from llmdeploy.service.stages import Prepared, Ready, Settled
from llmdeploy.service.starter import Abandoned, Starter
from llmdeploy.service.supervisor import Supervisor
from llmdeploy.units import GIB
from tests.conftest import BUSY

AnyEvent = Public | Internal
ORDER = Order(CatalogName("selftest"), Settings())
SPEC = ServerSpec((), "http://127.0.0.1:1", "/health", "selftest")
PLAN = Plan(Setting(8192, ""), Setting(1, ""), (), None)
PREPARED = Prepared("1", "weights", ModelFacts("llama", 1, (1,), 1, 1, 1, 1, 1))


def make_supervisor(folder: Path, events: list[AnyEvent]) -> Supervisor:
    """Return a supervisor. To be called inside a loop: it emits its events there."""
    return Supervisor(ORDER, registry.get("llamacpp", Settings()), events.append, folder / "server.log")


class PlayedServer:
    """A server without a process."""

    is_away = is_external = is_ready = False
    process = None

    def __init__(self) -> None:
        self.exit: Future[Exit] = Future()

    def raise_if_over(self) -> None: ...


def make_ready(spec: ServerSpec = SPEC) -> Ready:
    engine = registry.get("llamacpp", Settings())
    return Ready(ORDER, engine, PREPARED, PLAN, spec, cast("RunningServer", PlayedServer()), None, 0.0, ())


def settled(machine: hardware.Hardware) -> Settled:
    return Settled(PREPARED, PLAN, machine, SPEC)


class PlayedLaunch(Launch):
    """A launch whose server is ready at once."""

    def start(self, settled: Settled) -> RunningServer:
        return cast("RunningServer", PlayedServer())

    async def wait_ready(self, settled: Settled, server: RunningServer) -> None: ...


FULL = OSError(errno.ENOSPC, "No space left on device")
NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    "error",
    [StartFailed("x"), DoesNotFit("x"), StateUnwritable("x"), ModelNotFound("x"), FULL, NO_DESCRIPTOR, RuntimeError()],
    ids=lambda error: f"{type(error).__name__}{getattr(error, 'errno', None) or ''}",
)
def test_server_that_has_served_is_started_again_whatever_keeps_it_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    delays: list[float] = []
    ended: list[LlmdeployError] = []

    class Enough(BaseException):
        """The end of the test."""

    async def serve(_: object, ready: object) -> None:
        raise Enough if delays else ServerDied("it was killed", "")

    async def restart(_: object, ready: object, reason: LlmdeployError, delay: float) -> Ready:
        delays.append(delay)
        ended.append(reason)
        if len(delays) == 10:
            return make_ready()
        raise error

    async def keep() -> None:
        with pytest.raises(Enough):
            await make_supervisor(tmp_path, []).keep(make_ready())

    monkeypatch.setattr(Supervisor, "_serve", serve)
    monkeypatch.setattr(Supervisor, "_restart", restart)
    asyncio.run(keep())
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert ended[0].message == "it was killed"
    assert all(it.message for it in ended)


def test_server_that_served_for_a_while_is_started_again_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "STEADY", -1)  # whatever served, served long
    delays: list[float] = []

    async def serve(_: object, ready: object) -> None:
        raise ServerDied("it was killed", "")

    async def restart(_: object, ready: object, ended: object, delay: float) -> Ready:
        delays.append(delay)
        if len(delays) == 5:
            raise asyncio.CancelledError
        return make_ready()

    async def keep() -> None:
        with pytest.raises(asyncio.CancelledError):
            await make_supervisor(tmp_path, []).keep(make_ready())

    monkeypatch.setattr(Supervisor, "_serve", serve)
    monkeypatch.setattr(Supervisor, "_restart", restart)
    asyncio.run(keep())
    assert delays == [0.5] * 5


def test_external_server_is_used_again_once_it_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "WATCH", 0.01)
    monkeypatch.setattr(supervisor, "BACKOFF", 0.01)
    looks = iter([False, False, True])
    monkeypatch.setattr(supervisor, "healthy", lambda spec: next(looks))
    events: list[AnyEvent] = []
    gone = make_ready(ServerSpec((), "http://127.0.0.1:5000", "/api/version"))
    again = make_ready()
    cast("PlayedServer", gone.server).is_external = True
    cast("PlayedServer", gone.server).exit.set_result(Exited(0))

    async def start_again(_: object) -> Ready:
        return again

    async def serve(one: Supervisor, ready: Ready) -> None:
        if ready is gone:
            raise ServerDied("Ollama has not answered for 15 s")
        raise asyncio.CancelledError

    async def keep() -> None:
        with pytest.raises(asyncio.CancelledError):
            await make_supervisor(tmp_path, events).keep(gone)

    monkeypatch.setattr(Supervisor, "start_again", start_again)
    monkeypatch.setattr(Supervisor, "_serve", serve)
    asyncio.run(keep())
    assert next(looks, None) is None
    assert [it for it in events if isinstance(it, Note)] == [
        Note("Ollama has not answered for 15 s; it is used again once it answers"),
        Note("it serves again"),
    ]


def test_repair_that_followed_the_free_memory_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[history.Start] = []
    monkeypatch.setattr(history, "save_start", lambda kind, start: kept.append(start))
    monkeypatch.setattr(supervisor, "Launch", PlayedLaunch)

    async def start() -> None:
        one = make_supervisor(tmp_path, [])
        one.remedies = (Remedy("gpu_memory_utilization", 0.4, lasts=False), Remedy("max_model_len", 384))
        await one.start(settled(hardware.detect()), prove=False)

    asyncio.run(start())
    assert [start.remedies for start in kept] == [(Remedy("max_model_len", 384),)]


def test_unreachable_external_server_is_reported_and_so_is_its_recovery(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor, "WATCH", 0.01)
    events: list[AnyEvent] = []
    ready = make_ready(ServerSpec((), "http://127.0.0.1:5000", "/api/version"))
    server = cast("PlayedServer", ready.server)

    async def told(count: int) -> list[type[Any]]:
        while len(events) < count:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # once is enough
        return [type(event) for event in events]

    async def serve() -> None:
        one = make_supervisor(tmp_path, events)
        serving = asyncio.ensure_future(one.keep(ready))
        assert await told(0) == []
        server.is_away = True
        assert await told(2) == [Note, Down]
        assert events[0] == Note("`http://127.0.0.1:5000` does not answer; requests wait until it does")
        assert isinstance(events[1], Down)
        assert events[1].error.message == "`http://127.0.0.1:5000` does not answer"
        server.is_away = False
        assert await told(4) == [Note, Down, Note, Serving]
        serving.cancel()

    asyncio.run(asyncio.wait_for(serve(), 10))


class PlayedSigns:
    """Signs of life that a test decides on."""

    limit, interval, waiting = 45.0, 0.01, 2
    hangs = is_stopped = False

    async def look(self) -> None: ...


def test_stopped_server_is_reported_and_so_is_its_continuation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    signs = PlayedSigns()
    monkeypatch.setattr(supervisor, "VitalSigns", lambda *_: signs)

    async def serve() -> None:
        serving = asyncio.ensure_future(make_supervisor(tmp_path, events).keep(make_ready()))
        await asyncio.sleep(0.05)
        assert events == []
        for stopped, kinds in ((True, [Note, Down]), (False, [Note, Serving])):
            events.clear()
            signs.is_stopped = stopped
            while len(events) < 2:
                await asyncio.sleep(0.01)
            assert [type(event) for event in events] == kinds
            assert not isinstance(events[1], Down) or events[1].lives
        serving.cancel()

    asyncio.run(asyncio.wait_for(serve(), 10))


class PlayedDaemon:
    """A daemon whose model was removed, and is there again once it is loaded."""

    def __init__(self, error: LlmdeployError | None = None) -> None:
        self.has = False
        self.error = error
        self.loaded: list[object] = []

    async def has_model(self, spec: ServerSpec) -> bool:
        return self.has

    async def keep_loaded(self, spec: ServerSpec) -> None: ...

    async def load(self, spec: ServerSpec, weights: object) -> None:
        if self.error is not None:
            raise self.error
        self.loaded.append((spec, weights))
        self.has = True


def test_model_that_was_removed_from_a_daemon_is_made_again(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    daemon = PlayedDaemon()

    async def serve() -> None:
        one = make_supervisor(tmp_path, events)
        one.engine.daemon = cast("Any", daemon)
        serving = asyncio.ensure_future(one.keep(make_ready()))
        one.look()  # before the time for the next look: a request was answered that there is no such model
        while len(events) < 4:
            await asyncio.sleep(0.01)
        assert not serving.done()
        serving.cancel()

    asyncio.run(asyncio.wait_for(serve(), 10))
    assert daemon.loaded == [(SPEC, "weights")]
    first, down, again, serving = events
    assert first == Note("`llamacpp` does not have `selftest` any more; it is made again")
    assert isinstance(down, Down)
    assert down.lives
    assert again == Note("it serves again")
    assert isinstance(serving, Serving)


def test_model_that_is_wholly_gone_from_a_daemon_counts_as_an_end(tmp_path: Path) -> None:
    async def serve() -> None:
        one = make_supervisor(tmp_path, [])
        one.engine.daemon = cast("Any", PlayedDaemon(ModelNotFound("it has no such model")))
        one.look()
        await one._serve(make_ready())

    with pytest.raises(ModelNotFound):
        asyncio.run(asyncio.wait_for(serve(), 10))


def test_hanging_server_counts_as_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signs = PlayedSigns()
    signs.hangs = True
    monkeypatch.setattr(supervisor, "VitalSigns", lambda *_: signs)
    server = cast("Any", PlayedServer())
    server.log_file = "server.log"

    async def serve() -> None:
        await make_supervisor(tmp_path, [])._serve(replace(make_ready(), server=server))

    with pytest.raises(ServerDied, match="the server hangs: no sign of life for 45 s while 2 requests wait"):
        asyncio.run(serve())


def test_gpu_memory_of_a_start_stays_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The memory is measured when the server is ready, whatever other servers come and go later.

    def machine(free: int) -> hardware.Hardware:
        return replace(hardware.detect(), gpus=(hardware.Gpu(0, "A", 80 * GIB, free * GIB),))

    before, ready, later = machine(40), machine(10), machine(50)
    monkeypatch.setattr(supervisor, "Launch", PlayedLaunch)

    async def start() -> None:
        one = make_supervisor(tmp_path, [])
        monkeypatch.setattr(hardware, "detect", lambda: ready)
        started = await one.start(settled(before), prove=False)
        monkeypatch.setattr(hardware, "detect", lambda: later)
        assert started.gpus == ((0, 30 * GIB),)
        assert placement.held_memory(started.server.process, started.gpus).gpus == ((0, 30 * GIB),)

    asyncio.run(start())


@pytest.mark.parametrize("is_remote", [False, True])
def test_server_is_ready_when_it_has_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_remote: bool) -> None:
    asked: list[ServerSpec] = []
    monkeypatch.setattr(supervisor, "Launch", PlayedLaunch)
    monkeypatch.setattr(supervisor, "require_answer", lambda spec, seconds: asked.append(spec))
    events: list[AnyEvent] = []
    spec = replace(SPEC, is_remote=is_remote)

    async def start() -> None:
        ready = await make_supervisor(tmp_path, events).start(replace(settled(hardware.detect()), spec=spec))
        assert ready.server.is_ready
        assert type(events[-1]) is Serving

    asyncio.run(start())
    assert asked == ([] if is_remote else [spec]), "an answer of another machine may cost money"


@pytest.mark.parametrize("has_ended", [False, True])
def test_server_that_answers_nothing_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_ended: bool
) -> None:
    server = PlayedServer()

    def refuse(spec: ServerSpec, seconds: float) -> None:
        assert not server.is_ready
        if has_ended:
            server.exit.set_result(Exited(1))
            monkeypatch.setattr(PlayedServer, "raise_if_over", ended)
        raise StartFailed("the server answers no question: refused", "")

    def ended(_: object) -> None:
        raise StartFailed("the server ended before it was ready: no memory", "")

    monkeypatch.setattr(supervisor, "Launch", PlayedLaunch)
    monkeypatch.setattr(PlayedLaunch, "start", lambda *_: server)
    monkeypatch.setattr(supervisor, "require_answer", refuse)
    monkeypatch.setattr(supervisor, "ENDING", 0.01)
    events: list[AnyEvent] = []

    async def start() -> None:
        await make_supervisor(tmp_path, events).start(settled(hardware.detect()))

    with pytest.raises(StartFailed) as caught:
        asyncio.run(start())
    message = "ended before it was ready: no memory" if has_ended else "answers no question: refused"
    assert caught.value.message == f"the server {message}"
    assert has_ended or caught.value.hint == f"its log is `{tmp_path / 'server.log'}`"
    assert not any(isinstance(event, Serving) for event in events)


class WaitingStarter(Starter):
    """A starter whose daemon never answers."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.begun, self.stopped = threading.Event(), threading.Event()

    def reach_engine(self, wishes: object) -> None:
        self.begun.set()
        assert self.stopped.wait(10), "it was not stopped"
        raise StartFailed("the daemon ended", "")

    def stop(self) -> None:
        self.stopped.set()


def test_cancelled_start_ends_the_daemon_that_its_thread_waits_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "Starter", WaitingStarter)

    async def call_off() -> WaitingStarter:
        one = make_supervisor(tmp_path, [])
        starter = cast("WaitingStarter", one._launch.starter)
        preparing = asyncio.ensure_future(one.prepare())
        await in_thread(lambda: starter.begun.wait(10))
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing
        return starter

    assert asyncio.run(call_off()).stopped.is_set()


class PlayedEngine:
    """An engine whose model takes its time to be released."""

    name = "played"

    def __init__(self) -> None:
        self.released: list[str] = []
        self.daemon = self

    async def load(self, spec: ServerSpec, weights: object) -> None: ...

    def release(self, base_url: str, served_name: str) -> None:
        self.released.append(served_name)
        time.sleep(0.2)


class EndingServer(PlayedServer):
    """A server that ends as soon as it is stopped."""

    def stop(self) -> None:
        if not self.exit.done():
            self.exit.set_result(Exited(0))


def test_two_threads_that_stop_a_server_release_its_model_once(tmp_path: Path) -> None:
    # The first was cancelled while it waited; the second must not release what a third has loaded meanwhile.
    engine = PlayedEngine()
    one = Starter(cast("Any", engine), lambda event: None, tmp_path / "log", 10)
    one.server = cast("RunningServer", EndingServer())
    asyncio.run(one.load(SPEC, cast("Any", "weights")))
    others = [threading.Thread(target=one.stop) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert engine.released == ["selftest"]


def test_cancelled_download_ends_with_its_next_piece(tmp_path: Path) -> None:
    events: list[Public] = []
    starter = Starter(registry.get("llamacpp", Settings()), events.append, tmp_path / "log", 10)
    starter.emit(Download("x", 1, 2))
    starter.abandon()
    with pytest.raises(Abandoned):
        starter.emit(Download("x", 2, 2))
    assert events == [Download("x", 1, 2)]


def test_event_of_a_thread_comes_before_its_result(tmp_path: Path) -> None:
    events: list[AnyEvent] = []

    async def work() -> None:
        one = make_supervisor(tmp_path, events)
        for number in range(20):
            await in_thread(lambda number=number: one._launch.starter.enter(str(number)))  # type: ignore[misc]
            assert events[-1] == Phase(str(number))

    asyncio.run(work())


def test_abandoned_thread_does_not_keep_the_process_alive() -> None:
    never = threading.Event()

    async def leave() -> None:
        waiting = asyncio.ensure_future(in_thread(never.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    began = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - began < 5 * BUSY
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
def test_target_has_host_port_tls_and_path_of_the_address(url: str, expected: tuple[str, int, bool, str]) -> None:
    found = target_of(make_ready(ServerSpec((), url, "/health", served_name="selftest")))
    assert (found.host, found.port, found.tls, found.prefix) == expected
