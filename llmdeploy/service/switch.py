"""The switch: another deployment takes over, or everything is as it was.

check -> prepare -> prove -> commit. What fails before the commit is undone; the commit itself waits for nothing.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmdeploy import config, hardware
from llmdeploy.background import in_thread
from llmdeploy.config import edit as config_edit
from llmdeploy.errors import LlmdeployError, as_error
from llmdeploy.service import history, placement
from llmdeploy.service.events import Down, Internal, Public, Room, Started, Step
from llmdeploy.service.placement import HeldMemory, Placement
from llmdeploy.service.smoke_test import run_smoke_test

if TYPE_CHECKING:
    from llmdeploy.gateway.target import Target
    from llmdeploy.hardware import Hardware
    from llmdeploy.service.order import SwitchOrder
    from llmdeploy.service.slot import Slot
    from llmdeploy.service.stages import Prepared, Ready
    from llmdeploy.service.supervisor import Supervisor

RELEASE_SECONDS = 10.0
"""Seconds to wait until a server's memory is free, once it has ended."""
POLL = 0.25
"""Seconds between two looks at the free memory."""


@dataclass(frozen=True)
class Checked:
    """The new deployment can be served: it is all here, and there is a plan for it."""

    prepared: Prepared
    held: HeldMemory
    """The memory that the old server holds."""
    placement: Placement


class Switch:
    """One transaction on a slot, run once."""

    def __init__(self, slot: Slot, wanted: SwitchOrder) -> None:
        self._slot = slot
        self._recorder = slot.recorder
        self._wanted = wanted
        self._old = slot.supervisor
        self._new = slot.new_supervisor(wanted.order, slot.free_log, self._on_event)
        self._step = ""
        self._left = False
        """Whether the old server is no longer watched, and requests wait or are refused."""
        self._cleared = False
        """Whether the old server is gone, or about to go."""
        self._decided = False
        """Whether the switch is committed, or being undone."""

    def call_off(self, running: asyncio.Future[None]) -> None:
        """Undo the switch, unless it is done already, or being undone: that must come to its end."""
        if not self._decided:
            running.cancel()

    async def run(self) -> None:
        """Carry out the switch. Raises what kept it from being done; then the old deployment serves."""
        metrics = self._slot.metrics
        engines = (self._old.engine.name, self._wanted.order.settings.engine)
        try:
            checked = await self._check()
            ready = await self._prepare(checked)
            await self._prove(ready)
            old_target = self._commit(ready)
        except BaseException as error:
            self._decided = True
            metrics.switched(*engines, "rolled_back")
            await self._undo()
            if isinstance(error, LlmdeployError):
                raise self._explained(error) from error
            raise
        metrics.switched(*engines, "done")
        await self._finish(old_target)

    async def _check(self) -> Checked:
        """Check the engine, the weights and the memory. Nothing of the old deployment is touched."""
        self._enter("check")
        edit = config_edit.edited(self._wanted.file, self._wanted.changes)
        if edit.after != edit.before:
            config_edit.require_writable(self._wanted.file)
        held = await in_thread(self._held)
        prepared = await self._new.prepare(self._given(held))
        machine = await in_thread(hardware.detect)
        held = await in_thread(self._held)  # the download may have taken hours
        found = await in_thread(lambda: self._place(prepared, held, machine))
        found.plan.require_fit(str(self._wanted.order.model))
        self._slot.emit(Room(found.beside, found.reason))
        return Checked(prepared, held, found)

    def _held(self) -> HeldMemory:
        """Return the memory that the old server holds."""
        ready = self._slot.ready
        return HeldMemory() if ready is None else placement.held_memory(ready.server.process, ready.gpus)

    def _place(self, prepared: Prepared, held: HeldMemory, machine: Hardware) -> Placement:
        """Decide whether both servers fit at once, as the engine plans them. Raises DoesNotFit."""
        beside = self._new.plan_for(prepared, machine)
        alone = self._new.plan_for(prepared, placement.without(machine, self._given(held)))
        return placement.decide(beside, alone, shares=self._shares, allowed=self._wanted.beside)

    @property
    def _shares(self) -> bool:
        """Whether one daemon is behind both servers."""
        return self._new.engine.name == self._old.engine.name and not self._new.engine.side_by_side

    def _given(self, held: HeldMemory) -> HeldMemory:
        """Return the memory that is free once the old server is gone.

        An external daemon that serves both counts what it lets go itself.
        """
        ready = self._slot.ready
        is_external = ready is not None and ready.server.is_external
        return HeldMemory() if self._shares and is_external else held

    async def _prepare(self, checked: Checked) -> Ready:
        """Start the new server: beside the old one, or once that one is gone."""
        self._enter("prepare")
        beside = checked.placement.beside
        if not beside:
            await self._clear(checked.held)
        settled = await self._new.apply_plan(checked.prepared, checked.placement.plan if beside else None)
        return await self._new.start(settled, prove=False)

    async def _clear(self, held: HeldMemory) -> None:
        """Make requests wait, let those that run end, stop the old server, and wait until its memory is free."""
        slot = self._slot
        self._left = True
        await slot.leave()
        reason = f"switching to `{self._wanted.order.served_name}` on {self._wanted.order.settings.engine}"
        if self._wanted.hold:
            slot.route.hold(reason)
        else:
            slot.route.refuse(LlmdeployError(reason, "try again in a while", code="switching"))
        if slot.target is not None:
            await slot.drain(slot.target)
        self._cleared = True
        before = await in_thread(hardware.detect)
        await self._old.stop()
        self._recorder.update(server=None, server_url="")
        deadline = time.monotonic() + RELEASE_SECONDS
        expected = placement.without(before, held)
        while not placement.is_free(await in_thread(hardware.detect), expected) and time.monotonic() < deadline:
            await asyncio.sleep(POLL)

    async def _prove(self, ready: Ready) -> None:
        self._enter("prove")
        await in_thread(lambda: run_smoke_test(ready))
        ready.server.raise_if_over()

    def _commit(self, ready: Ready) -> Target | None:
        """Write the configuration and adopt the new server; return the target of the old one.

        Nothing in here waits, so nothing comes between. The write of the configuration is the point of no return.
        """
        self._enter("commit")
        slot, wanted = self._slot, self._wanted
        before = config_edit.texts(wanted.file, wanted.changes)
        config_edit.write(config_edit.edited(wanted.file, wanted.changes))
        self._decided = True
        order = self._old.order
        history.save_previous(
            history.PreviousDeployment(
                model=str(order.model),
                engine=order.settings.engine,
                settings=config.document(order.settings),
                file=str(wanted.file),
                changes=before,
            )
        )
        old_target = slot.target
        slot.adopt(self._new, ready)
        return old_target

    async def _finish(self, old_target: Target | None) -> None:
        """Let the requests that the old server answers end, then stop it."""
        slot = self._slot
        if not self._cleared:
            self._enter("finish")
            await slot.leave()
            slot.keep()
            if old_target is not None:
                await slot.drain(old_target)
            await self._old.stop()
        else:
            slot.keep()
        slot.dismiss(self._old)
        self._off_record()

    async def _undo(self) -> None:
        """Stop the new server, and make the old one serve again."""
        slot = self._slot
        await self._new.stop()
        slot.dismiss(self._new)
        if slot.is_stopping:
            return
        slot.emit(Step("undo"))
        if self._cleared or (self._left and not slot.serves):
            await self._restore()
        elif self._left:
            slot.point()
            slot.keep()
        self._off_record()

    async def _restore(self) -> None:
        try:
            await self._old.start_again()
        except Exception as error:  # it is tried again, and requests wait
            ended = as_error(error)
            self._slot.on_event(self._old, Down(ended))
            self._slot.keep(ended)
        else:
            self._slot.keep()

    def _off_record(self) -> None:
        with suppress(LlmdeployError):  # the disk may be full
            self._recorder.update(switch=None)

    def _explained(self, error: LlmdeployError) -> LlmdeployError:
        """Return the error with the step that failed, and what serves now."""
        record = self._recorder.record
        serves = "serves as before" if record.state == "ready" else "is being started again"
        message = f"the switch failed at the step `{self._step}`: {error.message}"
        message = f"{message}; `{record.served_name}` on {record.engine} {serves}"
        return LlmdeployError(message, error.hint, code=error.code)

    def _enter(self, step: str) -> None:
        self._step = step
        self._slot.emit(Step(step))
        self._on_record(step=step)

    def _on_record(self, **changes: Any) -> None:
        order = self._wanted.order
        known = {"engine": order.settings.engine, "model": order.served_name, **(self._recorder.record.switch or {})}
        try:
            self._recorder.update(switch={**known, **changes})
        except LlmdeployError:
            if not self._decided:
                raise  # after the commit a full disk stops nothing

    def _on_event(self, supervisor: Supervisor, event: Public | Internal) -> None:
        """Pass on an event of the new deployment; until it is adopted, its server is on record as the switch's."""
        if isinstance(event, Started) and not self._decided:
            server = event.server.process
            self._on_record(
                url=event.settled.spec.base_url,
                server=server and {"pid": server.pid, "started": server.started},
            )
        self._slot.on_event(supervisor, event)
