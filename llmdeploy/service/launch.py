"""One start of a server, step by step: each step takes what the step before it returned.

    prepare -> Prepared -> apply_plan -> Settled -> start -> RunningServer -> wait_ready -> Loaded

It knows no record and no signal.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import hardware
from llmdeploy.background import in_thread
from llmdeploy.engines.base import plan_before_download
from llmdeploy.models import lock
from llmdeploy.models.source import commit_of
from llmdeploy.plan import Plan, Setting
from llmdeploy.service.events import Download, Fetching, Loaded, Note, OnAnyEvent, Percent, PlanApplied, Planned
from llmdeploy.service.health import answers_for, healthy, listens, reachable
from llmdeploy.service.placement import HeldMemory, without
from llmdeploy.service.ports import free_port
from llmdeploy.service.stages import Prepared, Settled
from llmdeploy.service.starter import POLL, Starter

if TYPE_CHECKING:
    from llmdeploy.engines import log_reader
    from llmdeploy.engines.base import Engine, ServerSpec
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.reference import ModelRef
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.weights import Weights
    from llmdeploy.service.order import Order
    from llmdeploy.service.running import RunningServer

READY = "ready"


class Launch:
    """One start of a server for one order."""

    def __init__(self, order: Order, engine: Engine, emit: OnAnyEvent, log_file: Path) -> None:
        """`emit` is called from whichever thread an event happens in."""
        self.order = order
        self.engine = engine
        self._emit = emit
        self.starter = Starter(engine, emit, log_file, order.timeout)

    def prepare(self, spare: HeldMemory | None = None) -> Prepared:
        """Check the engine, reach its daemon, and download the weights if they are missing. Raises what is missing.

        `spare`: memory of a server that goes before this one comes.
        """
        version = self.starter.reach_engine(self.order.wishes)
        self.engine = self.starter.engine
        weights = self._weights(spare or HeldMemory())
        return Prepared(version, weights, weights.facts())

    def _weights(self, spare: HeldMemory) -> Weights:
        emit = self.starter.emit
        weights = self.engine.resolve(self.order.model)
        for remark in remarks(self.order, weights):
            emit(Note(remark))
        if not weights.is_present():
            need = self._fetchable(weights, without(hardware.detect(), spare))
            self.starter.enter("fetching the weights")
            emit(Fetching(need.source, need.missing, need.unknown))
            weights.download(lambda file, done, total: emit(Download(file, done, total)))
        return weights

    def _fetchable(self, weights: Weights, machine: Hardware) -> Requirements:
        """Return what is downloaded, unless memory or disk cannot hold it. Raises DoesNotFit, DownloadFailed."""
        plan = plan_before_download(self.engine, weights, machine, self.order.wishes)
        if plan is not None:
            plan.require_fit(str(self.order.model))
        need = weights.requirements()
        need.require_room()
        return need

    def plan_for(self, prepared: Prepared, machine: Hardware) -> Plan:
        """Return the settings for that machine. Raises DoesNotFit."""
        return self.engine.plan(prepared.facts, machine, self.order.wishes)

    def apply_plan(self, prepared: Prepared, plan: Plan | None = None) -> Settled:
        """Take the plan, or make one for the machine as it is now. Raises DoesNotFit."""
        machine = hardware.detect()
        plan = plan or self.plan_for(prepared, machine)
        plan.require_fit(str(self.order.model))
        self.starter.emit(_planned(plan))
        self._emit(PlanApplied(plan))
        # The port is chosen now: a download takes long enough for other programs to come.
        name, port = self.order.served_name, free_port()
        spec = self.engine.server(prepared.weights, plan, served_name=name, port=port, key=secrets.token_hex(32))
        for note in spec.notes:
            self.starter.emit(Note(note))
        return Settled(prepared, plan, machine, spec)

    def start(self, settled: Settled) -> RunningServer:
        """Start the server, unless it is a daemon that runs since `prepare`. Raises StateUnwritable."""
        if self.starter.server is not None:
            return self.starter.server
        self.starter.enter("starting the server")
        return self.starter.run(settled.spec)

    async def wait_ready(self, settled: Settled, server: RunningServer) -> log_reader.Loaded | None:
        """Return when the server answers for its model. Raises ServerDied, StartFailed, TimedOut."""
        ended = asyncio.wrap_future(server.exit)
        began = reminded = time.monotonic()
        ready = asyncio.ensure_future(self._load(settled, server))
        events: set[asyncio.Future[Any]] = {ready, ended}
        try:
            while not ready.done():
                await asyncio.wait(events, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                server.raise_if_over()
                self._tell_steps(server)
                reminded = self.starter.remind(server, began, reminded)
        finally:
            ready.cancel()
            await asyncio.wait({ready})
        loaded = ready.result()
        self._tell_steps(server)
        return loaded

    async def _load(self, settled: Settled, server: RunningServer) -> log_reader.Loaded | None:
        spec = settled.spec
        if not spec.argv:
            self.starter.enter("loading the model")
        given = await self.starter.load(spec, settled.prepared.weights)
        while not await in_thread(lambda: _answers(spec, server, has_loaded=given is not None)):
            await asyncio.sleep(POLL)
        loaded = given or server.loaded()
        if loaded:
            self.starter.emit(Loaded(loaded.detail, loaded.context))
        return loaded

    def _tell_steps(self, server: RunningServer) -> None:
        for step in server.take_steps():
            if step.phase == READY:
                continue  # that is said once it answers
            if step.phase != self.starter.phase:
                self.starter.enter(step.phase)
            if step.percent is not None:
                self.starter.emit(Percent(step.phase, step.percent))


def remarks(order: Order, weights: Weights) -> tuple[str, ...]:
    """Return the sentences on where the weights come from, if that is not what the name alone says."""
    pinned = lock.note(order.model, weights.references(), order.settings)
    return tuple(filter(None, (weights.reused_from, pinned, _led_out(order.model, weights))))


def _led_out(model: ModelRef, weights: Weights) -> str:
    """Return the sentence on a file of the user's that is a link out of its folder: the folder may be a stranger's."""
    if not isinstance(model, Path):
        return ""
    for file in weights.local_files():
        target = file.resolve()
        if file.is_symlink() and not target.is_relative_to(file.parent.resolve()) and commit_of([file]) is None:
            return f"`{file}` is a link to `{target}`"
    return ""


def _planned(plan: Plan) -> Planned:
    return Planned(
        context=plan.context.value,
        parallel=plan.parallel.value,
        needed_bytes=plan.needed_bytes,
        available_bytes=plan.available.bytes if plan.available else None,
        settings={name: setting.value for name, setting in plan.settings.items()},
    )


def _answers(spec: ServerSpec, server: RunningServer, *, has_loaded: bool) -> bool:
    """Return whether it is this server that answers: another program may have taken the port.

    A server that `has_loaded` its model has answered for it already, and may list it by another form of its name.
    """
    # Its key is not sent before it is known who listens.
    if server.process is not None and not (reachable(spec) and listens(server.process, spec.base_url)):
        return False
    return healthy(spec) and (has_loaded or answers_for(spec))


def with_context(plan: Plan, context: int | None) -> Plan:
    """Return the plan with the context that the engine gives: the engine has the last word."""
    if context is None or context == plan.context.value:
        return plan
    return replace(plan, context=Setting(context, "what the engine gives it"))
