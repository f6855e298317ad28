"""The service: it holds the lock, keeps the record, listens at the one address, and serves what its slots hold."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from llmdeploy import config
from llmdeploy.address import local_url
from llmdeploy.config import api_key
from llmdeploy.errors import LlmdeployError, PortInUse
from llmdeploy.gateway.gateway import Gateway, Limits
from llmdeploy.service import descriptors, service_log, signals, state
from llmdeploy.service.cleanup import end_leftover
from llmdeploy.service.control_api import ControlApi
from llmdeploy.service.events import Public
from llmdeploy.service.ports import require_free_port
from llmdeploy.service.process import identify
from llmdeploy.service.recorder import Recorder
from llmdeploy.service.slot import Slot
from llmdeploy.service.state import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmdeploy.config.settings import GatewaySettings
    from llmdeploy.service.order import Order


class ServiceListener(Protocol):
    """Whoever runs the service, and is told what happens."""

    def on_event(self, event: Public, elapsed: float) -> None:
        """Take an event; `elapsed`: seconds since the service began."""

    def on_ready(self, record: Record, elapsed: float) -> None:
        """Take the record of what serves now."""

    def on_stop(self) -> None:
        """Take notice that the service was told to stop, and is about to."""


def serve(order: Order, listener: ServiceListener) -> None:
    """Serve until told to stop.

    Raises KeyboardInterrupt when interrupted, Terminated when told to stop, and an LlmdeployError for everything that
    keeps the deployment from serving; that one stays on record.
    """
    key = api_key.read(order.settings)
    api_key.require(order.settings.host, key, order.settings.gateway.origins)

    async def run() -> None:
        watch = asyncio.ensure_future(log.watch()) if log is not None else None
        try:
            await Service(order, listener, key).run()
        finally:
            if watch is not None:
                watch.cancel()

    log = service_log.install()
    with signals.interrupting(), state.lock():
        end_leftover(state.observe())
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory; None on Windows, which has no uvloop."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


class Service:
    """The gateway, the record, and the deployments behind the address. It is made inside a running event loop."""

    def __init__(self, order: Order, listener: ServiceListener, key: str | None) -> None:
        self.token = secrets.token_hex(32)
        self.recorder = Recorder(_first_record(order))
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the error that ends the service."""
        self.gateway = Gateway(
            _limits(order.settings.gateway),
            key,
            lambda request: self.control.take(request),
            origins=tuple(order.settings.gateway.origins or ()),
            make_key=api_key.make_command(),
        )
        logs = state.server_logs()
        self.slot = Slot(
            order,
            self.recorder,
            self.gateway.route,
            self.gateway.metrics,
            logs,
            emit=self.emit,
            on_failure=self._end_with,
            has_api_key=key is not None,
        )
        self.control = ControlApi(self.token, self.slot)
        self._listener = listener

    async def run(self) -> None:
        """Serve until a signal comes, or what is served cannot be kept serving."""
        stop = signals.stop_signal()
        work = asyncio.ensure_future(self._work())
        try:
            ends: set[asyncio.Future[Any]] = {stop, work, self.over}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                self._listener.on_stop()
                raise signals.interruption(stop.result())
            (work if work.done() else self.over).result()
        except LlmdeployError as error:
            self.recorder.fail(error)
            raise
        except BaseException:
            state.forget()
            raise
        finally:
            await self._end(work)

    async def _work(self) -> None:
        self.recorder.update()
        await self._listen()
        await self.slot.start()
        self._listener.on_ready(self.recorder.record, self.recorder.elapsed)
        self.slot.keep()
        await self.recorder.watch(lambda: state.write_token(self.token))

    async def _listen(self) -> None:
        """Be there for applications from now on: their requests wait until a server is ready."""
        order = self.slot.order
        host, port = order.settings.host, order.settings.port
        command = f"llmdeploy serve {shlex.quote(str(order.model))}"
        require_free_port(port, command, host)
        try:
            await self.gateway.listen(host, port)
        except OSError as error:
            raise PortInUse(
                f"`{host}:{port}` cannot be listened on: {error.strerror or error}",
                f"serve on another: `{command} --port 11435`",
            ) from None
        state.write_token(self.token)

    def emit(self, event: Public) -> None:
        """Pass on what happened, to whoever runs the service and to whoever asked for a switch."""
        elapsed = self.recorder.elapsed
        try:
            self._listener.on_event(event, elapsed)
        except Exception as error:  # nobody can be told any more: stdout is full, or its reader has gone
            self._end_with(error)
        self.control.on_event(event, elapsed)

    def _end_with(self, error: BaseException) -> None:
        if not self.over.done():
            self.over.set_exception(error)

    async def _end(self, work: asyncio.Future[None]) -> None:
        """End everything that runs, and leave nothing of it."""
        self.slot.is_stopping = True
        if self.over.done():
            self.over.exception()  # told already, or something else came first
        signals.call_on_another(self.slot.kill)
        everything: list[asyncio.Future[Any] | None] = [work, self.control.switch, *self.slot.tasks]
        waiting: set[asyncio.Future[Any]] = {it for it in everything if it is not None and not it.done()}
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        await self.slot.stop()
        await self.gateway.close()
        with suppress(OSError):
            state.token_file().unlink()


def _limits(settings: GatewaySettings) -> Limits:
    """Return the limits of the gateway. Two of the largest bodies are always possible at once."""
    default, body = Limits(), settings.max_body_mb * 2**20
    return Limits(
        body=body,
        held=settings.max_held,
        hold_seconds=settings.hold_timeout,
        buffered=max(default.buffered, 2 * body),
        clients=descriptors.most_clients(descriptors.raise_limit(), default.clients),
    )


def _first_record(order: Order) -> Record:
    """Return the record of a service that has only begun."""
    settings, itself = order.settings, identify(os.getpid())
    assert itself is not None
    return Record(
        state="starting",
        phase="",
        model=str(order.model),
        served_name=order.served_name,
        engine=settings.engine,
        url=local_url(settings.host, settings.port),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        service=itself,
        ticket=os.environ.get(state.TICKET, ""),
        settings=config.document(settings),
    )
