"""The control route of the gateway: orders of commands, each with the token of the state folder."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import AlreadyServing, LlmdeployError, NotPermitted, UsageError, shortage
from llmdeploy.service import events
from llmdeploy.service.events import Switched
from llmdeploy.service.order import SwitchOrder
from llmdeploy.service.switch import Switch

if TYPE_CHECKING:
    from llmdeploy.gateway.control import ControlRequest
    from llmdeploy.service.events import Public
    from llmdeploy.service.slot import Slot

SWITCH = "/llmdeploy/switch"


class ControlApi:
    """Runs one switch at a time; whoever asked for it is told what happens, and undoes it by leaving."""

    def __init__(self, token: str, slot: Slot) -> None:
        self.switch: asyncio.Future[None] | None = None
        """The switch that is under way, or was the last."""
        self._token = token
        self._slot = slot
        self._listener: asyncio.Queue[dict[str, Any] | None] | None = None

    async def take(self, request: ControlRequest) -> None:
        """Answer one order."""
        try:
            self._require_token(request)
            if (request.method, request.path) != ("POST", SWITCH):
                raise UsageError(f"there is no `{request.method} {request.path}`", "update llmdeploy on both ends")
            wanted = SwitchOrder.from_json(request.body)
            self.require_turn()
        except LlmdeployError as error:
            await request.answer(403 if isinstance(error, NotPermitted) else 409, error.as_document())
            return
        await self._follow(request, Switch(self._slot, wanted))

    def _require_token(self, request: ControlRequest) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not (request.is_local and hmac.compare_digest(given.encode(), self._token.encode())):
            raise NotPermitted("the service takes orders from its own user alone", "run it as the user who serves")

    def require_turn(self) -> None:
        """Raise AlreadyServing unless a switch can begin now."""
        record = self._slot.recorder.record
        if self._slot.is_stopping:
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

    async def _follow(self, request: ControlRequest, switch: Switch) -> None:
        """Run the switch and pass on its events, until its end or until whoever asked has gone."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._listener = queue
        self.switch = running = asyncio.ensure_future(switch.run())
        running.add_done_callback(lambda _: queue.put_nowait(None))
        request.left.add_done_callback(lambda _: switch.call_off(running))
        try:
            await request.begin()
            while (event := await queue.get()) is not None:
                await request.event(event)
            await request.event(_outcome(running, self._slot))
            await request.end()
        except ConnectionError:  # it has gone; the switch is undone, or beyond that
            await asyncio.wait({running})
        finally:
            if self._listener is queue:  # a slow listener hears its end while the next switch runs
                self._listener = None

    def on_event(self, event: Public, elapsed: float) -> None:
        """Pass on an event to whoever asked for a switch."""
        if self._listener is not None:
            self._listener.put_nowait(events.document(event, elapsed))


def _outcome(running: asyncio.Future[None], slot: Slot) -> dict[str, Any]:
    """Return the last line: the error, or what serves now."""
    if running.cancelled() and slot.is_stopping:
        return LlmdeployError("the service was stopped, and the switch with it", "`llmdeploy serve`").as_document()
    if running.cancelled():
        return LlmdeployError("the switch was called off", "`llmdeploy status` shows what serves").as_document()
    error = running.exception()
    if isinstance(error, LlmdeployError):
        return error.as_document()
    if error is not None and (found := shortage(error)):
        return found.as_document()
    if error is not None:
        bug = LlmdeployError(f"this is a bug in llmdeploy: {error!r}", "`llmdeploy status`", code="internal")
        return bug.as_document()
    record = slot.recorder.record
    return events.document(Switched(record.engine, record.served_name))
