"""The switch at its critical moments, with played servers: a client leaves, a server dies, a disk is full."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from llmdeploy import hardware
from llmdeploy.config import Settings
from llmdeploy.engines import registry
from llmdeploy.engines.base import ServerSpec
from llmdeploy.errors import AlreadyServing, LlmdeployError, StartFailed, StateUnwritable, UsageError
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.reference import CatalogName
from llmdeploy.plan import Plan, Setting
from llmdeploy.service import recorder, slot, state
from llmdeploy.service import switch as switching
from llmdeploy.service.events import Down, Internal, Public, Room, Serving, Started
from llmdeploy.service.order import Order, SwitchOrder
from llmdeploy.service.placement import HeldMemory
from llmdeploy.service.running import RunningServer
from llmdeploy.service.service import Service
from llmdeploy.service.stages import Prepared, Ready, Settled
from llmdeploy.service.supervisor import Supervisor
from llmdeploy.service.switch import Switch
from llmdeploy.units import GIB

PLAN = Plan(Setting(4096, ""), Setting(1, ""), (), None)
CONFIG = 'engine = "llamacpp"\n'


FACTS = ModelFacts("llama", 1, (1,), 1, 1, 1, 1, 1)


class PlayedServer:
    """A server without a process; a test decides whether it serves."""

    process = None

    def __init__(self, log_file: Path, *, is_external: bool = False) -> None:
        self.log_file = log_file
        self.is_external = is_external
        self.serves = True

    def raise_if_over(self) -> None: ...


class PlayedSupervisor(Supervisor):
    """A supervisor of a played server: each step takes a turn of the event loop, and a test may replace any method."""

    def __init__(self, name: str, log_file: Path) -> None:
        settings = Settings()
        super().__init__(
            Order(CatalogName(name), settings), registry.get("llamacpp", settings), self._pass_on, log_file
        )
        self.name = name
        self.did: list[str] = []
        self.on_event: Callable[[Public | Internal], None] = lambda _: None
        self.kept = 0
        self.when_left: Callable[[], None] = lambda: None
        self.server = PlayedServer(log_file)
        prepared = Prepared("1", "weights", FACTS)
        spec = ServerSpec((), "http://127.0.0.1:1", "/health", name)
        self.settled = Settled(prepared, PLAN, hardware.detect(), spec)
        self.ready = Ready(
            self.order, self.engine, prepared, PLAN, spec, cast("RunningServer", self.server), None, 0.0, ()
        )

    def _pass_on(self, event: Public | Internal) -> None:
        self.on_event(event)

    async def _do(self, what: str) -> None:
        self.did.append(what)
        await asyncio.sleep(0)

    async def prepare(self, spare: HeldMemory | None = None) -> Prepared:
        await self._do("prepare")
        return self.settled.prepared

    def plan_for(self, prepared: Prepared, machine: hardware.Hardware) -> Plan:
        return PLAN

    async def apply_plan(self, prepared: Prepared, plan: Plan | None = None) -> Settled:
        await self._do("apply_plan")
        return self.settled

    async def start(self, settled: Settled, *, prove: bool = True) -> Ready:
        await self._do("start")
        return self.ready

    async def start_again(self) -> Ready:
        await self._do("start_again")
        self.server.serves = True
        self.on_event(Serving(self.ready))
        return self.ready

    async def stop(self) -> None:
        await self._do("stop")
        self.server.serves = False

    async def keep(self, ready: Ready, ended: LlmdeployError | None = None) -> None:
        self.kept += 1
        try:
            await asyncio.sleep(3600)
        finally:
            self.kept -= 1
            self.when_left()
            await asyncio.sleep(0)


class Events:
    """A listener that keeps the events."""

    def __init__(self) -> None:
        self.all: list[Public] = []

    def on_event(self, event: Public, elapsed: float) -> None:
        self.all.append(event)

    def on_ready(self, record: state.Record, elapsed: float) -> None: ...

    def on_stop(self) -> None: ...


class World:
    """A service that serves `old` and is told to switch to `new`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, beside: bool) -> None:
        self.events = Events()
        self.old, self.new = PlayedSupervisor("old", folder / "1.log"), PlayedSupervisor("new", folder / "2.log")
        played = iter((self.old, self.new))
        monkeypatch.setattr(slot, "Supervisor", lambda *_: next(played))
        self.service = Service(self.old.order, self.events, None)
        self.slot = self.service.slot
        self.old.on_event = lambda event: self.slot.on_event(self.old, event)
        self.slot.on_event(self.old, Serving(self.old.ready))
        self.slot.keep()
        self.file = folder / "config.toml"
        self.file.write_text(CONFIG)
        self.switch = Switch(self.slot, SwitchOrder(self.new.order, self.file, {"model": "new"}, beside=beside))

    @property
    def points_to(self) -> str | None:
        """The model that requests go to; None while requests wait."""
        status, document = self.service.gateway.route.health()
        return document["model"] if status == 200 else None

    async def run(self) -> LlmdeployError | None:
        """Run the switch to its end, and return its error; then let the event loop turn a few times."""
        self.running = asyncio.ensure_future(self.switch.run())
        await asyncio.wait({self.running})
        for _ in range(5):
            await asyncio.sleep(0)
        if self.running.cancelled():
            return None
        return cast("LlmdeployError | None", self.running.exception())

    def client_leaves(self) -> None:
        self.switch.call_off(self.running)

    async def require_old(self) -> None:
        """Assert that all is as it was before the switch."""
        assert self.points_to == "old"
        assert self.old.kept == 1
        assert self.old.server.serves
        assert not self.service.over.done()
        assert self.file.read_text() == CONFIG
        record = state.read()
        assert record is not None
        assert (record.state, record.served_name, record.switch) == ("ready", "old", None)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "run_smoke_test", lambda *_: None)
    monkeypatch.setattr(slot, "provenance", lambda *_: {})


def play(
    folder: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[World], Awaitable[None]], *, beside: bool = True
) -> None:
    async def played() -> None:
        world = World(folder, monkeypatch, beside=beside)
        await asyncio.sleep(0)
        try:
            await work(world)
        finally:
            world.slot.is_stopping = True
            tasks = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(played())


async def fail(*_: object, **__: object) -> None:
    raise StartFailed("no luck", "")


@pytest.mark.parametrize("beside", [True, False])
def test_switch_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    async def work(world: World) -> None:
        assert await world.run() is None
        assert world.points_to == "new"
        assert (world.old.kept, world.new.kept, world.old.server.serves) == (0, 1, False)
        assert world.file.read_text() == 'engine = "llamacpp"\nmodel = "new"\n'
        record = state.read()
        assert record is not None
        assert (record.served_name, record.switch) == ("new", None)

    play(tmp_path, monkeypatch, work, beside=beside)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("step", ["prepare", "apply_plan", "start"])
def test_failed_step_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, beside: bool) -> None:
    async def work(world: World) -> None:
        setattr(world.new, step, fail)
        error = await world.run()
        assert error is not None
        assert error.message.endswith(": no luck; `old` on llamacpp serves as before")
        await world.require_old()

    play(tmp_path, monkeypatch, work, beside=beside)


def test_old_server_comes_back_even_if_the_client_leaves_during_the_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(world: World) -> None:
        world.new.start = fail  # type: ignore[method-assign]
        again = world.old.start_again

        async def left() -> Ready:
            world.client_leaves()
            return await again()

        world.old.start_again = left  # type: ignore[method-assign]
        assert "no luck" in str(await world.run())
        await world.require_old()

    play(tmp_path, monkeypatch, work, beside=False)


def test_client_that_leaves_early_leaves_the_old_server_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(world: World) -> None:
        world.old.when_left = world.client_leaves
        assert await world.run() is None
        assert world.running.cancelled()
        await world.require_old()

    play(tmp_path, monkeypatch, work, beside=False)


def test_old_server_that_dies_as_the_client_leaves_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(world: World) -> None:
        def dies() -> None:
            world.old.server.serves = False
            world.client_leaves()

        world.old.when_left = dies
        await world.run()
        assert "start_again" in world.old.did
        assert world.old.kept == 1
        assert world.old.server.serves

    play(tmp_path, monkeypatch, work, beside=False)


@pytest.mark.parametrize("kind", [StartFailed, RuntimeError])
def test_old_server_that_fails_to_start_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    async def broken() -> None:
        raise kind("it does not start", "")

    async def work(world: World) -> None:
        world.new.start, world.old.start_again = fail, broken  # type: ignore[method-assign]
        error = await world.run()
        assert error is not None
        assert error.message.endswith("`old` on llamacpp is being started again")
        assert world.points_to is None
        assert world.old.kept == 1
        record = state.read()
        assert record is not None
        assert record.state == "starting"

    play(tmp_path, monkeypatch, work, beside=False)


def test_full_disk_after_the_commit_does_not_undo_the_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write, full = state.write, [False]

    def written(record: state.Record) -> None:
        if full[0]:
            raise StateUnwritable("the disk is full", "")
        write(record)

    monkeypatch.setattr(state, "write", written)
    monkeypatch.setattr(recorder, "RECORD_WATCH", 0.01)

    async def work(world: World) -> None:
        adopt = world.slot.adopt

        def committing(supervisor: Supervisor, ready: Ready) -> None:
            full[0] = True
            adopt(supervisor, ready)

        world.slot.adopt = committing  # type: ignore[method-assign]
        assert await world.run() is None
        assert world.points_to == "new"
        assert (world.old.kept, world.new.kept, world.old.server.serves) == (0, 1, False)
        full[0] = False
        watching = asyncio.ensure_future(world.service.recorder.watch())
        for _ in range(200):
            record = state.read()
            if record is not None and record.served_name == "new":
                break
            await asyncio.sleep(0.01)
        watching.cancel()
        assert record is not None
        assert (record.served_name, record.switch) == ("new", None)

    play(tmp_path, monkeypatch, work)


def test_full_disk_does_not_end_a_restarted_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_: object) -> None:
        raise StateUnwritable("the disk is full", "")

    async def work(world: World) -> None:
        monkeypatch.setattr(state, "write", full)
        world.old.on_event(Down(StartFailed("it ended", "")))
        assert world.points_to is None
        world.old.on_event(Started(world.old.settled, world.old.ready.server))
        world.old.on_event(Serving(world.old.ready))
        assert world.points_to == "old"

    play(tmp_path, monkeypatch, work)


@pytest.mark.parametrize(("is_external", "given"), [(True, 0), (False, GIB)])
def test_memory_that_a_daemon_lets_go_by_itself_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_external: bool, given: int
) -> None:
    machine = replace(hardware.detect(), gpus=(hardware.Gpu(0, "A", 24 * GIB, 4 * GIB),))
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    monkeypatch.setattr(switching, "RELEASE_SECONDS", 0.2)
    planned: list[int] = []

    def plan_for(prepared: Prepared, on: hardware.Hardware) -> Plan:
        planned.append((on.gpus[0].memory_free or 0) - 4 * GIB)
        return PLAN

    async def work(world: World) -> None:
        world.old.server.is_external = is_external
        world.slot.ready = replace(world.old.ready, gpus=((0, GIB),))
        monkeypatch.setattr(type(world.new.engine), "side_by_side", False)
        world.new.plan_for = plan_for  # type: ignore[method-assign]
        assert await world.run() is None
        [room] = [event for event in world.events.all if isinstance(event, Room)]
        assert not room.beside

    play(tmp_path, monkeypatch, work)
    assert planned == [0, given]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"settings": [], "model": "x"}', b'{"settings": {}, "model": 5}'])
def test_malformed_order_is_refused(body: bytes) -> None:
    with pytest.raises(UsageError, match="does not understand"):
        SwitchOrder.from_json(body)


def test_stopping_service_begins_no_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        world.service.control.require_turn()
        world.slot.is_stopping = True
        with pytest.raises(AlreadyServing, match="the service is stopping"):
            world.service.control.require_turn()

    play(tmp_path, monkeypatch, work)
