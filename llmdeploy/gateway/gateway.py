"""The gateway: one stable address in front of a server that may change."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from heapq import nsmallest
from logging import getLogger
from typing import Any

from llmdeploy.gateway import api_routes, responses
from llmdeploy.gateway.auth import MAKE_KEY, Access
from llmdeploy.gateway.control import ControlRequest
from llmdeploy.gateway.denials import Denials
from llmdeploy.gateway.downstream import Downstream
from llmdeploy.gateway.limits import Limits
from llmdeploy.gateway.metrics import Metrics
from llmdeploy.gateway.reader import Connection
from llmdeploy.gateway.route import Route, Traffic
from llmdeploy.gateway.target import Target
from llmdeploy.gateway.turns import Turns
from llmdeploy.http1 import Request

__all__ = ["Control", "ControlRequest", "Gateway", "Limits", "Metrics", "Target"]

Control = Callable[[ControlRequest], Awaitable[None]]
"""A handler of requests whose path begins with `/llmdeploy/`; it checks their token itself."""

NO_IPV6 = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Errors of a machine without the address `::1`."""
BACKLOG = 1024
"""Connections that the system queues before the gateway accepts them."""
CLOSE_SECONDS = 2.0
"""Seconds that clients have to take the last answers when the gateway stops."""
SPARE = 64
"""The share of all connections, as a divisor, that is closed at once when there are too many."""

_log = getLogger(__name__)


class Gateway:
    """One address for applications. Requests to it are relayed, held, or refused by their route."""

    port: int

    def __init__(
        self,
        limits: Limits,
        api_key: str | None = None,
        control: Control | None = None,
        *,
        origins: tuple[str, ...] = (),
        make_key: str = MAKE_KEY,
    ) -> None:
        """Make a gateway that needs `api_key`, if there is one, and lets pages of `origins` use it with that key.

        `make_key` is the command, for hints, that makes a key and sets it.
        """
        self.limits = limits
        key = None if api_key is None else api_key.encode()
        self.access = Access(key, origins if key else (), make_key=make_key)
        self.has_control = control is not None
        self._control = control
        self._denials = Denials()
        self.metrics = Metrics()
        self.clients: set[Downstream] = set()
        self.buffered = 0
        """Bytes of incomplete requests and of request bodies in memory, of all connections."""
        self.traffic = Traffic(limits)
        self.route = Route(self.traffic)
        """The route of the one served model. It takes all requests, whichever model they name."""
        self.turns = Turns()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> None:
        """Accept connections; with port 0 on any free one, which `port` has then. Raises OSError."""
        loop = asyncio.get_running_loop()
        name = "127.0.0.1" if host == "localhost" else host
        server = await loop.create_server(self._client, name, port, backlog=BACKLOG)
        self._servers.append(server)
        self.access = replace(self.access, host=host)
        self.port = server.sockets[0].getsockname()[1]
        if host == "localhost":
            try:
                self._servers.append(await loop.create_server(self._client, "::1", self.port, backlog=BACKLOG))
            except OSError as error:
                # Not every machine has IPv6. But where another program has that port, it would get prompts.
                if error.errno not in NO_IPV6:
                    server.close()
                    raise
        self._sweep()

    def _client(self) -> Downstream:
        return Downstream(self)

    def make_room(self, client: Downstream) -> None:
        """Close the oldest idle connections now that there are too many. If all are busy, refuse the new one.

        Some more are closed than must be, so that a flood of connections does not cost a look at all of them each time.
        """
        number = len(self.clients) - self.limits.clients + self.limits.clients // SPARE
        now = time.monotonic()
        places = ((it.dispensable(now), it) for it in self.clients if it is not client)
        oldest = nsmallest(number, ((place, it) for place, it in places if place), key=lambda pair: pair[0])
        for _, it in oldest:
            it.give_way()
        if len(self.clients) > self.limits.clients:
            client.reject(responses.too_many_clients())

    def note_denial(self, connection: Connection) -> None:
        """Log that a request had no API key or a wrong one, now and then."""
        peer = connection.transport.get_extra_info("peername")
        line = self._denials.note(str(peer[0]) if peer else "an unknown address", time.monotonic())
        if line is not None:
            _log.warning(line)

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
        self._sweeping = asyncio.get_running_loop().call_later(min(1.0, limits.shortest / 4), self._sweep)

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
