"""Keeps one deployment serving: starts and repairs its server, watches it, and starts it again when it ends."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from logging import getLogger
from typing import TYPE_CHECKING, TypeVar

from llmdeploy import hardware
from llmdeploy.background import in_thread
from llmdeploy.errors import LlmdeployError, ModelNotFound, ServerDied, StartFailed, as_error
from llmdeploy.gateway.route import NO_LOAD
from llmdeploy.service import history, placement
from llmdeploy.service.events import Down, Internal, Note, OnAnyEvent, Public, Serving, Started
from llmdeploy.service.health import healthy
from llmdeploy.service.launch import Launch, with_context
from llmdeploy.service.smoke_test import require_answer
from llmdeploy.service.stages import Prepared, Ready, Settled
from llmdeploy.service.vital_signs import VitalSigns

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.engines.base import Daemon, Engine
    from llmdeploy.engines.log_reader import Loaded
    from llmdeploy.errors import Remedy
    from llmdeploy.gateway.route import Load
    from llmdeploy.hardware import Hardware
    from llmdeploy.plan import Plan
    from llmdeploy.service.order import Order
    from llmdeploy.service.placement import HeldMemory
    from llmdeploy.service.running import RunningServer

T = TypeVar("T")

REPAIRS = 4
"""Number of starts with other settings, after the first start."""
BACKOFF = 0.5
"""Seconds before a server that ended is started again; twice as long each time."""
LONGEST_BACKOFF = 60.0
"""The most seconds before a server is started again, however often it ended."""
LONG = 5.0
"""Seconds of a start from which on an estimate is told."""
WATCH = 0.5
"""Seconds between two looks at whether the server has said that it is doomed, or is away."""
KEEP = 30.0
"""Seconds between two looks at whether the model is still loaded."""
STEADY = 60.0
"""Seconds of service after which an end no longer counts as in a row with the ends before."""
ENDING = 3.0
"""Seconds that a server which answered nothing has to end by itself: its log tells more."""
GIVING_UP = 1.0
"""Seconds that a thread has to end once it was abandoned."""

_log = getLogger(__name__)


def backoff(ends: int) -> float:
    """Return the seconds to wait after so many ends in a row."""
    return min(BACKOFF * 2.0 ** min(ends - 1, 10), LONGEST_BACKOFF)


class Supervisor:
    """Keeps the server of one order running: `prepare`, `apply_plan`, `start`, then `keep`; `stop` at any time.

    It emits the events of its starts, and `Started`, `Serving` (perhaps with another server) and `Down`.
    """

    def __init__(
        self,
        order: Order,
        engine: Engine,
        emit: OnAnyEvent,
        log_file: Path,
        load: Callable[[], Load] = lambda: NO_LOAD,
    ) -> None:
        """`load`: tells what the server that is kept has to do."""
        self.order = order
        self.engine = engine
        self.log_file = log_file
        self.remedies: tuple[Remedy, ...] = ()
        """The settings that had to be changed, in order."""
        self._emit = emit
        self._load = load
        self._look = asyncio.Event()
        """Set when a daemon is to be asked at once for the model."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._last: history.Start | None = None
        """The last start like this one."""
        self._launch = self._new_launch()

    def _new_launch(self) -> Launch:
        return Launch(self.order, self.engine, self._emit_in_loop, self.log_file)

    def _emit_in_loop(self, event: Public | Internal) -> None:
        """Emit in the loop's thread, whatever thread it happens in, and before the work that it is part of ends."""
        if threading.get_ident() == self._thread:
            self._emit(event)
            return
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._emit, event)

    def _note(self, text: str) -> None:
        self._emit(Note(text))

    async def prepare(self, spare: HeldMemory | None = None) -> Prepared:
        """Make sure that all is here. The settings of a start like this one that had to be repaired are taken over.

        `spare`: memory of a server that goes before this one comes.
        """
        prepared = await self._in_thread(lambda: self._launch.prepare(spare))
        self._last = await in_thread(lambda: history.load_start(self._kind(prepared, hardware.detect())))
        for remedy in self._last.remedies if self._last and self.order.repair else ():
            if self._take(remedy, "as the last start like this one needed"):
                prepared = await self._prepare_again()
        return prepared

    def plan_for(self, prepared: Prepared, machine: Hardware) -> Plan:
        """Return the settings for that machine. Raises DoesNotFit."""
        return self._launch.plan_for(prepared, machine)

    async def apply_plan(self, prepared: Prepared, plan: Plan | None = None) -> Settled:
        """Take the plan, or make one for the machine as it is now. Raises DoesNotFit."""
        return await self._in_thread(lambda: self._launch.apply_plan(prepared, plan))

    def _kind(self, prepared: Prepared, machine: Hardware) -> str:
        """Return a key that two starts share if they are alike: engine, version, settings, model, wishes, machine."""
        order = self.order
        own = order.settings.of_engine(self.engine.name)
        memory = [machine.memory_total, *(gpu.memory_total for gpu in machine.gpus)]
        return f"{self.engine.name} {prepared.version} {own} {order.model} {order.wishes} {memory}"

    async def start(self, settled: Settled, *, prove: bool = True) -> Ready:
        """Start the server; if the engine names a number that would have done, start again with it.

        `prove`: ask it one question before it counts as ready.
        """
        for _ in range(REPAIRS):
            try:
                return await self._start(settled, prove=prove)
            except StartFailed as error:
                again = f"{error.message}; it is tried again with that"
                if not self.order.repair or error.remedy is None or not self._take(error.remedy, again):
                    raise
            settled = await self.apply_plan(await self._prepare_again())
        return await self._start(settled, prove=prove)

    def _take(self, remedy: Remedy, why: str) -> bool:
        """Use an engine that has the setting for the next start; return whether there is one."""
        repaired = self.engine.repaired(remedy)
        if repaired is None:
            return False
        self.engine = repaired
        self.remedies = (*self.remedies, remedy)
        self._note(f"`{remedy.key}` {remedy.value}: {why}")
        return True

    async def _prepare_again(self) -> Prepared:
        """Begin another start, once the server of the one before is gone."""
        replaced, self._launch = self._launch, self._new_launch()
        await in_thread(replaced.starter.stop)
        return await self._in_thread(self._launch.prepare)

    async def _start(self, settled: Settled, *, prove: bool = True) -> Ready:
        began = time.monotonic()
        server = await self._in_thread(lambda: self._launch.start(settled))
        if self._last is not None and self._last.seconds > LONG:
            self._note(f"the last start like this one took {self._last.seconds:.0f} s")
        self._emit(Started(settled, server))
        loaded = await self._launch.wait_ready(settled, server)
        if prove:
            await self._prove(settled, server)
        server.is_ready = True
        seconds = time.monotonic() - began
        ready = await in_thread(lambda: self._learn(settled, server, loaded, seconds))
        self._emit(Serving(ready))
        return ready

    async def _prove(self, settled: Settled, server: RunningServer) -> None:
        """Ask the server for one token. Raises StartFailed, with the server's own reason if it has ended."""
        spec, can_answer = settled.spec, "text" in settled.prepared.facts.capabilities
        if spec.is_remote or not can_answer:
            return
        try:
            await in_thread(lambda: require_answer(spec, self.order.timeout))
        except StartFailed as error:
            await asyncio.wait({asyncio.wrap_future(server.exit)}, timeout=ENDING)
            server.raise_if_over()
            raise StartFailed(error.message, f"its log is `{self.log_file}`") from error

    def _learn(self, settled: Settled, server: RunningServer, loaded: Loaded | None, seconds: float) -> Ready:
        """Measure the memory that the start has taken, and remember how the server came up."""
        now = hardware.detect()
        lasting = tuple(it for it in self.remedies if it.lasts)
        history.save_start(self._kind(settled.prepared, now), history.Start(seconds, lasting))
        return Ready(
            order=self.order,
            engine=self.engine,
            prepared=settled.prepared,
            plan=with_context(settled.plan, loaded.context if loaded else None),
            spec=settled.spec,
            server=server,
            loaded=loaded,
            seconds=seconds,
            gpus=placement.taken(settled.machine, now),
        )

    async def keep(self, ready: Ready, ended: LlmdeployError | None = None) -> None:
        """Serve, and start the server again when it ends: later each time, and for as long as it takes.

        What has served once may do so again, whatever keeps it from starting now: no memory, a full disk, no free
        descriptor. `ready`: the server that serves, or that served last; `ended`: the error that ended it.
        """
        ends, began = (0, time.monotonic()) if ended is None else (1, math.inf)
        while True:
            try:
                if ended is not None:
                    began = math.inf  # a start that fails does not count as service
                    ready = await self._restart(ready, ended, backoff(ends))
                began = time.monotonic()
                await self._serve(ready)
            except Exception as error:
                ends = ends + 1 if time.monotonic() < began + STEADY else 1
                ended = as_error(error)
                if ended.code == "internal":
                    _log.error("this is a bug in llmdeploy", exc_info=error)

    async def _restart(self, ready: Ready, ended: LlmdeployError, delay: float) -> Ready:
        is_external = ready.server.is_external
        when = "it is used again once it answers" if is_external else f"it is started again in {delay:g} s"
        self._note(f"{ended.message}; {when}")
        self._emit(Down(ended, lives=not ready.server.exit.done()))
        await asyncio.sleep(delay)
        while is_external and not await in_thread(lambda: healthy(ready.spec)):
            await asyncio.sleep(WATCH)
        ready = await self.start_again()
        self._note("it serves again")
        return ready

    async def start_again(self) -> Ready:
        """Start another server with the same settings, once the one before is gone."""
        return await self._start(await self.apply_plan(await self._prepare_again()))

    async def _serve(self, ready: Ready) -> None:
        """Watch the server until it ends or hangs. Raises ServerDied."""
        server, ended = ready.server, asyncio.wrap_future(ready.server.exit)
        signs = VitalSigns(ready, self._load, self.order.settings.gateway.stall_timeout)
        keeping = asyncio.ensure_future(self._keep_loaded(ready))
        away = ""
        try:
            while True:
                await asyncio.wait({ended}, timeout=min(WATCH, signs.interval))
                server.raise_if_over()
                if keeping.done():
                    keeping.result()
                await signs.look()
                if signs.hangs:
                    server.raise_if_over()
                    raise _hanging(signs, server)
                before, away = away, _why_away(ready, signs)
                if before != away:
                    self._tell_whether_away(ready, away)
        finally:
            keeping.cancel()

    def look(self) -> None:
        """Look now whether a daemon still has the model."""
        self._look.set()

    async def _keep_loaded(self, ready: Ready) -> None:
        """Make sure, for as long as it serves, that a daemon has the model, and has it in memory.

        Raises ModelNotFound if the model must be imported again.
        """
        is_missing = False
        while (daemon := self.engine.daemon) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), KEEP)
            self._look.clear()
            try:
                is_missing = is_missing or not await daemon.has_model(ready.spec)
                if is_missing:
                    await self._make_again(daemon, ready)
                    is_missing = False
                else:
                    await daemon.keep_loaded(ready.spec)
            except ModelNotFound:
                raise
            except LlmdeployError as error:  # the next round tries again; the end of a server is seen elsewhere
                if is_missing:
                    self._note(error.message)

    async def _make_again(self, daemon: Daemon, ready: Ready) -> None:
        """Load a model that somebody has removed from the daemon. Requests wait meanwhile; those that run go on."""
        reason = f"`{ready.engine.name}` does not have `{ready.spec.served_name}` any more"
        self._note(f"{reason}; it is made again")
        self._emit(Down(ServerDied(reason, "`llmdeploy status` tells when it serves again"), lives=True))
        await daemon.load(ready.spec, ready.prepared.weights)
        self._note("it serves again")
        self._emit(Serving(ready))

    def _tell_whether_away(self, ready: Ready, away: str) -> None:
        """Tell why a server does not answer at the moment, or that it does: whoever stopped it may continue it."""
        if away:
            self._note(f"{away}; requests wait until it does")
            error = ServerDied(away, "`llmdeploy status` tells when it serves again")
            self._emit(Down(error, lives=not ready.server.is_external))
        else:
            self._note("it answers again")
            self._emit(Serving(ready))

    async def stop(self) -> None:
        """End the server and give back what was taken; does nothing if nothing was started."""
        await in_thread(self._launch.starter.stop)

    def kill(self) -> None:
        """End the server at once."""
        self._launch.starter.kill()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do the work of a start in a thread; when cancelled, end it with all that it has started."""
        starter, working = self._launch.starter, asyncio.ensure_future(in_thread(work))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            starter.abandon()
            deadline = time.monotonic() + GIVING_UP
            while not working.done() and time.monotonic() < deadline:
                await in_thread(starter.stop)  # it may wait for a daemon, and ends with it
                await asyncio.wait({working}, timeout=0.05)
            if working.done():
                working.exception()  # which nobody wants to know now
            raise


def _why_away(ready: Ready, signs: VitalSigns) -> str:
    """Return the reason for which a server that runs does not answer at the moment; empty if it does."""
    if ready.server.is_away:
        return f"`{ready.spec.base_url}` does not answer"
    return "a process of the server is stopped (SIGSTOP), and it does not answer" if signs.is_stopped else ""


def _hanging(signs: VitalSigns, server: RunningServer) -> ServerDied:
    requests = "1 request waits" if signs.waiting == 1 else f"{signs.waiting} requests wait"
    return ServerDied(
        f"the server hangs: no sign of life for {signs.limit:g} s while {requests}",
        f"its log is `{server.log_file}`; `gateway.stall_timeout` sets the seconds",
    )
