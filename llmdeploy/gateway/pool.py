"""The connections to one server, and the requests that are with it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from llmdeploy.gateway.target import Target
from llmdeploy.gateway.upstream import Upstream
from llmdeploy.tls import trusting

if TYPE_CHECKING:
    from llmdeploy.gateway.relay import Relay

IDLE_SECONDS = 4.0
"""vLLM closes a connection that is idle for 5 s; a request must not meet that."""
CONNECT_SECONDS = 5.0


class Pool:
    """The connections to one server. The one used last is used first, so that those too many grow old."""

    __slots__ = ("_idle", "_tasks", "_until_empty", "_wanting", "calls", "host", "prefix", "retired", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.host = target.authority.encode()
        self.prefix = target.prefix.encode()
        self.calls: set[Relay] = set()
        self.retired = False
        """Whether the server is leaving: no connection is kept for later."""
        self._idle: list[Upstream] = []
        self._wanting: dict[Relay, None] = {}
        """Requests that wait for a connection to be made, or to become free; in their order."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._until_empty: list[asyncio.Future[None]] = []

    def serve(self, call: Relay) -> None:
        """Finds a connection for a request: a free one, or the next that becomes free or is made."""
        upstream = self._take()
        if upstream is not None:
            call.go(upstream)
        else:
            self._wanting[call] = None
            self._connect(None)

    def serve_anew(self, call: Relay) -> None:
        """Makes a connection for this request alone."""
        self._connect(call)

    def _take(self) -> Upstream | None:
        """A connection that is free and fresh enough."""
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.closing and time.monotonic() - upstream.idle_since < IDLE_SECONDS:
                return upstream
            upstream.drop()
        return None

    def _connect(self, only: Relay | None) -> None:
        task = asyncio.get_running_loop().create_task(self._make(only))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, only: Relay | None) -> None:
        upstream = await self._made()
        if upstream is not None and not upstream.closing and (only is None or only not in self.calls):
            self.give_back(upstream)
            return
        call = self._first_wanting() if only is None else only
        if call is None or call not in self.calls:
            return
        if upstream is None or upstream.closing:
            call.unreachable()
        else:
            call.go(upstream)

    async def _made(self) -> Upstream | None:
        """A new connection; None where there can be none."""
        loop = asyncio.get_running_loop()
        host, port = self.target.host, self.target.port
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                trust = trusting() if self.target.tls else None
                _, upstream = await loop.create_connection(lambda: Upstream(self), host, port, ssl=trust)
        except OSError:
            return None
        except Exception as error:  # whatever it is: a request waits for the outcome
            loop.call_exception_handler({"message": f"connecting to `{host}` failed", "exception": error})
            return None
        return upstream

    def _first_wanting(self) -> Relay | None:
        call = next(iter(self._wanting), None)
        if call is not None:
            del self._wanting[call]
        return call

    def give_back(self, upstream: Upstream) -> None:
        """A connection has become free."""
        call = self._first_wanting() if self._wanting else None
        if call is not None:
            call.go(upstream)
        elif self.retired:
            upstream.drop()
        else:
            upstream.idle_since = time.monotonic()
            self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """An idle connection has ended."""
        if upstream in self._idle:
            self._idle.remove(upstream)

    def remove(self, call: Relay) -> None:
        """A request is over, or goes elsewhere."""
        self.calls.discard(call)
        if self._wanting:
            self._wanting.pop(call, None)
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
        """The server takes no new request; what is with it stays."""
        self.retired = True
        idle, self._idle = self._idle, []
        for upstream in idle:
            upstream.drop()

    def close(self) -> None:
        """Nothing is left that could come yet."""
        self.retire()
        for task in self._tasks:
            task.cancel()
