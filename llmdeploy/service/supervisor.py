"""One deployment, kept: started and repaired, watched, and started again where its server ends."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from llmdeploy import hardware
from llmdeploy.background import in_thread
from llmdeploy.errors import DoesNotFit, LlmdeployError, PortInUse, ServerDied, StartFailed
from llmdeploy.gateway.target import Target
from llmdeploy.service import history, placement
from llmdeploy.service.launch import Event, Launch, OnEvent, Order

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.engines.base import Engine
    from llmdeploy.errors import Remedy
    from llmdeploy.hardware import Hardware
    from llmdeploy.plan import Plan
    from llmdeploy.service.placement import HeldMemory

T = TypeVar("T")

REPAIRS = 4
"""Tries of a start with other settings, after the first."""
CRASHES = 5
"""Ends of the server in a row after which it is not started again."""
BACKOFF = 0.5
"""Seconds before a server that ended is started again; twice as long each time."""
LONG = 5.0
"""Seconds of a start from which on it is worth an estimate."""
WATCH = 0.5
"""Seconds between two looks at whether the server has said that it is doomed, or is away."""
STEADY = 60.0
"""Seconds of service after which an end is no longer in a row with those before."""
GIVING_UP = 1.0
"""Seconds that a thread has to end once it was abandoned."""

ENDINGS = (ServerDied, StartFailed, DoesNotFit, PortInUse)
"""What another start may mend: what the last server held may not be free yet."""


class Supervisor:
    """`look`, `settle` and `start` once; then `keep` for as long as it serves, and `stop`.

    Beside the candidate's events it tells `started`, `serving` (perhaps with another server), `down` and `note`.
    """

    def __init__(self, order: Order, engine: Engine[Any], tell: OnEvent, log_file: Path) -> None:
        self.order = order
        self.engine = engine
        self.log_file = log_file
        self.remedies: tuple[Remedy, ...] = ()
        """The settings that had to be changed, in order."""
        self.seconds = 0.0
        """That the last start took."""
        self.gpus: tuple[tuple[int, int], ...] = ()
        """What the last start took of each GPU: (index, bytes)."""
        self._told = tell
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._known: history.Start | None = None
        self.candidate = self._candidate()

    def _candidate(self) -> Launch:
        return Launch(self.order, self.engine, self._tell_in_loop, self.log_file)

    def _tell_in_loop(self, event: Event) -> None:
        """Whatever thread it happens in, it is told in the loop's, and before the work that it is of has ended."""
        if threading.get_ident() == self._thread:
            self._told(event)
            return
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._told, event)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._told({"event": kind, **fields})

    def _note(self, text: str) -> None:
        self._tell("note", text=text)

    async def look(self, spare: HeldMemory | None = None) -> None:
        """See to it that all is here. From a start like it that had to be repaired the settings are taken.

        `spare`: what a server holds that goes before this one comes.
        """
        await self._in_thread(lambda: self.candidate.look(spare))
        self._known = await in_thread(lambda: history.load(self._kind(hardware.detect())))
        for remedy in self._known.remedies if self._known and self.order.repair else ():
            if self._take(remedy, "as the last start like this one needed"):
                await in_thread(self._replaced.stop)
                await self._in_thread(self.candidate.look)

    async def settle(self, plan: Plan | None = None) -> None:
        """Take the plan, or one for the machine as it is now. Raises DoesNotFit."""
        await self._in_thread(lambda: self.candidate.settle(plan))

    def _kind(self, machine: Hardware) -> str:
        """What makes a start like another: the engine, its version and settings, the model, the wishes, the machine."""
        order = self.order
        own = order.settings.of_engine(self.engine.name)
        memory = [machine.memory_total, *(gpu.memory_total for gpu in machine.gpus)]
        return f"{self.engine.name} {self.candidate.version} {own} {order.model} {order.wishes} {memory}"

    async def start(self) -> None:
        """Start; where the engine names the number that would have done, start again with it."""
        for _ in range(REPAIRS):
            try:
                await self._start()
                return
            except StartFailed as error:
                again = f"{error.message}; it is tried again with that"
                if not self.order.repair or error.remedy is None or not self._take(error.remedy, again):
                    raise
            await self._anew()
        await self._start()

    def _take(self, remedy: Remedy, why: str) -> bool:
        """Go on with an engine that has the setting; whether there is such a one."""
        repaired = self.engine.repaired(remedy)
        if repaired is None:
            return False
        self.engine = repaired
        self.remedies = (*self.remedies, remedy)
        self._note(f"`{remedy.key}` {remedy.value}: {why}")
        self._replaced, self.candidate = self.candidate, self._candidate()
        return True

    async def _anew(self) -> None:
        """Prepare another server, once the one before is gone."""
        await in_thread(self._replaced.stop)
        await self._in_thread(self.candidate.prepare)

    async def _start(self) -> None:
        began = time.monotonic()
        await self._in_thread(self.candidate.launch)
        if self._known is not None and self._known.seconds > LONG:
            self._note(f"the last start like this one took {self._known.seconds:.0f} s")
        self._tell("started")
        await self.candidate.until_ready()
        self.seconds = time.monotonic() - began
        await in_thread(self._learn)
        self._tell("serving")

    def _learn(self) -> None:
        """What is known once it is ready: the memory that it has taken, and how it came up."""
        now = hardware.detect()
        self.gpus = placement.taken(self.candidate.machine, now)
        lasting = tuple(it for it in self.remedies if it.lasts)
        history.save(self._kind(now), history.Start(self.seconds, lasting))

    async def keep(self, ended: LlmdeployError | None = None) -> None:
        """Serve, and start the server again where it ends: later each time, and not after the fifth end in a row.

        `ended`: it does not run now, for that reason. Raises what keeps it from being started again.
        """
        crashes, began = (0, time.monotonic()) if ended is None else (1, math.inf)
        while True:
            try:
                if ended is not None:
                    began = math.inf  # a start that fails is no service
                    await self._restart(ended, BACKOFF * 2 ** (crashes - 1))
                began = time.monotonic()
                await self._serve()
            except ENDINGS as error:
                crashes = crashes + 1 if time.monotonic() < began + STEADY else 1
                if self.candidate.attached:
                    raise  # it is not ours to start
                if crashes == CRASHES:
                    message = f"the server ended {crashes} times in a row; at last: {error.message}"
                    raise ServerDied(message, error.hint) from error
                ended = error

    async def _restart(self, ended: LlmdeployError, delay: float) -> None:
        self._note(f"{ended.message}; it is started again in {delay:g} s")
        self._tell("down", error=ended)
        await asyncio.sleep(delay)
        await self.again()
        self._note("it serves again")

    async def again(self) -> None:
        """Start another server with the same settings, once the one before is gone."""
        self._replaced, self.candidate = self.candidate, self._candidate()
        await self._anew()
        await self._start()

    async def _serve(self) -> None:
        """Until the server ends."""
        keeping = asyncio.ensure_future(self.candidate.keep())
        away = False
        try:
            while True:
                await asyncio.wait({self.candidate.ended}, timeout=WATCH)
                self.candidate.raise_if_over()
                if away != self.candidate.away:
                    away = not away
                    self._tell_whether(away)
        finally:
            keeping.cancel()

    def _tell_whether(self, away: bool) -> None:
        """A server of another's is away, or back. Whoever keeps it may start it again."""
        if away:
            message = f"`{self.candidate.spec.base_url}` does not answer"
            self._note(f"{message}; requests wait until it does")
            self._tell("down", error=ServerDied(message, "`llmdeploy status` tells when it serves again"))
        else:
            self._note("it answers again")
            self._tell("serving")

    def target(self) -> Target:
        """Where requests go that its server is to answer."""
        now, url = self.candidate, urlsplit(self.candidate.spec.base_url)
        return Target(
            engine=self.engine.name,
            model=now.spec.served_name,
            host=url.hostname or "127.0.0.1",
            port=url.port or (443 if url.scheme == "https" else 80),
            capabilities=now.facts.capabilities,
            context=now.plan.context.value,
            adapt=self.engine.adapt,
            lacks=self.engine.lacks,
            tls=url.scheme == "https",
            prefix=url.path,
        )

    @property
    def serves(self) -> bool:
        """Whether its server is ready and has not ended."""
        return self.candidate.serves

    async def stop(self) -> None:
        """End the server and give back what was taken; fine where there is none."""
        await in_thread(self.candidate.stop)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The candidate's work; cancelled, it is ended with all that it has started."""
        candidate, working = self.candidate, asyncio.ensure_future(in_thread(work))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            candidate.abandon()
            deadline = time.monotonic() + GIVING_UP
            while not working.done() and time.monotonic() < deadline:
                await in_thread(candidate.stop)  # it may wait for a daemon, and ends with it
                await asyncio.wait({working}, timeout=0.05)
            if working.done():
                working.exception()  # which nobody wants to know now
            raise
