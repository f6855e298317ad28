"""A deployment on its way: from a model's name to a server that is ready. Knows no record and no signal."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import fit, hardware
from llmdeploy.background import in_thread
from llmdeploy.errors import EngineMissing, LlmdeployError, ServerDied, StartFailed, TimedOut
from llmdeploy.models.reference import ModelRef, served_name
from llmdeploy.plan import Plan, Setting, Wishes
from llmdeploy.service import signals
from llmdeploy.service.attached import Attached
from llmdeploy.service.health import answers_for, healthy, listens
from llmdeploy.service.placement import HeldMemory, without
from llmdeploy.service.ports import free_port
from llmdeploy.service.server_log import ServerLog, open_log
from llmdeploy.service.server_process import Child
from llmdeploy.service.state import open_private, unwritable

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.base import Engine, Loaded, ServerSpec, Step
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.service.process import ProcessId

STOP_GRACE = 3.0
"""Seconds a server has to end by itself before it is killed."""
POLL = 0.05
"""Seconds between two looks at the health of a server that starts."""
REMINDER = 5.0
"""Seconds after which a phase that goes on is mentioned again."""
READY = "ready"
KEEP = 30.0
"""Seconds between two looks at whether the model is still loaded."""


Event = dict[str, Any]
"""What happens on the way, as it is told to people and scripts: `event` is its kind."""
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Order:
    """What is to be served: a model, with the user's settings."""

    model: ModelRef
    settings: Settings
    repair: bool = True
    """Whether a start that fails is tried again with what the engine asks for."""

    @property
    def served_name(self) -> str:
        return served_name(self.model)

    @property
    def wishes(self) -> Wishes:
        return Wishes(self.settings.context, self.settings.parallel)

    @property
    def timeout(self) -> float:
        """Seconds the server may take to become ready, once it is started."""
        return self.settings.timeout


class Abandoned(BaseException):
    """Ends the work of a thread whose result nobody waits for. Libraries that retry on errors let it pass."""


class Launch:
    """One server for one order: `look`, `settle`, `launch`, `until_ready`, `stop`.

    What happens is told to `tell`, from whichever thread it happens in.
    """

    artefact: Any
    facts: ModelFacts
    plan: Plan
    machine: Hardware
    """As it was before the start."""
    spec: ServerSpec

    def __init__(self, order: Order, engine: Engine[Any], tell: OnEvent, log_file: Path) -> None:
        self.order = order
        self.engine = engine
        self.port = 0
        self.log_file = log_file
        self.version: str | None = None
        self.loaded: Loaded | None = None
        self._told = tell
        self._log: ServerLog | None = None
        self._phase = ""
        self._steps: list[Step] = []
        self._progress = engine.progress()
        self._loading = False
        self._ready = False
        self._abandoned = threading.Event()
        self._stopping = threading.Lock()
        self._runs: Child | Attached | None = None

    def look(self, spare: HeldMemory | None = None) -> None:
        """See to it that all it needs is here: the engine, its daemon, the weights. Raises what is missing.

        `spare`: what a server holds that goes before this one comes.
        """
        self.reach()
        self.artefact = self._weights(spare or HeldMemory())
        self.facts = self.engine.facts(self.artefact)

    def reach(self) -> None:
        """Have the engine be here, and its daemon answer. Raises EngineMissing, StartFailed, TimedOut."""
        self._enter("checking")
        found = self.engine.status()
        if not found.usable:
            raise EngineMissing(found.detail, found.hint)
        self.version = found.version
        self.port = free_port()
        daemon = self.engine.daemon(self.order.wishes, self.port)
        if daemon is not None:
            self._attend(daemon)

    def plan_for(self, machine: Hardware) -> Plan:
        """Its settings on that machine. Raises DoesNotFit."""
        return self.engine.plan(self.facts, machine, self.order.wishes)

    def settle(self, plan: Plan | None = None) -> None:
        """Take the plan, or one for the machine as it is now. Raises DoesNotFit."""
        self.machine = hardware.detect()
        self.plan = plan or self.plan_for(self.machine)
        self.plan.require_fit(str(self.order.model))
        self._tell(
            "plan",
            context=self.plan.context.value,
            parallel=self.plan.parallel.value,
            needed_bytes=self.plan.needed_bytes,
            available_bytes=self.plan.available and self.plan.available.bytes,
            settings={name: setting.value for name, setting in self.plan.settings.items()},
        )
        if self._runs is None:
            self.port = free_port()  # the fetching took long enough for others to come
        name = self.order.served_name
        self.spec = self.engine.server(self.artefact, self.plan, served_name=name, port=self.port)

    def prepare(self) -> None:
        self.look()
        self.settle()

    def _attend(self, daemon: ServerSpec) -> None:
        """Have the engine's daemon answer: start it, or wait until it has started."""
        self.spec = daemon
        self._enter(f"starting {self.engine.name}" if daemon.argv else f"reaching {self.engine.name}")
        ended = self._run().ended
        began = reminded = time.monotonic()
        while not healthy(daemon):
            if wait([ended], POLL).done:
                raise self._ending(ended.result())
            now = time.monotonic()
            if now > began + self.order.timeout:
                raise self._late()
            if now > reminded + REMINDER:
                reminded = now
                self._tell("wait", phase=self._phase, line=self._last_line)

    def _weights(self, spare: HeldMemory) -> Any:
        artefact = self.engine.artefact(self.order.model)
        if saved := self.engine.saved(artefact):
            self._tell("note", text=saved)
        if not self.engine.present(artefact):
            need = self._fetchable(artefact, without(hardware.detect(), spare))
            self._enter("fetching the weights")
            self._tell("fetching", source=need.source, bytes=need.missing, reason=need.unknown)
            self.engine.pull(
                artefact, lambda file, done, total: self._tell("download", file=file, done=done, total=total)
            )
        return artefact

    def _fetchable(self, artefact: Any, machine: Hardware) -> Requirements:
        """What is fetched, unless memory or disk cannot hold it. Raises DoesNotFit, DownloadFailed."""
        plan = fit.foreseen(self.engine, artefact, machine, self.order.wishes)
        if plan is not None:
            plan.require_fit(str(self.order.model))
        need = self.engine.need(artefact)
        need.require_room()
        return need

    def launch(self) -> None:
        """Start the server, where it does not run since `look`. Raises StateUnwritable."""
        if self._runs is None:
            self._enter("starting the server")
            self._run()

    def _run(self) -> Child | Attached:
        """Start the server as a child, or watch the one that runs already."""
        self._log = open_log(self.log_file)
        spec = self.spec
        try:
            for file, text in spec.files.items():
                with open_private(file, os.O_TRUNC) as stream:
                    stream.write(text)
            self._runs = Child(spec.argv, spec.env, STOP_GRACE, self._line) if spec.argv else Attached(spec, self._line)
        except OSError as error:
            raise unwritable(error) from error
        if self._abandoned.is_set():
            self._runs.let_go()
        return self._runs

    async def until_ready(self) -> None:
        """Return when the server answers for its model. Raises what `raise_if_over` raises, and TimedOut."""
        assert self._runs is not None
        self.ended = asyncio.wrap_future(self._runs.ended)
        began = reminded = time.monotonic()
        ready = asyncio.ensure_future(self._becoming_ready())
        events: set[asyncio.Future[Any]] = {ready, self.ended}
        try:
            while not ready.done():
                await asyncio.wait(events, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                self.raise_if_over()
                self._tell_steps()
                now = time.monotonic()
                if now > began + self.order.timeout:
                    raise self._late()
                if now > reminded + REMINDER:
                    reminded = now
                    self._tell("wait", phase=self._phase, line=self._last_line)
        finally:
            ready.cancel()
            await asyncio.wait({ready})
        ready.result()
        self._tell_steps()
        self._ready = True

    async def _becoming_ready(self) -> None:
        self._loading = True
        if not self.spec.argv:
            self._enter("loading the model")
        loaded = await self.engine.load(self.spec)
        while not await in_thread(lambda: self._answers(has_loaded=loaded is not None)):
            await asyncio.sleep(POLL)
        self.loaded = loaded or self._progress.outcome()
        if self.loaded:
            self.plan = _with_context(self.plan, self.loaded.context)
            self._tell("loaded", detail=self.loaded.detail, context=self.loaded.context)

    async def keep(self) -> None:
        """See to it, for as long as it serves, that the model stays where it was loaded."""
        while True:
            await asyncio.sleep(KEEP)
            with suppress(LlmdeployError):  # the next round tries again; the end of a server is seen elsewhere
                await self.engine.keep(self.spec)

    def raise_if_over(self) -> None:
        """Raises ServerDied or StartFailed when the server has ended."""
        if self.ended.done():
            raise self._ending(self.ended.result())
        if self._ready and self._progress.is_doomed:
            raise self._ending(1)

    @property
    def serves(self) -> bool:
        """Whether the server is ready and has not ended."""
        return self._ready and not self.ended.done()

    def abandon(self) -> None:
        """Have a thread that works for it give up."""
        self._abandoned.set()

    def stop(self) -> None:
        """Give back what was taken and end the server, politely first. Does nothing where nothing was started."""
        with self._stopping:  # one who waited for it may have been called off, and another stops it again
            if self._runs is not None:
                self._end(self._runs)
            if self._log is not None:
                self._log.close()

    def _end(self, runs: Child | Attached) -> None:
        if self._loading and not runs.ended.done():
            try:
                self.engine.release(self.spec.base_url, self.spec.served_name)
            except LlmdeployError as error:
                self._line(error.message)
        runs.let_go()
        if not wait([runs.ended], STOP_GRACE + 1).done:
            runs.kill()
            wait([runs.ended], STOP_GRACE)

    def kill(self) -> None:
        """End the server at once: a second Ctrl-C does not wait."""
        if self._runs is not None:
            self._runs.kill()

    def _answers(self, *, has_loaded: bool) -> bool:
        """Whether it is this server that answers: another program may have taken the port.

        One that `has_loaded` its model has answered for it already, and may list it by another form of its name.
        """
        if not (healthy(self.spec) and (has_loaded or answers_for(self.spec))):
            return False
        return self.server is None or listens(self.server, self.spec.base_url)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._tell("phase", phase=phase)

    def _tell(self, kind: str, **fields: Any) -> None:
        if self._abandoned.is_set():
            raise Abandoned
        self._told({"event": kind, **fields})

    def _tell_steps(self) -> None:
        while self._steps:
            step = self._steps.pop(0)
            if step.phase == READY:
                continue  # that is said once it answers
            if step.phase != self._phase:
                self._enter(step.phase)
            if step.percent is not None:
                self._tell("percent", phase=step.phase, percent=step.percent)

    @property
    def server(self) -> ProcessId | None:
        """The process, where it is one of our own."""
        return self._runs.server if self._runs else None

    @property
    def attached(self) -> bool:
        """Whether its server is another's."""
        return isinstance(self._runs, Attached)

    @property
    def away(self) -> bool:
        """Whether its server, another's, is not there for the moment: it may be started again."""
        return isinstance(self._runs, Attached) and self._runs.away

    @property
    def _last_line(self) -> str:
        return next((line for line in reversed(self._lines) if line.strip()), "")

    @property
    def _lines(self) -> list[str]:
        return list(self._log.tail) if self._log else []

    def _line(self, line: str) -> None:
        """A line of the server's. What it tells is passed on by `until_ready`: here nothing may fail."""
        if self._log:
            self._log.write(line)
        if step := self._progress.feed(line):
            self._steps.append(step)

    def _late(self) -> TimedOut:
        return TimedOut(
            f"the server was not ready after {self.order.timeout:g} s, still {self._phase}",
            f"give it longer with `--timeout`; its log is `{self.log_file}`",
        )

    def _ending(self, status: int) -> LlmdeployError:
        kind, when = (ServerDied, "while it served") if self._ready else (StartFailed, "before it was ready")
        diagnosis = self.engine.diagnose(self._lines, status)
        if diagnosis is not None:
            error = kind(
                f"the server ended {when}: {diagnosis.cause}", f"{diagnosis.fix}; its log is `{self.log_file}`"
            )
            error.remedy = diagnosis.remedy
            return error
        how = signals.named(-status) if status < 0 else f"status {status}"
        last = self._last_line or "it wrote nothing"
        return kind(f"the server ended {when} ({how}): {last}", f"its log is `{self.log_file}`")


def _with_context(plan: Plan, context: int | None) -> Plan:
    """The engine has the last word on the context."""
    if context is None or context == plan.context.value:
        return plan
    return replace(plan, context=Setting(context, "what the engine gives it"))
