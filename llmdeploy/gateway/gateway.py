"""The gateway: one stable address in front of a server that may change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from llmdeploy.gateway import api_routes
from llmdeploy.gateway.control import ControlRequest
from llmdeploy.gateway.downstream import Downstream
from llmdeploy.gateway.metrics import Metrics
from llmdeploy.gateway.route import Limits, Route, Traffic
from llmdeploy.gateway.target import Target
from llmdeploy.http1 import Request

__all__ = ["Control", "ControlRequest", "Gateway", "Limits", "Metrics", "Target"]

Control = Callable[[ControlRequest], Awaitable[None]]
"""A handler of requests whose path begins with `/llmdeploy/`; it checks their token itself."""

BACKLOG = 1024
"""Connections that the system queues before the gateway accepts them."""
CLOSE_SECONDS = 2.0
"""Seconds that clients have to take the last answers when the gateway stops."""


class Gateway:
    """One address for applications. Requests to it are relayed, held, or refused by their route."""

    port: int

    def __init__(self, limits: Limits, api_key: str | None = None, control: Control | None = None) -> None:
        self.limits = limits
        self.key = None if api_key is None else api_key.encode()
        self.has_control = control is not None
        self._control = control
        self.host = ""
        self.metrics = Metrics()
        self.clients: set[Downstream] = set()
        self.buffered = 0
        """Bytes of request bodies in memory, of all connections."""
        self.traffic = Traffic(limits)
        self.route = Route(self.traffic)
        """The route of the one served model. It takes all requests, whichever model they name."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> None:
        """Accept connections; with port 0 on any free one, which `port` has then. Raises OSError."""
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

    # Requests that are answered here

    def answer_elsewhere(self, client: Downstream, head: Request, body: bytes) -> ControlRequest:
        """Start a task that answers the request: the control handler's, or the one for metrics."""
        exchange = ControlRequest(self, client, head, body)
        handler = self._control if head.path.startswith(api_routes.CONTROL) else self._answer_metrics
        assert handler is not None
        task = asyncio.get_running_loop().create_task(exchange.run(handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return exchange

    def document(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the document for `/health` or `/v1/models`. Raises Refused."""
        if path != "/health":
            return 200, api_routes.models(path, self.route.target, self.route.since)
        return self.route.health()

    async def _answer_metrics(self, exchange: ControlRequest) -> None:
        traffic = self.traffic
        # In a thread, because the library takes 50 ms to load and streams must not wait for it.
        text, content_type = await asyncio.to_thread(self.metrics.text, traffic.in_flight(), traffic.held)
        await exchange.answer_bytes(200, text, content_type)

    def report(self, error: BaseException) -> None:
        """Pass a bug in the gateway to the event loop's handler, which logs it."""
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a request to the gateway failed", "exception": error}
        )

    # Time

    def _sweep(self) -> None:
        """End what takes too long. One timer serves all requests: a timer for each would cost time on every request."""
        now, limits = time.monotonic(), self.limits
        for client in list(self.clients):
            client.sweep(now)
        self.traffic.sweep(now)
        shortest = min(limits.head_seconds, limits.hold_seconds, limits.idle_seconds, limits.lost_seconds)
        self._sweeping = asyncio.get_running_loop().call_later(min(1.0, shortest / 4), self._sweep)

    # The end

    async def close(self) -> None:
        """Stop listening, refuse held requests, cut the others, and close all connections."""
        for server in self._servers:
            server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self.traffic.close()
        await self._end_tasks()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.clients and time.monotonic() < deadline:
            for client in list(self.clients):
                client.close()
            await asyncio.sleep(0.01)
        for client in list(self.clients):
            client.transport.abort()

    async def _end_tasks(self) -> None:
        """Cancel the requests of commands, except the one that this coroutine may run in."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
