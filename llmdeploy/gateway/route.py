"""The route of the requests for one served name: to a server, into a queue, or to a refusal."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from llmdeploy.errors import LlmdeployError
from llmdeploy.gateway import responses
from llmdeploy.gateway.limits import Limits
from llmdeploy.gateway.metrics import Labels
from llmdeploy.gateway.relay import Relay
from llmdeploy.gateway.suspects import Suspect
from llmdeploy.gateway.target import Target
from llmdeploy.gateway.upstream import Call, Pool

RELEASED = 8
"""Held requests that are released in one turn of the event loop, so that a full queue does not delay other requests."""

TOGETHER = 0.1
"""Seconds for which requests that ended with a server are gathered, to be reported together."""


@dataclass(frozen=True)
class Load:
    """The work of one server: to do, and done."""

    waiting: int
    """Number of requests that wait for something from it."""
    received: int
    """Number of pieces of answers that have come from it."""


NO_LOAD = Load(0, 0)


class Traffic:
    """State that all routes of one gateway share: the limits, the connections to servers, and the queue's length."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pools: dict[Target, Pool] = {}
        """The connections to each server that requests go to, or that still has some."""
        self.routes: list[Route] = []

    @property
    def held(self) -> int:
        """The number of requests that wait for a server, on all routes."""
        return sum(route.held for route in self.routes)

    def in_flight(self) -> Counter[Labels]:
        """Return the number of requests with a server, by engine and model."""
        counts: Counter[Labels] = Counter()
        for pool in self.pools.values():
            counts[pool.target.engine, pool.target.model] += len(pool.calls)
        return counts

    def retire(self, pool: Pool) -> None:
        """Send no new request to the server of this pool."""
        pool.retire()
        if not pool.calls and self.pools.get(pool.target) is pool:
            del self.pools[pool.target]

    def sweep(self, now: float) -> None:
        """End what takes too long, on all routes."""
        for pool in list(self.pools.values()):
            pool.sweep(now)
            if pool.retired:
                self.retire(pool)
        for route in self.routes:
            route.sweep(now)

    def close(self) -> None:
        """Refuse held requests, cut those with a server, and close all connections."""
        for route in self.routes:
            route.close()
        for pool in list(self.pools.values()):
            for call in list(pool.calls):
                call.cut()
            pool.close()
        self.pools.clear()


class Route:
    """One served name. Its requests go to the server of the moment, wait for one, or are refused."""

    __slots__ = (
        "_error",
        "_held",
        "_lost",
        "_pool",
        "_reason",
        "_releasing",
        "_suspects",
        "_traffic",
        "on_missing",
        "on_suspects",
        "since",
        "target",
    )

    def __init__(self, traffic: Traffic) -> None:
        self.target: Target | None = None
        """The server that requests go to, or went to last."""
        self.since = 0
        """Unix time of the last change of the target."""
        self._traffic = traffic
        self._pool: Pool | None = None
        """The connections that new requests use; None while requests wait or are refused."""
        self._reason = "starting"
        self._error: LlmdeployError | None = None
        self._held: dict[Relay, None] = {}
        self._lost: dict[Relay, None] = {}
        """Requests whose server cannot be reached, until it is known whether the server is gone."""
        self._releasing = False
        self._suspects: list[Suspect] = []
        self.on_suspects: Callable[[list[Suspect]], None] | None = None
        """A function that is told which requests a server ended with."""
        self.on_missing: Callable[[], None] | None = None
        """A function that is told that the server does not have the model any more."""
        traffic.routes.append(self)

    # Where requests go

    def point(self, target: Target) -> None:
        """Send new requests to `target`, and release held ones in the order of their arrival."""
        previous = self._pool
        if previous is None or previous.target is not target:
            self._pool = self._traffic.pools.setdefault(target, Pool(target))
            self._pool.retired = False
            if previous is not None:
                self._traffic.retire(previous)
            self.since = int(time.time())
        self.target = target
        self._error = None
        self._gather_lost()
        self._release()

    def hold(self, reason: str) -> None:
        """Make new requests wait from now on."""
        self._leave_target()
        self._reason, self._error = reason, None
        self._gather_lost()

    def refuse(self, error: LlmdeployError) -> None:
        """Answer new and held requests with this error."""
        self._leave_target()
        self._reason, self._error = error.message, error
        self._gather_lost()
        held, self._held = self._held, {}
        for call in held:
            call.refuse(responses.unavailable(error))

    def _leave_target(self) -> None:
        previous, self._pool = self._pool, None
        if previous is not None:
            self._traffic.retire(previous)

    async def drain(self, target: Target, seconds: float) -> int:
        """Wait until no request is with `target`, then cut those left after `seconds`. Return how many were cut."""
        pool = self._traffic.pools.get(target)
        if pool is None:
            return 0
        if pool is not self._pool:
            pool.retire()
        if await pool.until_empty(seconds):
            cut: list[Call] = []
        else:
            cut = list(pool.calls)
            for call in cut:
                call.cut()
        if pool is not self._pool:
            self._traffic.retire(pool)
        return len(cut)

    # Requests

    def relay(self, call: Relay) -> None:
        """Send a request to the server of the moment, or make it wait."""
        if self._pool is not None and not self._held:
            call.send(self._pool)
        elif self._error is not None:
            call.refuse(responses.unavailable(self._error))
        elif self._pool is None and (held := self._traffic.held) >= self._traffic.limits.held:
            call.refuse(responses.too_many_wait(held, self._reason))
        else:
            self._hold(call)

    def _hold(self, call: Relay) -> None:
        call.deadline = call.received + self._traffic.limits.hold_seconds
        self._held[call] = None

    def _release(self) -> None:
        """Send some of the held requests now, and the others a little later."""
        self._releasing = False
        for call in list(self._held)[:RELEASED]:
            if self._pool is None:
                return
            if call in self._held:
                del self._held[call]
                call.send(self._pool)
        if self._held and self._pool is not None and not self._releasing:
            self._releasing = True
            asyncio.get_running_loop().call_soon(self._release)

    def lost(self, call: Relay, pool: Pool) -> None:
        """Make a request wait whose server cannot be reached, until it is known whether the server is gone."""
        if pool is self._pool:
            call.deadline = time.monotonic() + self._traffic.limits.lost_seconds
            self._lost[call] = None
        elif self._pool is None and self._error is None:
            self._hold_again([call])
        else:
            self.relay(call)

    def missing(self) -> None:
        """Take note that the server does not have the model any more."""
        if self.on_missing is not None:
            self.on_missing()

    def suspect(self, suspect: Suspect) -> None:
        """Take note of a request whose server ended before its answer was complete."""
        if not self._suspects:
            asyncio.get_running_loop().call_later(TOGETHER, self._tell_suspects)
        self._suspects.append(suspect)

    def _tell_suspects(self) -> None:
        suspects, self._suspects = self._suspects, []
        if self.on_suspects is not None:
            self.on_suspects(suspects)

    def _gather_lost(self) -> None:
        """Put lost requests back into the queue."""
        lost, self._lost = self._lost, {}
        if lost:
            self._hold_again(lost)

    def _hold_again(self, calls: Iterable[Relay]) -> None:
        """Make requests wait at the place that they had: before those that came later."""
        for call in calls:
            self._hold(call)
        self._held = dict.fromkeys(sorted(self._held, key=lambda it: it.received))

    def forget(self, call: Relay) -> None:
        """Drop a request whose client has left."""
        self._held.pop(call, None)
        self._lost.pop(call, None)

    # Its state

    def load(self, target: Target) -> Load:
        """Return what a server has to do, and has done."""
        pool = self._traffic.pools.get(target)
        if pool is None:
            return NO_LOAD
        return Load(sum(not call.is_blocked for call in pool.calls), pool.received)

    @property
    def held(self) -> int:
        """The number of requests that wait for a server."""
        return len(self._held) + len(self._lost)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status and the document of `/health`."""
        if self._pool is not None:
            target = self._pool.target
            return 200, {"status": "ok", "engine": target.engine, "model": target.model}
        if self._error is not None:
            return 503, {"status": "failed", "reason": self._error.message, "hint": self._error.hint}
        return 503, {"status": "waiting", "reason": self._reason}

    # The end

    def sweep(self, now: float) -> None:
        """Refuse requests that have waited too long."""
        for call in [it for it in self._held if it.deadline < now]:
            del self._held[call]
            call.refuse(responses.waited_too_long(self._traffic.limits.hold_seconds, self._reason))
        for call in [it for it in self._lost if it.deadline < now]:
            del self._lost[call]
            call.give_up()

    def close(self) -> None:
        """Refuse held and new requests: the gateway stops."""
        self._leave_target()
        self._error = LlmdeployError("the gateway stops", "`llmdeploy status` tells what runs", code="stopping")
        self._gather_lost()
        held, self._held = self._held, {}
        for call in held:
            call.refuse(responses.closing())
