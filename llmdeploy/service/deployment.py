"""What the service is: it holds the lock, writes the record, and keeps one deployment for as long as it runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import LlmdeployError
from llmdeploy.models.reference import served_name
from llmdeploy.plan import Plan
from llmdeploy.service import signals, state
from llmdeploy.service.candidate import Candidate, Events, Order
from llmdeploy.service.leftover import end_leftover
from llmdeploy.service.process import identify
from llmdeploy.service.state import Record

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine, Loaded
    from llmdeploy.service.attached import Attached
    from llmdeploy.service.child import Child

RECORD_WATCH = 1.0
"""Seconds between two looks at the record while it serves, and between two writings of a download's progress."""


@dataclass(frozen=True)
class Notices:
    """What the service tells whoever runs it. `elapsed` is in seconds since it began."""

    on_phase: Callable[[str, float], None]
    on_wait: Callable[[str, float, str], None]
    """A phase that goes on: its name, elapsed, the server's last line."""
    on_download: Callable[[str, int, int], None]
    on_plan: Callable[[Plan], None]
    on_loaded: Callable[[Loaded], None]
    on_ready: Callable[[Record, float], None]
    on_stop: Callable[[], None]
    """Told to stop, and about to."""


def serve(order: Order, engine: Engine[Any], notices: Notices) -> None:
    """Serve until told to stop.

    Raises KeyboardInterrupt when interrupted, Terminated when told to stop, and an LlmdeployError for everything that
    keeps the deployment from serving; that one stays on record.
    """
    with signals.interrupting(), state.lock():
        end_leftover(state.observe())
        service = _Service(order, engine, notices)
        try:
            service.prepare()
            asyncio.run(service.run())
        except LlmdeployError as error:
            service.fail(error)
            raise
        except BaseException:
            state.forget()
            raise


@dataclass
class _Service:
    order: Order
    engine: Engine[Any]
    notices: Notices
    began: float = field(default_factory=time.monotonic)
    written: float = 0.0

    def __post_init__(self) -> None:
        itself = identify(os.getpid())
        assert itself is not None
        self.record = Record(
            state="starting",
            phase="",
            model=str(self.order.model),
            served_name=served_name(self.order.model),
            engine=self.engine.name,
            url=f"http://127.0.0.1:{self.order.port}",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            service=itself,
            ticket=os.environ.get(state.TICKET, ""),
        )
        events = Events(self._on_phase, self._on_wait, self._on_download, self._on_plan, self._on_loaded)
        self.candidate = Candidate(self.order, self.engine, events, state.server_log())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def update(self, **changes: object) -> None:
        self.record = replace(self.record, **changes)  # type: ignore[arg-type] # checked where it is called
        self.written = self.elapsed
        state.write(self.record)

    def fail(self, error: LlmdeployError) -> None:
        """Put the reason on record; where that cannot be written, no record is better than one that says `starting`."""
        with suppress(LlmdeployError):  # the first failure is the one to tell
            try:
                self.update(state="failed", error=error.as_document())
            except LlmdeployError:
                state.forget()

    def prepare(self) -> None:
        try:
            self.candidate.prepare()
        except BaseException:
            self.candidate.stop()
            raise

    async def run(self) -> None:
        """Start the server, wait until it is ready, and keep it until it ends or a signal comes."""
        told = signals.told()
        keeping = None
        try:
            runs = await self._started()
            self.update(server=runs.server, engine_version=self.candidate.version, url=self.candidate.spec.base_url)
            await self.candidate.until_ready(told)
            self.update(state="ready", phase="ready", progress="", capabilities=self.candidate.facts.capabilities)
            self.notices.on_ready(self.record, self.elapsed)
            keeping = asyncio.ensure_future(self.candidate.keep())
            while True:
                ends = {self.candidate.ended, told}
                await asyncio.wait(ends, timeout=RECORD_WATCH, return_when=asyncio.FIRST_COMPLETED)
                self.candidate.raise_if_over(told)
                self._restore_record()
        except KeyboardInterrupt:
            self.notices.on_stop()
            raise
        finally:
            signals.call_on_another(self.candidate.kill)
            if keeping is not None:
                keeping.cancel()
            await asyncio.to_thread(self.candidate.stop)

    async def _started(self) -> Child | Attached:
        try:
            return await self.candidate.start()
        except OSError as error:  # the log cannot be opened
            raise state.unwritable(error) from error

    def _restore_record(self) -> None:
        """A record that somebody deleted is written anew: without it no command would find the service."""
        with suppress(LlmdeployError):  # the disk may be full; the next round tries again
            if state.read() is None:
                state.write(self.record)

    def _on_phase(self, name: str) -> None:
        self.update(phase=name, progress="")
        self.notices.on_phase(name, self.elapsed)

    def _on_wait(self, line: str) -> None:
        self.update(progress=line)
        self.notices.on_wait(self.record.phase, self.elapsed, line)

    def _on_download(self, file: str, done: int, total: int) -> None:
        self.notices.on_download(file, done, total)
        if self.elapsed > self.written + RECORD_WATCH:
            percent = f"{100 * done // total} %" if total else f"{done / 1e6:.0f} MB"
            self.update(progress=f"{file}: {percent}")

    def _on_plan(self, plan: Plan) -> None:
        self.update(plan=asdict(plan))
        self.notices.on_plan(plan)

    def _on_loaded(self, loaded: Loaded) -> None:
        """The engine has the last word on the context."""
        plan = self.record.plan
        if plan and loaded.context is not None and loaded.context != plan["context"]["value"]:
            plan = {**plan, "context": {"value": loaded.context, "reason": "what the engine gives it"}}
        self.update(plan=plan, detail=loaded.detail)
        self.notices.on_loaded(loaded)
