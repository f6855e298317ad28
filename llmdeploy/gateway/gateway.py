"""The stable address: where requests go, wait, or are refused."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from llmdeploy.errors import LlmdeployError
from llmdeploy.gateway import responses, routes
from llmdeploy.gateway.control import ControlRequest
from llmdeploy.gateway.downstream import Downstream
from llmdeploy.gateway.limits import Limits
from llmdeploy.gateway.metrics import Labels, Metrics
from llmdeploy.gateway.pool import Pool
from llmdeploy.gateway.relay import Relay
from llmdeploy.gateway.target import Target
from llmdeploy.http1 import Request

__all__ = ["Control", "ControlRequest", "Gateway", "Limits", "Metrics", "Target"]

Control = Callable[[ControlRequest], Awaitable[None]]
"""Answers requests whose path begins with `/llmdeploy/`; it checks who asks."""

BACKLOG = 1024
RELEASED = 8
"""Held requests that are let go in one turn of the loop: others are not to wait for two hundred."""
CLOSE_SECONDS = 2.0


class Gateway:
    """One address in front of a server that may change. Requests to it are relayed, held, or refused."""

    port: int

    def __init__(self, limits: Limits, api_key: str | None = None, control: Control | None = None) -> None:
        self.limits = limits
        self.key = None if api_key is None else api_key.encode()
        self.control = control
        self.host = ""
        self.metrics = Metrics()
        self.clients: set[Downstream] = set()
        self.buffered = 0
        """Bytes of request bodies in memory."""
        self._pool: Pool | None = None
        """Where requests go now; None while they wait or are refused."""
        self._pools: dict[Target, Pool] = {}
        """Where requests are."""
        self._reason = "starting"
        self._error: LlmdeployError | None = None
        self._last: Target | None = None
        self._last_since = 0
        self._held: dict[Relay, None] = {}
        self._lost: dict[Relay, None] = {}
        """Requests whose server cannot be reached, while nobody has said yet that it is gone."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._letting_go = False

    async def listen(self, host: str, port: int) -> None:
        """Raises OSError as the system says it. Port 0 is any that is free; `port` tells which."""
        loop = asyncio.get_running_loop()
        name = "127.0.0.1" if host == "localhost" else host
        server = await loop.create_server(self._client, name, port, backlog=BACKLOG)
        self._servers.append(server)
        self.host = host
        self.port = server.sockets[0].getsockname()[1]
        if host == "localhost":
            with suppress(OSError):  # not every machine has IPv6
                self._servers.append(await loop.create_server(self._client, "::1", self.port, backlog=BACKLOG))
        self._sweep()

    def _client(self) -> Downstream:
        return Downstream(self)

    # Where requests go

    def point(self, target: Target) -> None:
        """New requests go there; held ones are let go, first come first served."""
        previous = self._pool
        if previous is None or previous.target is not target:
            self._pool = self._pools.setdefault(target, Pool(target))
            self._pool.retired = False
            if previous is not None:
                self._retire(previous)
            self._last_since = int(time.time())
        self._last = target
        self._error = None
        self._gather_lost()
        self._let_go()

    def hold(self, reason: str) -> None:
        """From now on new requests wait."""
        self._leave_target()
        self._reason, self._error = reason, None
        self._gather_lost()

    def refuse(self, error: LlmdeployError) -> None:
        """New and held requests are answered with this error."""
        self._leave_target()
        self._reason, self._error = error.message, error
        self._gather_lost()
        held, self._held = self._held, {}
        for call in held:
            call.refuse(responses.unavailable(error))

    def _leave_target(self) -> None:
        previous, self._pool = self._pool, None
        if previous is not None:
            self._retire(previous)

    def _retire(self, pool: Pool) -> None:
        """No new request goes there."""
        pool.retire()
        if not pool.calls and self._pools.get(pool.target) is pool:
            del self._pools[pool.target]

    async def drain(self, target: Target, seconds: float) -> int:
        """Waits until nothing is in flight there; after `seconds` the rest is cut. Tells how many were."""
        pool = self._pools.get(target)
        if pool is None:
            return 0
        if pool is not self._pool:
            pool.retire()
        if await pool.until_empty(seconds):
            cut: list[Relay] = []
        else:
            cut = list(pool.calls)
            for call in cut:
                call.cut()
        if pool is not self._pool:
            self._retire(pool)
        return len(cut)

    # Requests

    def relay(self, call: Relay) -> None:
        """Sends a request to the server of now, or has it wait."""
        if self._pool is not None and not self._held:
            call.send(self._pool)
        elif self._error is not None:
            call.refuse(responses.unavailable(self._error))
        elif self._pool is None and self.held >= self.limits.held:
            call.refuse(responses.too_many_wait(self.held, self._reason))
        else:
            self._hold(call)

    def _hold(self, call: Relay) -> None:
        call.deadline = time.monotonic() + self.limits.hold_seconds
        self._held[call] = None

    def _let_go(self) -> None:
        """Sends some of the held requests, and the others a little later."""
        self._letting_go = False
        for call in list(self._held)[:RELEASED]:
            if self._pool is None:
                return
            if call in self._held:
                del self._held[call]
                call.send(self._pool)
        if self._held and self._pool is not None and not self._letting_go:
            self._letting_go = True
            asyncio.get_running_loop().call_soon(self._let_go)

    def lost(self, call: Relay, pool: Pool) -> None:
        """The server of a request cannot be reached. Who keeps it will soon say so."""
        if pool is self._pool:
            call.deadline = time.monotonic() + self.limits.lost_seconds
            self._lost[call] = None
        elif self._pool is None and self._error is None:
            self._hold_again([call])
        else:
            self.relay(call)

    def _gather_lost(self) -> None:
        """Lost requests wait for what comes now."""
        lost, self._lost = self._lost, {}
        if lost:
            self._hold_again(lost)

    def _hold_again(self, calls: Iterable[Relay]) -> None:
        """Requests that have waited before stand where they stood: before those that came later."""
        for call in calls:
            self._hold(call)
        self._held = dict.fromkeys(sorted(self._held, key=lambda it: it.received))

    def forget(self, call: Relay) -> None:
        """The client of a request has left."""
        self._held.pop(call, None)
        self._lost.pop(call, None)

    def exchange(self, client: Downstream, head: Request, body: bytes) -> ControlRequest:
        """Has somebody else answer a request."""
        exchange = ControlRequest(self, client, head, body)
        handler = self.control if head.path.startswith(routes.CONTROL) else self._answer_metrics
        assert handler is not None
        task = asyncio.get_running_loop().create_task(exchange.run(handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return exchange

    # What is answered here

    def document(self, path: str) -> tuple[int, dict[str, Any]]:
        """The status and the document of `/health` and `/v1/models`. Raises Refused."""
        if path != "/health":
            return 200, routes.models(path, self._last, self._last_since)
        if self._pool is not None:
            target = self._pool.target
            return 200, {"status": "ok", "engine": target.engine, "model": target.model}
        if self._error is not None:
            return 503, {"status": "failed", "reason": self._error.message, "hint": self._error.hint}
        return 503, {"status": "waiting", "reason": self._reason}

    async def _answer_metrics(self, exchange: ControlRequest) -> None:
        in_flight: Counter[Labels] = Counter()
        for pool in self._pools.values():
            in_flight[pool.target.engine, pool.target.model] += len(pool.calls)
        # In a thread: the library takes 50 ms to load, and streams must not wait for it.
        text, content_type = await asyncio.to_thread(self.metrics.text, in_flight, self.held)
        await exchange.answer_bytes(200, text, content_type)

    def in_flight(self, target: Target | None = None) -> int:
        """Requests that are with that server, or with any."""
        if target is None:
            return sum(len(pool.calls) for pool in self._pools.values())
        pool = self._pools.get(target)
        return 0 if pool is None else len(pool.calls)

    @property
    def held(self) -> int:
        """Requests that wait."""
        return len(self._held) + len(self._lost)

    def report(self, error: BaseException) -> None:
        """A mistake of ours: the loop's handler logs it."""
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a request to the gateway failed", "exception": error}
        )

    # Time

    def _sweep(self) -> None:
        """Ends what takes too long. One timer for all: none is started and cancelled for each request."""
        now, limits = time.monotonic(), self.limits
        for client in list(self.clients):
            client.sweep(now)
        for pool in list(self._pools.values()):
            pool.sweep(now)
            if pool.retired:
                self._retire(pool)
        for call in [it for it in self._held if it.deadline < now]:
            del self._held[call]
            call.refuse(responses.waited_too_long(limits.hold_seconds, self._reason))
        for call in [it for it in self._lost if it.deadline < now]:
            del self._lost[call]
            call.give_up()
        shortest = min(limits.head_seconds, limits.hold_seconds, limits.idle_seconds, limits.lost_seconds)
        self._sweeping = asyncio.get_running_loop().call_later(min(1.0, shortest / 4), self._sweep)

    # The end

    async def close(self) -> None:
        """Held requests are refused, others cut; nothing listens any more."""
        self._leave_target()
        for server in self._servers:
            server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._error = LlmdeployError("the gateway stops", "`llmdeploy status` tells what runs", code="stopping")
        self._gather_lost()
        held, self._held = self._held, {}
        for call in held:
            call.refuse(responses.closing())
        for pool in list(self._pools.values()):
            for call in list(pool.calls):
                call.cut()
            pool.close()
        self._pools.clear()
        await self._end_tasks()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.clients and time.monotonic() < deadline:
            for client in list(self.clients):
                client.close()
            await asyncio.sleep(0.01)
        for client in list(self.clients):
            client.transport.abort()

    async def _end_tasks(self) -> None:
        """Commands that still talk to the service, but for the one that may have asked for this."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
