"""The connections to one server, and the requests that are with it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from llmdeploy.gateway.target import Target
from llmdeploy.gateway.upstream import Upstream

if TYPE_CHECKING:
    from llmdeploy.gateway.call import Call

IDLE_SECONDS = 4.0
"""vLLM closes a connection that is idle for 5 s; a request must not meet that."""
CONNECT_SECONDS = 5.0


class Pool:
    """The connections to one server. The one used last is used first, so that those too many grow old."""

    __slots__ = ("_idle", "_until_empty", "calls", "host", "retired", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        host = f"[{target.host}]" if ":" in target.host else target.host
        self.host = f"{host}:{target.port}".encode()
        self.calls: set[Call] = set()
        self.retired = False
        """Whether the server is leaving: no connection is kept for later."""
        self._idle: list[Upstream] = []
        self._until_empty: list[asyncio.Future[None]] = []

    def take(self) -> Upstream | None:
        """A connection that is free and fresh enough."""
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.closing and time.monotonic() - upstream.idle_since < IDLE_SECONDS:
                return upstream
            upstream.drop()
        return None

    async def connect(self) -> Upstream:
        """Raises OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            _, upstream = await loop.create_connection(lambda: Upstream(self), self.target.host, self.target.port)
        return upstream

    def give_back(self, upstream: Upstream) -> None:
        if self.retired:
            upstream.drop()
            return
        upstream.idle_since = time.monotonic()
        self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """An idle connection has ended."""
        if upstream in self._idle:
            self._idle.remove(upstream)

    def remove(self, call: Call) -> None:
        """A request is over, or goes elsewhere."""
        self.calls.discard(call)
        if self._until_empty and not self.calls:
            for waiter in self._until_empty:
                if not waiter.done():
                    waiter.set_result(None)
            self._until_empty.clear()

    async def until_empty(self, seconds: float) -> bool:
        """Whether all requests are over within that time."""
        if not self.calls:
            return True
        waiter = asyncio.get_running_loop().create_future()
        self._until_empty.append(waiter)
        done, _ = await asyncio.wait((waiter,), timeout=seconds)
        return bool(done)

    def sweep(self, now: float) -> None:
        """Closes what was idle too long; the oldest stand first."""
        idle = self._idle
        while idle and now - idle[0].idle_since >= IDLE_SECONDS:
            idle.pop(0).drop()

    def retire(self) -> None:
        self.retired = True
        idle, self._idle = self._idle, []
        for upstream in idle:
            upstream.drop()
