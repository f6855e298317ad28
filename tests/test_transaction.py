"""The switch in its narrow places, with servers that are played: who leaves, dies or cannot write, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmdeploy import hardware
from llmdeploy.config import Settings
from llmdeploy.engines.base import ServerSpec
from llmdeploy.errors import AlreadyServing, LlmdeployError, StartFailed, StateUnwritable, UsageError
from llmdeploy.gateway.gateway import Gateway, Limits
from llmdeploy.gateway.target import Target
from llmdeploy.models.reference import CatalogName
from llmdeploy.plan import Plan, Setting
from llmdeploy.service import service, state
from llmdeploy.service import switch as switching
from llmdeploy.service.launch import Event, Order
from llmdeploy.service.placement import HeldMemory
from llmdeploy.service.service import Service
from llmdeploy.service.supervisor import Supervisor
from llmdeploy.service.switch import Switch, SwitchOrder
from llmdeploy.units import GIB

PLAN = Plan(Setting(4096, ""), Setting(1, ""), (), None)
CONFIG = 'engine = "llamacpp"\n'


class Played:
    """A keeper whose server is played: what it does takes a turn of the loop, and what a test puts in its place."""

    def __init__(self, name: str, log_file: Path) -> None:
        self.name = name
        self.order = Order(CatalogName(name), Settings())
        self.engine = SimpleNamespace(name="llamacpp", side_by_side=True)
        self.log_file = log_file
        self.gpus: tuple[tuple[int, int], ...] = ()
        self.candidate = SimpleNamespace(
            server=None,
            attached=False,
            machine=None,
            version="1",
            log_file=log_file,
            plan=PLAN,
            plan_for=lambda _: PLAN,
            loaded=None,
            spec=ServerSpec((), "http://127.0.0.1:1", "/health", name),
            facts=SimpleNamespace(capabilities=("text",)),
            raise_if_over=lambda: None,
        )
        self.did: list[str] = []
        self.tell: Callable[[Event], None] = lambda _: None
        self.serves = True
        self.kept = 0
        self.when_left: Callable[[], None] = lambda: None

    async def _do(self, what: str) -> None:
        self.did.append(what)
        await asyncio.sleep(0)

    async def look(self, spare: HeldMemory) -> None:
        await self._do("look")

    async def settle(self, plan: Plan | None) -> None:
        await self._do("settle")

    async def start(self) -> None:
        await self._do("start")

    async def again(self) -> None:
        await self._do("again")
        self.serves = True
        self.tell({"event": "serving"})

    async def stop(self) -> None:
        await self._do("stop")
        self.serves = False

    async def keep(self, ended: LlmdeployError | None = None) -> None:
        self.kept += 1
        try:
            await asyncio.sleep(3600)
        finally:
            self.kept -= 1
            self.when_left()
            await asyncio.sleep(0)

    def target(self) -> Target:
        return Target("llamacpp", self.name, "127.0.0.1", 1)


class World:
    """A service that serves `old` and is told to switch to `new`."""

    def __init__(self, folder: Path, *, beside: bool) -> None:
        self.events: list[Event] = []
        self.old, self.new = Played("old", folder / "1.log"), Played("new", folder / "2.log")
        notices = cast("Any", SimpleNamespace(tell=self.events.append))
        self.service = service = Service(self.old.order, notices, None)
        service.gateway = Gateway(Limits())
        service._over = asyncio.get_running_loop().create_future()
        service.current = cast("Any", self.old)
        self.old.tell = lambda event: service.hear(service.current, event)
        service.keeper = lambda *_: cast("Any", self.new)  # type: ignore[method-assign]
        service.dismiss = lambda keeper: None  # type: ignore[method-assign]
        service._react({"event": "serving"})
        service.keep()
        self.file = folder / "config.toml"
        self.file.write_text(CONFIG)
        self.switch = Switch(service, SwitchOrder(self.new.order, self.file, {"model": "new"}, beside=beside))

    @property
    def points_to(self) -> str | None:
        """The model that requests go to; None while they wait."""
        status, document = self.service.gateway.route.health()
        return document["model"] if status == 200 else None

    async def run(self) -> LlmdeployError | None:
        """The switch to its end, however it ends; then no time passes but the loop's."""
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
        """All is as it was."""
        assert self.points_to == "old"
        assert self.old.kept == 1
        assert self.old.serves
        assert not self.service._over.done()
        assert self.file.read_text() == CONFIG
        record = state.read()
        assert record is not None
        assert (record.state, record.served_name, record.switch) == ("ready", "old", None)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "run_smoke_test", lambda *_: None)
    monkeypatch.setattr(switching, "holds", lambda *_: HeldMemory())
    monkeypatch.setattr(service, "provenance", lambda *_: {})


def play(folder: Path, work: Callable[[World], Awaitable[None]], *, beside: bool = True) -> None:
    async def played() -> None:
        world = World(folder, beside=beside)
        await asyncio.sleep(0)
        try:
            await work(world)
        finally:
            world.service.stopping = True
            tasks = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(played())


async def fail(*_: object) -> None:
    raise StartFailed("no luck", "")


@pytest.mark.parametrize("beside", [True, False])
def test_it_is_done(tmp_path: Path, beside: bool) -> None:
    async def work(world: World) -> None:
        assert await world.run() is None
        assert world.points_to == "new"
        assert (world.old.kept, world.new.kept, world.old.serves) == (0, 1, False)
        assert world.file.read_text() == 'engine = "llamacpp"\nmodel = "new"\n'
        record = state.read()
        assert record is not None
        assert (record.served_name, record.switch) == ("new", None)

    play(tmp_path, work, beside=beside)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("step", ["look", "settle", "start"])
def test_a_step_that_fails_is_undone(tmp_path: Path, step: str, beside: bool) -> None:
    async def work(world: World) -> None:
        setattr(world.new, step, fail)
        error = await world.run()
        assert error is not None
        assert error.message.endswith(": no luck; `old` on llamacpp serves as before")
        await world.require_old()

    play(tmp_path, work, beside=beside)


def test_who_leaves_while_it_is_undone_does_not_keep_the_old_server_from_coming_back(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.new.start = fail  # type: ignore[method-assign]
        again = world.old.again

        async def left() -> None:
            world.client_leaves()
            await again()

        world.old.again = left  # type: ignore[method-assign]
        assert "no luck" in str(await world.run())
        await world.require_old()

    play(tmp_path, work, beside=False)


def test_who_leaves_as_the_old_server_is_let_go_of_leaves_it_kept(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.old.when_left = world.client_leaves
        assert await world.run() is None
        assert world.running.cancelled()
        await world.require_old()

    play(tmp_path, work, beside=False)


def test_an_old_server_that_is_down_when_it_is_let_go_of_is_started_again(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        def dies() -> None:
            world.old.serves = False
            world.client_leaves()

        world.old.when_left = dies
        await world.run()
        assert "again" in world.old.did
        assert world.old.kept == 1
        assert world.old.serves

    play(tmp_path, work, beside=False)


@pytest.mark.parametrize("kind", [StartFailed, RuntimeError])
def test_an_old_server_that_does_not_come_back_is_said_to_be_started_again(tmp_path: Path, kind: Any) -> None:
    async def broken() -> None:
        raise kind("it does not start", "")

    async def work(world: World) -> None:
        world.new.start, world.old.again = fail, broken  # type: ignore[method-assign]
        error = await world.run()
        assert error is not None
        assert error.message.endswith("`old` on llamacpp is being started again")
        assert world.points_to is None
        assert world.old.kept == 1
        record = state.read()
        assert record is not None
        assert record.state == "starting"

    play(tmp_path, work, beside=False)


def test_a_disk_that_is_full_after_the_commit_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write, full = state.write, [False]

    def written(record: state.Record) -> None:
        if full[0]:
            raise StateUnwritable("the disk is full", "")
        write(record)

    monkeypatch.setattr(state, "write", written)
    monkeypatch.setattr(service, "RECORD_WATCH", 0.01)

    async def work(world: World) -> None:
        target = world.new.target

        def committing() -> Target:
            full[0] = True
            return target()

        world.new.target = committing  # type: ignore[method-assign]
        assert await world.run() is None
        assert world.points_to == "new"
        assert (world.old.kept, world.new.kept, world.old.serves) == (0, 1, False)
        full[0] = False
        watching = asyncio.ensure_future(world.service._watch())
        for _ in range(200):
            record = state.read()
            if record is not None and record.served_name == "new":
                break
            await asyncio.sleep(0.01)
        watching.cancel()
        assert record is not None
        assert (record.served_name, record.switch) == ("new", None)

    play(tmp_path, work)


def test_a_full_disk_does_not_end_a_server_that_was_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_: object) -> None:
        raise StateUnwritable("the disk is full", "")

    async def work(world: World) -> None:
        monkeypatch.setattr(state, "write", full)
        service, keeper = world.service, cast("Supervisor", world.old)
        service.hear(keeper, {"event": "down", "error": StartFailed("it ended", "")})
        assert world.points_to is None
        service.hear(keeper, {"event": "started"})
        service.hear(keeper, {"event": "serving"})
        assert world.points_to == "old"

    play(tmp_path, work)


@pytest.mark.parametrize(("attached", "given"), [(True, 0), (False, GIB)])
def test_what_a_daemon_lets_go_by_itself_is_not_counted_twice(tmp_path: Path, attached: bool, given: int) -> None:
    machine = hardware.detect()
    machine = replace(machine, gpus=(hardware.Gpu(0, "A", 24 * GIB, 4 * GIB),))
    planned: list[int] = []

    def plan_for(on: hardware.Hardware) -> Plan:
        planned.append((on.gpus[0].memory_free or 0) - 4 * GIB)
        return PLAN

    async def work(world: World) -> None:
        world.old.candidate.attached = attached
        world.new.engine.side_by_side = False
        world.new.candidate.plan_for = plan_for
        world.switch._new, world.switch._holds = cast("Any", world.new), HeldMemory(0, ((0, GIB),))
        assert not world.switch._room_for(machine).beside

    play(tmp_path, work)
    assert planned == [0, given]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"settings": [], "model": "x"}', b'{"settings": {}, "model": 5}'])
def test_an_order_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(UsageError, match="does not understand"):
        SwitchOrder.read(body)


def test_a_service_that_stops_begins_nothing(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.service.orders._require_turn()
        world.service.stopping = True
        with pytest.raises(AlreadyServing, match="the service is stopping"):
            world.service.orders._require_turn()

    play(tmp_path, work)
