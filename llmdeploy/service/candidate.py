"""A deployment on its way: from a model's name to a server that is ready. Knows no record and no signal."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy import hardware
from llmdeploy.errors import EngineMissing, LlmdeployError, ServerDied, StartFailed, TimedOut
from llmdeploy.models.reference import ModelRef, served_name
from llmdeploy.plan import Plan, Wishes, make_plan
from llmdeploy.service import signals
from llmdeploy.service.child import Child
from llmdeploy.service.health import answers_for, healthy, listens
from llmdeploy.service.log import open_log
from llmdeploy.service.ports import require_free_port

if TYPE_CHECKING:
    from llmdeploy.engines.base import Artefact, Engine, ServerSpec

STOP_GRACE = 3.0
"""Seconds a server has to end by itself before it is killed."""
POLL = 0.05
"""Seconds between two looks at the health of a server that starts."""
REMINDER = 5.0
"""Seconds after which a phase that goes on is mentioned again."""


@dataclass(frozen=True)
class Order:
    """What `serve` was asked for."""

    model: ModelRef
    port: int
    wishes: Wishes
    mmproj: Path | None
    timeout: float
    """Seconds the server may take to become ready, once it is started."""


@dataclass(frozen=True)
class Events:
    """What is told while a deployment is on its way."""

    on_phase: Callable[[str], None]
    on_wait: Callable[[str], None]
    """A phase goes on: the server's last line."""
    on_download: Callable[[str, int, int], None]
    """A file, bytes so far, bytes in all."""
    on_plan: Callable[[Plan], None]


class Candidate:
    """One server for one order: `prepare`, `start`, `until_ready`, `stop`."""

    def __init__(self, order: Order, engine: Engine, events: Events, log_file: Path) -> None:
        self.order = order
        self.engine = engine
        self.version: str | None = None
        self._events = events
        self._log_file = log_file
        self._phase = ""
        self._passed: list[str] = []
        self._ready = False
        self._child: Child | None = None

    def prepare(self) -> None:
        """All that can be known before a process is started. Raises what keeps it from being started."""
        self._enter("checking")
        found = self.engine.status()
        if not found.installed:
            raise EngineMissing(found.detail, found.hint)
        self.version = found.version
        require_free_port(self.order.port, self._command)
        artefact = self._weights()
        facts = self.engine.facts(artefact)
        plan = make_plan(facts, hardware.detect(), self.order.wishes, on_gpu=self.engine.on_gpu)
        plan.demand_fit(str(self.order.model))
        self._events.on_plan(plan)
        name = served_name(self.order.model)
        self.spec: ServerSpec = self.engine.server(artefact, plan, served_name=name, port=self.order.port)

    @property
    def _command(self) -> str:
        return f"llmdeploy serve {shlex.quote(str(self.order.model))}"

    def _weights(self) -> Artefact:
        artefact = self.engine.artefact(self.order.model, self.order.mmproj)
        if not self.engine.present(artefact):
            self._enter("fetching the weights")
            self.engine.pull(artefact, self._events.on_download)
        return artefact

    async def start(self) -> Child:
        """Start the server."""
        self._enter("starting the server")
        require_free_port(self.order.port, self._command)  # again: a download takes long enough for others to come
        self._log = open_log(self._log_file)
        self._child = await Child.start(self.spec.argv, self.spec.env, STOP_GRACE)
        self.ended = asyncio.ensure_future(self._child.follow(self._line))
        return self._child

    async def until_ready(self, told: asyncio.Future[int]) -> None:
        """Return when the server answers for its model. Raises what `raise_if_over` raises, and TimedOut."""
        began = reminded = time.monotonic()
        while not await self._answers():
            await asyncio.wait({self.ended, told}, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
            self.raise_if_over(told)
            self._tell_passed()
            now = time.monotonic()
            if now > began + self.order.timeout:
                raise TimedOut(
                    f"the server was not ready after {self.order.timeout:g} s, still {self._phase}",
                    f"give it longer with `--timeout`; its log is `{self._log_file}`",
                )
            if now > reminded + REMINDER:
                reminded = now
                self._events.on_wait(self._log.tail[-1] if self._log.tail else "")
        self.raise_if_over(told)
        self._tell_passed()
        self._ready = True

    def raise_if_over(self, told: asyncio.Future[int]) -> None:
        """Raises KeyboardInterrupt when told to stop, and ServerDied or StartFailed when the server has ended."""
        if told.done():
            raise signals.interruption(told.result())
        if self.ended.done():
            raise self._ending(self.ended.result())

    async def stop(self) -> None:
        """End the server, politely first. Does nothing for one that was never started."""
        if self._child is None:
            return
        self._child.let_go()
        await asyncio.wait({self.ended}, timeout=STOP_GRACE + 1)
        if not self.ended.done():
            self._child.kill()
            await asyncio.wait({self.ended}, timeout=STOP_GRACE)
        self._log.close()

    def kill(self) -> None:
        """End the server at once: a second Ctrl-C does not wait."""
        if self._child is not None:
            self._child.kill()

    async def _answers(self) -> bool:
        """Whether it is this server that answers: another program may have taken the port."""
        if not (await healthy(self.spec) and await answers_for(self.spec)):
            return False
        return self._child is None or self._child.server is None or listens(self._child.server, self.order.port)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._events.on_phase(phase)

    def _tell_passed(self) -> None:
        while self._passed:
            self._enter(self._passed.pop(0))

    def _line(self, line: str) -> None:
        """A line of the server's. Phases only go forward, and are told by `until_ready`: here nothing may fail."""
        self._log.write(line)
        names = [phase.name for phase in self.spec.phases]
        at = (self._passed or [self._phase])[-1]
        for phase in self.spec.phases[names.index(at) + 1 if at in names else 0 :]:
            if phase.log_text in line:
                self._passed.append(phase.name)

    def _ending(self, status: int) -> LlmdeployError:
        kind, when = (ServerDied, "while it served") if self._ready else (StartFailed, "before it was ready")
        lines = list(self._log.tail)
        diagnosis = self.engine.diagnose(lines, status)
        if diagnosis is not None:
            return kind(
                f"the server ended {when}: {diagnosis.cause}", f"{diagnosis.fix}; its log is `{self._log_file}`"
            )
        how = signals.named(-status) if status < 0 else f"status {status}"
        last = next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
        return kind(f"the server ended {when} ({how}): {last}", f"its log is `{self._log_file}`")
