"""A deployment on its way: from a model's name to a server that is ready. Knows no record and no signal."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import hardware
from llmdeploy.errors import EngineMissing, LlmdeployError, ServerDied, StartFailed, TimedOut
from llmdeploy.models.reference import ModelRef, served_name
from llmdeploy.plan import Plan, Wishes
from llmdeploy.service import signals
from llmdeploy.service.attached import Attached
from llmdeploy.service.child import Child
from llmdeploy.service.health import answers_for, healthy, listens
from llmdeploy.service.log import ServerLog, open_log
from llmdeploy.service.ports import require_free_port
from llmdeploy.service.state import open_private

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine, Loaded, ServerSpec, Step
    from llmdeploy.models.facts import ModelFacts

STOP_GRACE = 3.0
"""Seconds a server has to end by itself before it is killed."""
POLL = 0.05
"""Seconds between two looks at the health of a server that starts."""
REMINDER = 5.0
"""Seconds after which a phase that goes on is mentioned again."""
READY = "ready"
KEEP = 30.0
"""Seconds between two looks at whether the model is still loaded."""


@dataclass(frozen=True)
class Order:
    """What `serve` was asked for."""

    model: ModelRef
    port: int
    wishes: Wishes
    timeout: float
    """Seconds the server may take to become ready, once it is started."""
    repair: bool = True
    """Whether a start that fails may be tried again with the number that the engine names."""
    settings: str = ""
    """The engine's own settings, in words: under others, what an earlier start has taught does not hold."""


@dataclass(frozen=True)
class Events:
    """What is told while a deployment is on its way."""

    on_phase: Callable[[str], None]
    on_wait: Callable[[str], None]
    """A phase goes on: the server's last line."""
    on_download: Callable[[str, int, int], None]
    """A file, bytes so far, bytes in all."""
    on_percent: Callable[[int], None]
    """How far the phase is."""
    on_plan: Callable[[Plan], None]
    on_loaded: Callable[[Loaded], None]


class Candidate:
    """One server for one order: `prepare`, `start`, `until_ready`, `stop`."""

    facts: ModelFacts
    spec: ServerSpec

    def __init__(self, order: Order, engine: Engine[Any], events: Events, log_file: Path) -> None:
        self.order = order
        self.engine = engine
        self.version: str | None = None
        self._events = events
        self._log_file = log_file
        self._log: ServerLog | None = None
        self._phase = ""
        self._steps: list[Step] = []
        self._progress = engine.progress()
        self._loading = False
        self._ready = False
        self._runs: Child | Attached | None = None

    def prepare(self) -> None:
        """All up to the start of the server, the engine's daemon included. Raises what keeps it from being started."""
        self._enter("checking")
        found = self.engine.status()
        if not found.usable:
            raise EngineMissing(found.detail, found.hint)
        self.version = found.version
        daemon = self.engine.daemon(self.order.wishes, self.order.port)
        if daemon is None or daemon.argv:
            require_free_port(self.order.port, self._command)
        if daemon is not None:
            self._attend(daemon)
        artefact = self._weights()
        self.facts = self.engine.facts(artefact)
        plan = self.engine.plan(self.facts, hardware.detect(), self.order.wishes)
        plan.demand_fit(str(self.order.model))
        self._events.on_plan(plan)
        name = served_name(self.order.model)
        self.spec = self.engine.server(artefact, plan, served_name=name, port=self.order.port)

    def _attend(self, daemon: ServerSpec) -> None:
        """Have the engine's daemon answer: start it, or wait until it has started."""
        self.spec = daemon
        self._enter(f"starting {self.engine.name}" if daemon.argv else f"reaching {self.engine.name}")
        self._runs = self._run()
        ended = self._runs.ended
        began = reminded = time.monotonic()
        while not healthy(daemon):
            if wait([ended], POLL).done:
                raise self._ending(ended.result())
            now = time.monotonic()
            if now > began + self.order.timeout:
                raise self._late()
            if now > reminded + REMINDER:
                reminded = now
                self._events.on_wait(self._last_line)

    def _weights(self) -> Any:
        artefact = self.engine.artefact(self.order.model)
        if not self.engine.present(artefact):
            self._enter("fetching the weights")
            self.engine.pull(artefact, self._events.on_download)
        return artefact

    @property
    def _command(self) -> str:
        return f"llmdeploy serve {shlex.quote(str(self.order.model))}"

    async def start(self) -> Child | Attached:
        """Start the server, where it does not run since `prepare`."""
        if self._runs is None:
            self._enter("starting the server")
            require_free_port(self.order.port, self._command)  # again: a download takes long enough for others to come
            self._runs = await asyncio.to_thread(self._run)
        self.ended = asyncio.wrap_future(self._runs.ended)
        return self._runs

    def _run(self) -> Child | Attached:
        """Start the server as a child, or watch the one that runs already."""
        self._log = open_log(self._log_file)
        spec = self.spec
        for file, text in spec.files.items():
            with open_private(file, os.O_TRUNC) as stream:
                stream.write(text)
        if spec.argv:
            return Child(spec.argv, spec.env, STOP_GRACE, self._line)
        return Attached(spec, self._line)

    async def until_ready(self, told: asyncio.Future[int]) -> None:
        """Return when the server answers for its model. Raises what `raise_if_over` raises, and TimedOut."""
        began = reminded = time.monotonic()
        ready = asyncio.ensure_future(self._becoming_ready())
        events: set[asyncio.Future[Any]] = {ready, self.ended, told}
        try:
            while not ready.done():
                await asyncio.wait(events, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                self.raise_if_over(told)
                self._tell_steps()
                now = time.monotonic()
                if now > began + self.order.timeout:
                    raise self._late()
                if now > reminded + REMINDER:
                    reminded = now
                    self._events.on_wait(self._last_line)
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
        while not await asyncio.to_thread(self._answers, has_loaded=loaded is not None):
            await asyncio.sleep(POLL)
        if loaded := loaded or self._progress.outcome():
            self._events.on_loaded(loaded)

    async def keep(self) -> None:
        """See to it, for as long as it serves, that the model stays where it was loaded."""
        while True:
            await asyncio.sleep(KEEP)
            with suppress(LlmdeployError):  # the next round tries again; the end of a server is seen elsewhere
                await self.engine.keep(self.spec)

    def raise_if_over(self, told: asyncio.Future[int]) -> None:
        """Raises KeyboardInterrupt when told to stop, and ServerDied or StartFailed when the server has ended."""
        if told.done():
            raise signals.interruption(told.result())
        if self.ended.done():
            raise self._ending(self.ended.result())
        if self._ready and self._progress.is_doomed:
            raise self._ending(1)

    def stop(self) -> None:
        """Give back what was taken and end the server, politely first. Does nothing where nothing was started."""
        if self._runs is None:
            return
        if self._loading and not self._runs.ended.done():
            try:
                self.engine.release(self.spec.base_url, self.spec.served_name)
            except LlmdeployError as error:
                self._line(error.message)
        self._runs.let_go()
        if not wait([self._runs.ended], STOP_GRACE + 1).done:
            self._runs.kill()
            wait([self._runs.ended], STOP_GRACE)
        if self._log:
            self._log.close()

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
        server = self._runs.server if self._runs else None
        return server is None or listens(server, self.spec.base_url)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._events.on_phase(phase)

    def _tell_steps(self) -> None:
        while self._steps:
            step = self._steps.pop(0)
            if step.phase == READY:
                continue  # that is said once it answers
            if step.phase != self._phase:
                self._enter(step.phase)
            if step.percent is not None:
                self._events.on_percent(step.percent)

    @property
    def attached(self) -> bool:
        """Whether its server is another's."""
        return isinstance(self._runs, Attached)

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
            f"give it longer with `--timeout`; its log is `{self._log_file}`",
        )

    def _ending(self, status: int) -> LlmdeployError:
        kind, when = (ServerDied, "while it served") if self._ready else (StartFailed, "before it was ready")
        diagnosis = self.engine.diagnose(self._lines, status)
        if diagnosis is not None:
            error = kind(
                f"the server ended {when}: {diagnosis.cause}", f"{diagnosis.fix}; its log is `{self._log_file}`"
            )
            error.remedy = diagnosis.remedy
            return error
        how = signals.named(-status) if status < 0 else f"status {status}"
        last = self._last_line or "it wrote nothing"
        return kind(f"the server ended {when} ({how}): {last}", f"its log is `{self._log_file}`")
