"""What the service is: it holds the lock, writes the record, and keeps one deployment for as long as it runs."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from llmdeploy import hardware
from llmdeploy.errors import DoesNotFit, LlmdeployError, PortInUse, ServerDied, StartFailed
from llmdeploy.models.reference import served_name
from llmdeploy.plan import Plan
from llmdeploy.service import history, signals, state
from llmdeploy.service.candidate import POLL, READY, Candidate, Events, Order
from llmdeploy.service.leftover import end_leftover
from llmdeploy.service.process import identify
from llmdeploy.service.state import Record

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine, Loaded
    from llmdeploy.errors import Remedy
    from llmdeploy.service.attached import Attached
    from llmdeploy.service.child import Child

RECORD_WATCH = 1.0
"""Seconds between two looks at the record while it serves, and between two writings of a download's progress."""
REPAIRS = 4
"""Tries of a start with other settings, after the first."""
CRASHES = 5
"""Ends of the server in a row after which it is not started again."""
BACKOFF = 0.5
"""Seconds before a server that ended is started again; twice as long each time."""
LONG = 5.0
"""Seconds of a start from which on it is worth an estimate."""
STEADY = 60.0
"""Seconds of service after which an end is no longer in a row with those before."""


class Notices(Protocol):
    """What the service tells whoever runs it. `elapsed` is in seconds since it began."""

    def on_phase(self, name: str, elapsed: float) -> None: ...
    def on_wait(self, name: str, elapsed: float, line: str) -> None:
        """A phase goes on: the server's last line."""

    def on_percent(self, name: str, elapsed: float, percent: int) -> None:
        """How far a phase is."""

    def on_note(self, text: str) -> None:
        """What was decided meanwhile, in a sentence."""

    def on_download(self, file: str, done: int, total: int) -> None: ...
    def on_plan(self, plan: Plan) -> None: ...
    def on_loaded(self, loaded: Loaded) -> None: ...
    def on_ready(self, record: Record, elapsed: float) -> None: ...
    def on_stop(self) -> None:
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
    remedies: tuple[Remedy, ...] = ()
    """The settings that had to be changed, in order."""

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
        self.candidate = self._candidate()

    def _candidate(self) -> Candidate:
        events = Events(
            self._on_phase, self._on_wait, self._on_download, self._on_percent, self._on_plan, self._on_loaded
        )
        return Candidate(self.order, self.engine, events, state.server_log())

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
        """All up to the start of the server. From a start like it that had to be repaired the settings are taken."""
        try:
            self.candidate.prepare()
            self.known = history.recall(self._kind)
            for remedy in self.known.remedies if self.known and self.order.repair else ():
                if self._take(remedy, "as the last start like this one needed"):
                    self.replaced.stop()
                    self.candidate.prepare()
        except BaseException:
            self.candidate.stop()
            raise

    @property
    def _kind(self) -> str:
        """What makes a start like another: the engine, its version and settings, the model, the wishes, the machine."""
        order, machine = self.order, hardware.detect()
        memory = [machine.memory_total, *(gpu.memory_total for gpu in machine.gpus)]
        return f"{self.record.engine} {self.candidate.version} {order.settings} {order.model} {order.wishes} {memory}"

    async def run(self) -> None:
        """Start the server, wait until it is ready, and keep it until a signal comes or it cannot be kept."""
        told = signals.told()
        try:
            await self._start_repaired(told)
            self.notices.on_ready(self.record, self.elapsed)
            await self._keep(told)
        except KeyboardInterrupt:
            self.notices.on_stop()
            raise
        finally:
            signals.call_on_another(lambda: self.candidate.kill())
            await asyncio.to_thread(self.candidate.stop)

    async def _start_repaired(self, told: asyncio.Future[int]) -> None:
        """Start; where the engine names the number that would have done, start again with it."""
        for _ in range(REPAIRS):
            try:
                await self._start(told)
                return
            except StartFailed as error:
                again = f"{error.message}; it is tried again with that"
                if not self.order.repair or error.remedy is None or not self._take(error.remedy, again):
                    raise
            await self._anew(told)
        await self._start(told)

    def _take(self, remedy: Remedy, why: str) -> bool:
        """Go on with an engine that has the setting; whether there is such a one."""
        repaired = self.engine.repaired(remedy)
        if repaired is None:
            return False
        self.engine = repaired
        self.remedies = (*self.remedies, remedy)
        self.notices.on_note(f"`{remedy.key}` {remedy.value}: {why}")
        self.replaced, self.candidate = self.candidate, self._candidate()
        return True

    async def _anew(self, told: asyncio.Future[int]) -> None:
        """Prepare another server, once the one before is gone. Raises KeyboardInterrupt when told to stop."""
        await asyncio.to_thread(self.replaced.stop)
        preparing = asyncio.ensure_future(asyncio.to_thread(self.candidate.prepare))
        events: set[asyncio.Future[Any]] = {preparing, told}
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        while not preparing.done():  # it may wait for a daemon, and ends with it
            await asyncio.to_thread(self.candidate.stop)
            await asyncio.wait({preparing}, timeout=POLL)
        if told.done():
            preparing.exception()  # which nobody wants to know now
            raise signals.interruption(told.result())
        preparing.result()

    async def _start(self, told: asyncio.Future[int]) -> None:
        began = time.monotonic()
        runs = await self._started()
        if self.known is not None and self.known.seconds > LONG:
            self.notices.on_note(f"the last start like this one took {self.known.seconds:.0f} s")
        self.update(server=runs.server, engine_version=self.candidate.version, url=self.candidate.spec.base_url)
        await self.candidate.until_ready(told)
        self._remember(time.monotonic() - began)
        self.update(state="ready", phase=READY, progress="", capabilities=self.candidate.facts.capabilities)

    def _remember(self, seconds: float) -> None:
        history.remember(self._kind, history.Start(seconds, tuple(it for it in self.remedies if it.lasts)))

    async def _keep(self, told: asyncio.Future[int]) -> None:
        """Serve, and start the server again where it ends: later each time, and not after the fifth end in a row."""
        crashes, began = 0, time.monotonic()
        ended: LlmdeployError | None = None
        while True:
            try:
                if ended is not None:
                    began = math.inf  # a start that fails is no service
                    await self._restart(ended, BACKOFF * 2 ** (crashes - 1), told)
                began = time.monotonic()
                await self._serve(told)
            except (ServerDied, StartFailed, DoesNotFit, PortInUse) as error:  # what it held may not be free yet
                crashes = crashes + 1 if time.monotonic() < began + STEADY else 1
                if self.candidate.attached:
                    raise  # it is not ours to start
                if crashes == CRASHES:
                    message = f"the server ended {crashes} times in a row; at last: {error.message}"
                    raise ServerDied(message, error.hint) from error
                ended = error

    async def _restart(self, ended: LlmdeployError, delay: float, told: asyncio.Future[int]) -> None:
        self.notices.on_note(f"{ended.message}; it is started again in {delay:g} s")
        self.update(state="starting", phase="restarting", progress=ended.message, server=None)
        await asyncio.wait({told}, timeout=delay)
        if told.done():
            raise signals.interruption(told.result())
        self.replaced, self.candidate = self.candidate, self._candidate()
        await self._anew(told)
        await self._start(told)
        self.notices.on_note("it serves again")

    async def _serve(self, told: asyncio.Future[int]) -> None:
        """Until the server ends or a signal comes."""
        keeping = asyncio.ensure_future(self.candidate.keep())
        try:
            while True:
                ends = {self.candidate.ended, told}
                await asyncio.wait(ends, timeout=RECORD_WATCH, return_when=asyncio.FIRST_COMPLETED)
                self.candidate.raise_if_over(told)
                self._restore_record()
        finally:
            keeping.cancel()

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

    def _on_percent(self, percent: int) -> None:
        self.update(progress=f"{percent} %")
        self.notices.on_percent(self.record.phase, self.elapsed, percent)

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
