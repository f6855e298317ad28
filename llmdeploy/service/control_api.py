"""What commands tell the service, through the gateway's port: each order with the token of the state folder."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import AlreadyServing, LlmdeployError, NotPermitted, UsageError
from llmdeploy.service.switch import Switch, SwitchOrder

if TYPE_CHECKING:
    from llmdeploy.gateway.control import ControlRequest
    from llmdeploy.service.launch import Event
    from llmdeploy.service.service import Service

SWITCH = "/llmdeploy/switch"


class ControlApi:
    """One switch at a time; whoever asked for it is told what happens, and undoes it by leaving."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.switch: asyncio.Future[None] | None = None
        """The one that is under way, or was the last."""
        self._listener: asyncio.Queue[Event | None] | None = None

    async def take(self, exchange: ControlRequest) -> None:
        """Answer one order."""
        try:
            self._require_token(exchange)
            if (exchange.method, exchange.path) != ("POST", SWITCH):
                raise UsageError(f"there is no `{exchange.method} {exchange.path}`", "update llmdeploy on both ends")
            wanted = SwitchOrder.read(exchange.body)
            self._require_turn()
        except LlmdeployError as error:
            await exchange.answer(403 if isinstance(error, NotPermitted) else 409, error.as_document())
            return
        await self._follow(exchange, Switch(self._service, wanted))

    def _require_token(self, exchange: ControlRequest) -> None:
        given = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        if not (exchange.is_local and hmac.compare_digest(given.encode(), self._service.token.encode())):
            raise NotPermitted("the service takes orders from its own user alone", "run it as the user who serves")

    def _require_turn(self) -> None:
        record = self._service.record
        if self._service.stopping:
            raise AlreadyServing("the service is stopping", "`llmdeploy serve` starts another", code="stopping")
        if self.switch is not None and not self.switch.done():
            other = record.switch or {}
            raise AlreadyServing(
                f"a switch to `{other.get('model')}` on {other.get('engine')} is under way",
                "wait until it is done: `llmdeploy status` shows how far it is",
                code="switch_under_way",
            )
        if record.state != "ready":
            raise AlreadyServing(
                f"`{record.served_name}` on {record.engine} is still {record.phase or record.state}",
                "wait until it serves: `llmdeploy status` shows how far it is",
                code="not_ready",
            )

    async def _follow(self, exchange: ControlRequest, switch: Switch) -> None:
        """Run the switch and pass on its events, until its end or until whoever asked has gone."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listener = events
        self.switch = running = asyncio.ensure_future(switch.run())
        running.add_done_callback(lambda _: events.put_nowait(None))
        exchange.left.add_done_callback(lambda _: switch.call_off(running))
        try:
            await exchange.begin()
            while (event := await events.get()) is not None:
                await exchange.event(event)
            await exchange.event(_outcome(running, self._service))
            await exchange.end()
        except ConnectionError:  # it has gone; the switch is undone, or beyond that
            await asyncio.wait({running})
        finally:
            if self._listener is events:  # a slow listener hears its end while the next switch runs
                self._listener = None

    def tell(self, event: Event) -> None:
        if self._listener is not None:
            self._listener.put_nowait(event)


def _outcome(running: asyncio.Future[None], service: Service) -> dict[str, Any]:
    """The last event: the error, or what serves now."""
    if running.cancelled() and service.stopping:
        return LlmdeployError("the service was stopped, and the switch with it", "`llmdeploy serve`").as_document()
    if running.cancelled():
        return LlmdeployError("the switch was called off", "`llmdeploy status` shows what serves").as_document()
    error = running.exception()
    if isinstance(error, LlmdeployError):
        return error.as_document()
    if error is not None:
        bug = LlmdeployError(f"this is a bug in llmdeploy: {error!r}", "`llmdeploy status`", code="internal")
        return bug.as_document()
    return {"event": "switched", "engine": service.record.engine, "model": service.record.served_name}
