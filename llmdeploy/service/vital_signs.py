"""Looks at the server that serves: what its processes use, and what it reports of itself."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llmdeploy.background import in_thread
from llmdeploy.service import health, liveness
from llmdeploy.service.liveness import Body, Sample

if TYPE_CHECKING:
    import psutil

    from llmdeploy.gateway.route import Load
    from llmdeploy.service.stages import Ready

LOOKS = 20
"""Number of looks within the time after which a server counts as hanging."""
MOST_LOOKS = 200
"""The most of them."""
SLOWEST = 2.0
"""Seconds between two looks, if the time is long enough for `LOOKS`."""


class VitalSigns:
    """The samples of one server."""

    def __init__(self, ready: Ready, load: Callable[[], Load], limit: float) -> None:
        """`load`: what the server has to do now; `limit`: seconds without a sign of life after which it hangs."""
        process = ready.server.process
        self.limit = limit
        self.interval = max(min(SLOWEST, limit / LOOKS), limit / MOST_LOOKS)
        """Seconds between two looks."""
        self._spec = ready.spec
        self._is_external = ready.server.is_external
        self._body = Body(ready.engine.vitals, process.pid if process else None, on_gpu=bool(ready.gpus))
        self._load = load
        self._samples: deque[Sample] = deque(maxlen=2 * MOST_LOOKS)
        self._processes: dict[int, psutil.Process] = {}
        self._asking: asyncio.Future[str | None] | None = None
        self._next = 0.0

    @property
    def waiting(self) -> int:
        """The number of requests that waited at the last look."""
        return self._samples[-1].waiting if self._samples else 0

    async def look(self) -> None:
        """Take a sample if it is time for one."""
        if time.monotonic() < self._next:
            return
        load = self._load()
        is_new = not self._samples or self._samples[-1].received != load.received
        is_silent = bool(load.waiting) and not is_new
        self._next = time.monotonic() + self.interval
        try:
            cpu, is_stopped = await in_thread(lambda: self._look_at_processes(all_of_them=is_silent))
        except OSError:  # no free descriptor: that says nothing of the server
            return
        counters = self._counters() if is_silent else None
        now = time.monotonic()
        self._samples.append(Sample(now, load.waiting, load.received, cpu, counters, is_stopped))

    @property
    def hangs(self) -> bool:
        """Whether the server hangs."""
        return bool(self._samples) and liveness.hangs(list(self._samples), self.limit, self._body)

    @property
    def is_stopped(self) -> bool:
        """Whether the server is stopped by a signal."""
        return liveness.is_stopped(list(self._samples)[-2:])

    def _counters(self) -> str | None:
        """Return what the server has answered since the last look, and ask it again. One question waits at a time.

        llama.cpp answers when it has decoded its batch, which may take minutes. An external server is only asked
        whether it is there: each answer is a sign of life.
        """
        asking, answer = self._asking, None
        if asking is None or asking.done():
            answer = asking.result() if asking is not None and not asking.exception() else None
            self._asking = asyncio.ensure_future(in_thread(self._ask))
        return answer

    def _ask(self) -> str | None:
        if self._is_external:
            return str(time.monotonic()) if health.healthy(self._spec) else None
        names = self._body.vitals.counters
        text = health.page(self._spec, "/metrics", self.limit) if names else None
        return None if text is None else "\n".join(line for line in text.splitlines() if line.startswith(names))

    def _look_at_processes(self, *, all_of_them: bool) -> tuple[dict[int, float], bool]:
        """Return the CPU time of the server's processes, and whether one is stopped."""
        import psutil

        if self._body.pid is None:
            return {}, False
        if all_of_them or not self._processes:  # to find children takes a look at every process of the machine
            self._processes = _tree(self._body.pid, self._processes)
        cpu, is_stopped = {}, False
        for pid, process in self._processes.items():
            with suppress(psutil.Error), process.oneshot():  # it may have ended
                times = process.cpu_times()
                cpu[pid] = times.user + times.system
                is_stopped |= process.status() == psutil.STATUS_STOPPED
        return cpu, is_stopped


def _tree(pid: int, known: dict[int, psutil.Process]) -> dict[int, psutil.Process]:
    """Return the process and its descendants."""
    import psutil

    try:
        process = psutil.Process(pid)
        return {it.pid: it for it in (process, *process.children(recursive=True))}
    except psutil.Error:
        return known
