"""What the service is: it holds the lock, writes the record, listens at the one address, and keeps one deployment."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from llmdeploy import config
from llmdeploy.address import local_url
from llmdeploy.background import in_thread
from llmdeploy.config import api_key
from llmdeploy.engines import registry
from llmdeploy.errors import LlmdeployError, PortInUse
from llmdeploy.gateway.gateway import Gateway, Limits
from llmdeploy.service import signals, state
from llmdeploy.service.cleanup import end_leftover
from llmdeploy.service.control_api import ControlApi
from llmdeploy.service.launch import READY, Event, Launch, Order
from llmdeploy.service.ports import require_free_port
from llmdeploy.service.process import identify
from llmdeploy.service.provenance import provenance
from llmdeploy.service.state import Record
from llmdeploy.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

RECORD_WATCH = 1.0
"""Seconds between two looks at the record while it serves, and between two writings of a download's progress."""
PRIVATE = {"started", "serving", "down"}
"""Events that are nobody's but the service's."""


class ServiceListener(Protocol):
    """What the service tells whoever runs it."""

    def tell(self, event: Event) -> None:
        """Something happened on the way: `event` is its kind, `elapsed` the seconds since the service began."""

    def on_ready(self, record: Record, elapsed: float) -> None: ...
    def on_stop(self) -> None:
        """Told to stop, and about to."""


def serve(order: Order, notices: ServiceListener) -> None:
    """Serve until told to stop.

    Raises KeyboardInterrupt when interrupted, Terminated when told to stop, and an LlmdeployError for everything that
    keeps the deployment from serving; that one stays on record.
    """
    key = api_key.read(order.settings)
    api_key.require(order.settings.host, key)
    with signals.interrupting(), state.lock():
        end_leftover(state.observe())
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(Service(order, notices, key).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one: Windows has none."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


class Service:
    """The gateway, the keeper of what serves, and the record of both."""

    def __init__(self, order: Order, notices: ServiceListener, api_key: str | None) -> None:
        self.order = order
        self.notices = notices
        self.token = secrets.token_hex(32)
        self.stopping = False
        """Told to stop: nothing is started any more."""
        settings = order.settings
        limits = Limits(
            body=settings.gateway.max_body_mb * 2**20,
            held=settings.gateway.max_held,
            hold_seconds=settings.gateway.hold_timeout,
        )
        self.orders = ControlApi(self)
        self._key = api_key
        self._limits = limits
        self._began = time.monotonic()
        self._written = 0.0
        self._unwritten = False
        """What is on record is older than what is known."""
        self._keeping: asyncio.Task[None] | None = None
        self._keepers: list[Supervisor] = []
        self._background: set[asyncio.Task[None]] = set()
        itself = identify(os.getpid())
        assert itself is not None
        self.record = Record(
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

    async def run(self) -> None:
        """Serve until a signal comes or what is served cannot be kept."""
        self.gateway = Gateway(self._limits, self._key, self.orders.take)
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the error that ends the service."""
        told = signals.told()
        work = asyncio.ensure_future(self._work())
        try:
            ends: set[asyncio.Future[Any]] = {told, work, self._over}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                self.notices.on_stop()
                raise signals.interruption(told.result())
            (work if work.done() else self._over).result()
        except LlmdeployError as error:
            self._fail(error)
            raise
        except BaseException:
            state.forget()
            raise
        finally:
            await self._end(work)

    async def _end(self, work: asyncio.Future[None]) -> None:
        """Whatever runs ends, and nothing of it stays."""
        self.stopping = True
        if self._over.done():
            self._over.exception()  # told already, or something else came first
        signals.call_on_another(self._kill)
        everything: list[asyncio.Future[Any] | None] = [work, self._keeping, self.orders.switch, *self._background]
        waiting: set[asyncio.Future[Any]] = {it for it in everything if it is not None and not it.done()}
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
        await self.gateway.close()
        with suppress(OSError):
            state.token_file().unlink()

    def _kill(self) -> None:
        for keeper in self._keepers:
            keeper.candidate.kill()

    async def _work(self) -> None:
        self.update()
        await self._listen()
        first = self.keeper(self.order, state.server_logs()[0], self.hear)
        self.current = first
        await first.look()
        await first.settle()
        await first.start()
        self.notices.on_ready(self.record, self.elapsed)
        self.keep()
        await self._watch()

    async def _listen(self) -> None:
        """Be there for applications from now on: what they ask meanwhile waits."""
        settings = self.order.settings
        command = f"llmdeploy serve {shlex.quote(str(self.order.model))}"
        require_free_port(settings.port, command, settings.host)
        try:
            await self.gateway.listen(settings.host, settings.port)
        except OSError as error:
            raise PortInUse(
                f"`{settings.host}:{settings.port}` cannot be listened on: {error.strerror or error}",
                f"serve on another: `{command} --port 11435`",
            ) from None
        try:
            state.token_file().unlink(missing_ok=True)
            with state.open_private(state.token_file(), os.O_EXCL) as stream:
                stream.write(self.token)
        except OSError as error:
            raise state.unwritable(error) from error

    async def _watch(self) -> None:
        """A record that somebody deleted, or a full disk did not take, is written anew: by it the service is found."""
        while True:
            await asyncio.sleep(RECORD_WATCH)
            with suppress(LlmdeployError):  # the disk may be full; the next round tries again
                if self._unwritten or state.read() is None:
                    self.update()

    # The record

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def update(self, **changes: object) -> None:
        """Raises StateUnwritable."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type] # checked where it is called
        self._written = self.elapsed
        self._unwritten = True
        state.write(self.record)
        self._unwritten = False

    def _update_serving(self, **changes: object) -> None:
        """Raises StateUnwritable in the first start alone: a full disk ends nothing that has served."""
        try:
            self.update(**changes)
        except LlmdeployError:
            if self._keeping is None:
                raise

    def _fail(self, error: LlmdeployError) -> None:
        """Put the reason on record; where that cannot be written, no record is better than one that says `starting`."""
        with suppress(LlmdeployError):  # the first failure is the one to tell
            try:
                self.update(state="failed", switch=None, error=error.as_document())
            except LlmdeployError:
                state.forget()

    # What serves

    def keeper(self, order: Order, log_file: Path, hear: Callable[[Supervisor, Event], None]) -> Supervisor:
        """A keeper of another deployment, which ends with the service at the latest."""
        engine = registry.get(order.settings.engine, order.settings)
        keeper: Supervisor = Supervisor(order, engine, lambda event: hear(keeper, event), log_file)
        self._keepers.append(keeper)
        return keeper

    def dismiss(self, keeper: Supervisor) -> None:
        """It is stopped."""
        self._keepers.remove(keeper)

    @property
    def free_log(self) -> Path:
        """The log that the server of now does not write to."""
        return next(it for it in state.server_logs() if it != self.current.log_file)

    def keep(self, ended: LlmdeployError | None = None) -> None:
        """Watch what serves, and start it again where it ends; `ended` where it has."""
        self._keeping = asyncio.ensure_future(self.current.keep(ended))
        self._keeping.add_done_callback(self._kept)

    def _kept(self, keeping: asyncio.Task[None]) -> None:
        if not keeping.cancelled() and (error := keeping.exception()):
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    async def leave(self) -> None:
        """Watch what serves no more: it is about to be stopped."""
        if self._keeping and not self._keeping.done():
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    def adopt(self, keeper: Supervisor) -> None:
        """From now on this one is what serves. Nothing in here waits: it happens whole or not at all."""
        self.current, self.order = keeper, keeper.order
        self.target = keeper.target()
        self.gateway.route.point(self.target)
        self._record_serving()

    def _record_serving(self) -> None:
        now, order = self.current.candidate, self.order
        self._update_serving(
            state="ready",
            phase=READY,
            progress="",
            model=str(order.model),
            served_name=order.served_name,
            engine=self.current.engine.name,
            engine_version=now.version,
            server=now.server,
            server_url=now.spec.base_url,
            log=str(now.log_file),
            plan=asdict(now.plan),
            detail=now.loaded.detail if now.loaded else "",
            capabilities=now.facts.capabilities,
            settings=config.document(order.settings),
            receipt=None,
        )
        self._spawn(self._make_receipt(self.current, now))

    async def _make_receipt(self, keeper: Supervisor, candidate: Launch) -> None:
        found = await in_thread(lambda: provenance(keeper, candidate))
        if candidate is self.current.candidate:  # it may have been started again meanwhile
            with suppress(LlmdeployError):
                self.update(receipt=found)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # What happens

    def tell(self, event: Event) -> None:
        """Pass on what happened, to whoever runs the service and to whoever asked for a switch."""
        told = {**event, "elapsed": round(self.elapsed, 1)}
        try:
            self.notices.tell(told)
        except Exception as error:  # nobody can be told any more: stdout is full, or its reader has gone
            self._end_with(error)
        self.orders.tell(told)

    def hear(self, keeper: Supervisor, event: Event) -> None:
        """What happens to a keeper: the gateway and the record follow that of the one that serves."""
        if event["event"] not in PRIVATE:
            self.tell(event)
        if keeper is self.current and not self.stopping:
            self._react(event)

    def _react(self, event: Event) -> None:
        match event:
            case {"event": "phase", "phase": phase}:
                self._progress(phase=phase, progress="")
            case {"event": "wait", "line": line}:
                self._progress(progress=line)
            case {"event": "percent", "percent": percent}:
                self._progress(progress=f"{percent} %")
            case {"event": "download", "file": file, "done": done, "total": total}:
                if self.elapsed > self._written + RECORD_WATCH:
                    percent = f"{100 * done // total} %" if total else f"{done / 1e6:.0f} MB"
                    self._progress(progress=f"{file}: {percent}")
            case {"event": "note", "text": text}:
                self._progress(notes=(*self.record.notes, text))
            case {"event": "plan"}:
                self._progress(plan=asdict(self.current.candidate.plan))
            case {"event": "started"}:
                now = self.current.candidate
                self._update_serving(
                    server=now.server,
                    server_url=now.spec.base_url,
                    engine_version=now.version,
                    log=str(now.log_file),
                )
            case {"event": "serving"}:
                self.target = self.current.target()
                self._record_serving()
                self.gateway.route.point(self.target)
            case {"event": "down", "error": error}:
                self.gateway.route.hold(error.message)
                self._progress(state="starting", phase="restarting", progress=error.message, server=None)

    def _progress(self, **changes: object) -> None:
        if self.record.state == "ready" and "state" not in changes:
            return  # it serves: what goes on is the receipt's or a switch's
        with suppress(LlmdeployError):  # a record that cannot be written any more ends no start
            self.update(**changes)
