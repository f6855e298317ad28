"""The switch: another deployment takes over, or everything is as it was.

check -> prepare -> prove -> commit. What fails before the commit is undone; the commit itself waits for nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import config, hardware
from llmdeploy.background import in_thread
from llmdeploy.config import edit as config_edit
from llmdeploy.errors import LlmdeployError, StartFailed, UsageError
from llmdeploy.models.reference import parse
from llmdeploy.service import placement, previous
from llmdeploy.service.launch import Event, Order
from llmdeploy.service.placement import HeldMemory, Placement
from llmdeploy.service.previous import PreviousDeployment
from llmdeploy.service.smoke_test import run_smoke_test

if TYPE_CHECKING:
    from llmdeploy.gateway.target import Target
    from llmdeploy.hardware import Hardware
    from llmdeploy.service.service import Service
    from llmdeploy.service.supervisor import Supervisor

RELEASE_SECONDS = 10.0
"""For a server's memory to be free once it has ended."""
POLL = 0.25


@dataclass(frozen=True)
class SwitchOrder:
    """What is to serve, and what is then written."""

    order: Order
    file: Path
    """The configuration file."""
    changes: dict[str, str | None]
    """Its keys that change; None for one that goes."""
    hold: bool = True
    """Whether requests wait where they cannot be answered meanwhile, or are refused."""
    beside: bool = True
    """Whether the new server may start beside the old one."""

    @classmethod
    def read(cls, body: bytes) -> SwitchOrder:
        """From the order of a command. Raises UsageError, ConfigError."""
        try:
            content = json.loads(body)
            settings = config.from_document(content["settings"])
            order = Order(parse(content["model"]), settings, bool(content["repair"]))
            return cls(
                order, Path(content["file"]), dict(content["changes"]), bool(content["hold"]), bool(content["beside"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            hint = "`llmdeploy stop`, then serve again"
            raise UsageError("the service does not understand this order", hint) from None

    def written(self) -> bytes:
        """As `read` takes it."""
        content = {
            "settings": config.document(self.order.settings),
            "model": str(self.order.model),
            "repair": self.order.repair,
            "hold": self.hold,
            "beside": self.beside,
            "file": str(self.file),
            "changes": self.changes,
        }
        return json.dumps(content).encode()


class Switch:
    """One transaction, run once."""

    def __init__(self, service: Service, wanted: SwitchOrder) -> None:
        self._service = service
        self._wanted = wanted
        self._old = service.current
        self._step = ""
        self._left = False
        """The old server is watched no more, and requests wait or are refused."""
        self._cleared = False
        """The old server is gone, or about to go."""
        self._decided = False
        """It is committed, or being undone."""

    def call_off(self, running: asyncio.Future[None]) -> None:
        """Undo it, unless it is done already, or being undone: that must come to its end."""
        if not self._decided:
            running.cancel()

    async def run(self) -> None:
        """Raises what kept it from being done; then the old deployment serves."""
        service, old = self._service, self._old
        engines = (old.engine.name, self._wanted.order.settings.engine)
        self._new = service.keeper(self._wanted.order, service.free_log, self._hear)
        try:
            await self._check()
            await self._prepare()
            await self._prove()
            self._commit()
        except BaseException as error:
            self._decided = True
            service.gateway.metrics.switched(*engines, "rolled_back")
            await self._undo()
            if isinstance(error, LlmdeployError):
                raise self._told(error) from error
            raise
        service.gateway.metrics.switched(*engines, "done")
        await self._finish()

    async def _check(self) -> None:
        """The engine, the weights, the room. Nothing of the old deployment is touched."""
        self._enter("check")
        edit = config_edit.edited(self._wanted.file, self._wanted.changes)
        if edit.after != edit.before:
            config_edit.require_writable(self._wanted.file)
        self._holds = await in_thread(lambda: holds(self._old))
        await self._new.look(self._given)
        machine = await in_thread(hardware.detect)
        self._holds = await in_thread(lambda: holds(self._old))  # the fetching may have taken hours
        self._room = await in_thread(lambda: self._room_for(machine))
        self._room.plan.require_fit(str(self._wanted.order.model))
        self._service.tell({"event": "room", "beside": self._room.beside, "reason": self._room.reason})

    def _room_for(self, machine: Hardware) -> Placement:
        """Whether both fit, as the engine plans them. Raises DoesNotFit."""
        new = self._new
        beside = new.candidate.plan_for(machine)
        alone = new.candidate.plan_for(placement.without(machine, self._given))
        return placement.decide(beside, alone, shares=self._shares, allowed=self._wanted.beside)

    @property
    def _shares(self) -> bool:
        """Whether one daemon is behind both."""
        return self._new.engine.name == self._old.engine.name and not self._new.engine.side_by_side

    @property
    def _given(self) -> HeldMemory:
        """What the old server gives back when it goes; a daemon of another's counts what it lets go itself."""
        return HeldMemory() if self._shares and self._old.candidate.attached else self._holds

    async def _prepare(self) -> None:
        """Start the new server: beside the old one, or once that one is gone."""
        self._enter("prepare")
        if not self._room.beside:
            await self._clear()
        await self._new.settle(self._room.plan if self._room.beside else None)
        await self._new.start()

    async def _clear(self) -> None:
        """Have requests wait, let those that run end, stop the old server, and wait until its memory is free."""
        service = self._service
        self._left = True
        await service.leave()
        reason = f"switching to `{self._wanted.order.served_name}` on {self._wanted.order.settings.engine}"
        if self._wanted.hold:
            service.gateway.route.hold(reason)
        else:
            service.gateway.route.refuse(LlmdeployError(reason, "try again in a while", code="switching"))
        await self._drain(service.target)
        self._cleared = True
        before = await in_thread(hardware.detect)
        await self._old.stop()
        service.update(server=None, server_url="")
        deadline = time.monotonic() + RELEASE_SECONDS
        expected = placement.without(before, self._holds)
        while not placement.is_free(await in_thread(hardware.detect), expected) and time.monotonic() < deadline:
            await asyncio.sleep(POLL)

    async def _drain(self, target: Target) -> None:
        """Let the requests end that are with a server."""
        seconds = self._service.order.settings.gateway.drain_timeout
        if cut := await self._service.gateway.route.drain(target, seconds):
            requests = "1 request" if cut == 1 else f"{cut} requests"
            self._service.tell({"event": "note", "text": f"{requests} had not ended after {seconds:g} s: cut"})

    async def _prove(self) -> None:
        self._enter("prove")
        new = self._new.candidate
        await in_thread(lambda: run_smoke_test(self._new.engine, new))
        new.raise_if_over()

    def _commit(self) -> None:
        """Nothing in here waits, so nothing comes between. The write of the configuration is the point of no return."""
        self._enter("commit")
        service, wanted = self._service, self._wanted
        before = config_edit.texts(wanted.file, wanted.changes)
        config_edit.write(config_edit.edited(wanted.file, wanted.changes))
        self._decided = True
        order = self._old.order
        previous.save(
            PreviousDeployment(
                model=str(order.model),
                engine=order.settings.engine,
                settings=config.document(order.settings),
                file=str(wanted.file),
                changes=before,
            )
        )
        self._old_target = service.target
        service.adopt(self._new)

    async def _finish(self) -> None:
        """Let the requests that the old server answers end, then stop it."""
        service = self._service
        if not self._cleared:
            self._enter("finish")
            await service.leave()
            service.keep()
            await self._drain(self._old_target)
            await self._old.stop()
        else:
            service.keep()
        service.dismiss(self._old)
        self._off_record()

    async def _undo(self) -> None:
        """The new server goes, and the old one serves again."""
        service = self._service
        await self._new.stop()
        service.dismiss(self._new)
        if service.stopping:
            return
        self._service.tell({"event": "step", "step": "undo"})
        if self._cleared or (self._left and not self._old.serves):
            await self._restore()
        elif self._left:
            service.gateway.route.point(service.target)
            service.keep()
        self._off_record()

    async def _restore(self) -> None:
        try:
            await self._old.again()
        except Exception as error:  # it is tried again, and requests wait; another time it ends the service
            bug = StartFailed(f"this is a bug in llmdeploy: {error!r}", "`llmdeploy status`", code="internal")
            ended = error if isinstance(error, LlmdeployError) else bug
            self._service.hear(self._old, {"event": "down", "error": ended})
            self._service.keep(ended)
        else:
            self._service.keep()

    def _off_record(self) -> None:
        with suppress(LlmdeployError):  # the disk may be full
            self._service.update(switch=None)

    def _told(self, error: LlmdeployError) -> LlmdeployError:
        record = self._service.record
        serves = "serves as before" if record.state == "ready" else "is being started again"
        message = f"the switch failed at the step `{self._step}`: {error.message}"
        message = f"{message}; `{record.served_name}` on {record.engine} {serves}"
        return LlmdeployError(message, error.hint, code=error.code)

    def _enter(self, step: str) -> None:
        self._step = step
        self._service.tell({"event": "step", "step": step})
        self._on_record(step=step)

    def _on_record(self, **changes: Any) -> None:
        order = self._wanted.order
        known = {"engine": order.settings.engine, "model": order.served_name, **(self._service.record.switch or {})}
        try:
            self._service.update(switch={**known, **changes})
        except LlmdeployError:
            if not self._decided:
                raise  # after the commit a full disk stops nothing

    def _hear(self, keeper: Supervisor, event: Event) -> None:
        """Of the new deployment: on record by its switch, until it is adopted."""
        if event["event"] == "started" and not self._decided:
            server = keeper.candidate.server
            self._on_record(
                url=keeper.candidate.spec.base_url,
                server=server and {"pid": server.pid, "started": server.started},
            )
        self._service.hear(keeper, event)


def holds(keeper: Supervisor) -> HeldMemory:
    """What a keeper's server holds of the machine."""
    return placement.held_memory(keeper.candidate.server, keeper.gpus)
