"""One deployment, from the model's name to its end: check, prepare, start, watch, stop.

`serve` is what the service is. It holds the lock, writes the record and keeps the server for as long as it runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmdeploy import hardware
from llmdeploy.errors import LlmdeployError, ServerDied, StartFailed, TimedOut
from llmdeploy.models.reference import ModelRef, served_name
from llmdeploy.plan import Plan, Wishes, make_plan
from llmdeploy.service import signals, state
from llmdeploy.service.child import Child
from llmdeploy.service.log import ServerLog
from llmdeploy.service.ports import require_free_port
from llmdeploy.service.process import identify, kill_group, wait_gone
from llmdeploy.service.state import Record

if TYPE_CHECKING:
    from llmdeploy.engines.base import Artefact, Engine, OnProgress, ServerSpec

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
    """Seconds the server may take to become ready."""


@dataclass(frozen=True)
class Events:
    """What the service tells while it works. `elapsed` is in seconds since the start."""

    on_phase: Callable[[str, float], None]
    on_wait: Callable[[str, float, str], None]
    """A phase that goes on: its name, elapsed, the server's last line."""
    on_download: OnProgress
    on_plan: Callable[[Plan], None]
    on_ready: Callable[[Record, float], None]
    on_stop: Callable[[], None]
    """Told to stop, and about to."""


def serve(order: Order, engine: Engine, events: Events) -> None:
    """Serve until told to stop.

    Raises KeyboardInterrupt when interrupted, Terminated when told to stop, and an LlmdeployError for everything that
    keeps the deployment from serving; that one stays on record.
    """
    with signals.interrupting(), state.lock():
        service = _Service(order, engine, events)
        try:
            asyncio.run(service.run(service.prepare()))
        except LlmdeployError as error:
            with suppress(LlmdeployError):  # the first failure is the one to tell
                service.update(state="failed", error=error.as_document())
            raise
        except KeyboardInterrupt:
            state.forget()
            raise


@dataclass
class _Service:
    order: Order
    engine: Engine
    events: Events
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        end_leftover()
        itself = identify(os.getpid())
        assert itself is not None
        self.record = Record(
            state="starting",
            phase="checking",
            model=str(self.order.model),
            served_name=served_name(self.order.model),
            engine=self.engine.name,
            engine_version=None,
            url=f"http://127.0.0.1:{self.order.port}",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            service=itself,
        )
        state.write(self.record)

    def update(self, **changes: object) -> None:
        self.record = replace(self.record, **changes)  # type: ignore[arg-type] # checked where it is called
        state.write(self.record)

    def phase(self, name: str) -> None:
        self.update(phase=name)
        self.events.on_phase(name, self.elapsed)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def prepare(self) -> ServerSpec:
        """All that can be known before a process is started. Raises what keeps it from being started."""
        self.phase("checking")
        require_free_port(self.order.port)
        artefact = self._weights()
        facts = self.engine.facts(artefact)
        plan = make_plan(facts, hardware.detect(), self.order.wishes, on_gpu=self.engine.on_gpu)
        plan.demand_fit(self.record.model)
        self.events.on_plan(plan)
        self.update(plan=asdict(plan), engine_version=self.engine.status().version)
        return self.engine.server(artefact, plan, served_name=self.record.served_name, port=self.order.port)

    def _weights(self) -> Artefact:
        artefact = self.engine.artefact(self.order.model, self.order.mmproj)
        if not self.engine.present(artefact):
            self.phase("fetching the weights")
            self.engine.pull(artefact, self.events.on_download)
        return artefact

    async def run(self, spec: ServerSpec) -> None:
        """Start the server, wait until it is ready, and keep it until it ends or a signal comes."""
        told = signals.told()
        self.phase("starting the server")
        log = _open_log()
        child = await Child.start(spec.argv, spec.env, STOP_GRACE)
        self.update(server=child.server)
        ended = asyncio.ensure_future(child.follow(lambda line: self._line(spec, log, line)))
        try:
            await self._until_ready(spec, log, ended, told)
            self.update(state="ready", phase="ready")
            self.events.on_ready(self.record, self.elapsed)
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_over(ended, told, log)
        finally:
            await _stop(child, ended)
            log.close()

    async def _until_ready(
        self, spec: ServerSpec, log: ServerLog, ended: asyncio.Future[int], told: asyncio.Future[int]
    ) -> None:
        reminded = self.elapsed
        while not await _healthy(spec):
            await asyncio.wait({ended, told}, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_over(ended, told, log)
            if self.elapsed > self.order.timeout:
                raise TimedOut(
                    f"the server was not ready after {self.order.timeout:g} s, still {self.record.phase}",
                    f"give it longer with `--timeout`; its log is `{state.server_log()}`",
                )
            if self.elapsed > reminded + REMINDER:
                reminded = self.elapsed
                self.events.on_wait(self.record.phase, self.elapsed, log.tail[-1] if log.tail else "")

    def _raise_if_over(self, ended: asyncio.Future[int], told: asyncio.Future[int], log: ServerLog) -> None:
        if told.done():
            self.events.on_stop()
            raise signals.interruption(told.result())
        if ended.done():
            raise self._ending(ended.result(), log)

    def _ending(self, status: int, log: ServerLog) -> LlmdeployError:
        served = self.record.state == "ready"
        kind, when = (ServerDied, "while it served") if served else (StartFailed, "before it was ready")
        diagnosis = self.engine.diagnose(list(log.tail), status)
        if diagnosis is not None:
            return kind(
                f"the server ended {when}: {diagnosis.cause}", f"{diagnosis.fix}; its log is `{state.server_log()}`"
            )
        how = signals.named(-status) if status < 0 else f"status {status}"
        last = next((line for line in reversed(log.tail) if line.strip()), "it wrote nothing")
        return kind(f"the server ended {when} ({how}): {last}", f"its log is `{state.server_log()}`")

    def _line(self, spec: ServerSpec, log: ServerLog, line: str) -> None:
        log.write(line)
        if self.record.state != "starting":
            return
        for phase in spec.phases:
            if phase.log_text in line and phase.name != self.record.phase:
                self.phase(phase.name)


def end_leftover() -> None:
    """End a server whose service is gone: the guard was killed with it."""
    situation = state.observe()
    if situation.leftover and situation.record is not None and situation.record.server is not None:
        kill_group(situation.record.server)
        wait_gone(situation.record.server, STOP_GRACE)  # its port and its memory are free then


def _open_log() -> ServerLog:
    try:
        return ServerLog(state.server_log())
    except OSError as error:
        raise state.unwritable(error) from error


async def _stop(child: Child, ended: asyncio.Future[int]) -> None:
    for number in signals.stopping():
        with suppress(NotImplementedError):  # a second Ctrl-C does not wait
            asyncio.get_running_loop().add_signal_handler(number, child.kill)
    child.let_go()
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(ended), STOP_GRACE + 1)
    if not ended.done():
        child.kill()
        await ended


async def _healthy(spec: ServerSpec) -> bool:
    """Whether the server answers 200 at its health path, within a second."""
    address = urlsplit(spec.base_url)
    request = f"GET {spec.health_path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(request.encode())
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status_line.split()[1:2] == [b"200"]
