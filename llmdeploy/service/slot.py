"""One deployment behind the address: its supervisor, what it serves now, and its place at the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, assert_never
from urllib.parse import urlsplit

from llmdeploy import config
from llmdeploy.background import in_thread
from llmdeploy.engines import registry
from llmdeploy.errors import LlmdeployError
from llmdeploy.gateway.route import NO_LOAD
from llmdeploy.gateway.suspects import Suspect, named
from llmdeploy.gateway.target import Target
from llmdeploy.service.events import (
    Down,
    Download,
    Fetching,
    Internal,
    Loaded,
    Note,
    OnEvent,
    Percent,
    Phase,
    PlanApplied,
    Planned,
    Public,
    Room,
    Serving,
    Started,
    Step,
    Stopping,
    Switched,
    Wait,
)
from llmdeploy.service.launch import READY
from llmdeploy.service.provenance import provenance
from llmdeploy.service.supervisor import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.gateway.metrics import Metrics
    from llmdeploy.gateway.route import Load, Route
    from llmdeploy.service.order import Order
    from llmdeploy.service.recorder import Recorder
    from llmdeploy.service.stages import Ready

OnSupervisorEvent = Callable[[Supervisor, Public | Internal], None]

MOST_NOTES = 50
"""Number of remarks that the record keeps: a service that runs for months has many."""


class Slot:
    """One deployment: a switch replaces what it serves, and its place at the gateway stays."""

    def __init__(
        self,
        order: Order,
        recorder: Recorder,
        route: Route,
        metrics: Metrics,
        logs: tuple[Path, Path],
        *,
        emit: OnEvent,
        on_failure: Callable[[BaseException], None],
        has_api_key: bool = False,
    ) -> None:
        """`logs`: files for the servers' logs, taken in turns; `on_failure`: called if it cannot be kept serving.

        `has_api_key`: whether applications need one.
        """
        self.recorder = recorder
        self.route = route
        """The way of its requests through the gateway."""
        route.on_suspects = self._tell_suspects
        route.on_missing = self._look_for_model
        self.metrics = metrics
        self.emit = emit
        self.is_stopping = False
        """Whether it is being stopped: nothing is started any more."""
        self.ready: Ready | None = None
        """The server that serves, or that served last; None before the first one is ready."""
        self.target: Target | None = None
        """The target of its requests; None before the first server is ready."""
        self._logs = logs
        self._on_failure = on_failure
        self._has_api_key = has_api_key
        self._keeping: asyncio.Task[None] | None = None
        self._supervisors: list[Supervisor] = []
        self._background: set[asyncio.Task[None]] = set()
        self.supervisor = self.new_supervisor(order, logs[0], self.on_event)
        """The supervisor of what serves."""

    @property
    def order(self) -> Order:
        """The order that is served."""
        return self.supervisor.order

    @property
    def serves(self) -> bool:
        """Whether a server is ready and has not ended."""
        return self.ready is not None and self.ready.server.serves

    @property
    def free_log(self) -> Path:
        """The log file that the server of now does not write to."""
        return next(it for it in self._logs if it != self.supervisor.log_file)

    async def start(self) -> None:
        """Start the first server."""
        prepared = await self.supervisor.prepare()
        await self.supervisor.start(await self.supervisor.apply_plan(prepared))

    def new_supervisor(self, order: Order, log_file: Path, on_event: OnSupervisorEvent) -> Supervisor:
        """Return a supervisor of another server, which ends with the slot at the latest."""
        engine = registry.get(order.settings.engine, order.settings)
        supervisor: Supervisor = Supervisor(
            order, engine, lambda event: on_event(supervisor, event), log_file, self._load
        )
        self._supervisors.append(supervisor)
        return supervisor

    def dismiss(self, supervisor: Supervisor) -> None:
        """Forget a supervisor that was stopped."""
        self._supervisors.remove(supervisor)

    def keep(self, ended: LlmdeployError | None = None) -> None:
        """Watch what serves, and start it again when it ends; `ended`: the error that has ended it already."""
        assert self.ready is not None
        self._keeping = asyncio.ensure_future(self.supervisor.keep(self.ready, ended))
        self._keeping.add_done_callback(self._on_kept)

    def _on_kept(self, keeping: asyncio.Task[None]) -> None:
        if not keeping.cancelled() and (error := keeping.exception()):
            self._on_failure(error)

    async def leave(self) -> None:
        """Stop watching what serves: it is about to be stopped."""
        if self._keeping and not self._keeping.done():
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    def adopt(self, supervisor: Supervisor, ready: Ready) -> None:
        """Serve with this server from now on. Nothing in here waits: it happens whole or not at all."""
        self.supervisor = supervisor
        self._serve(ready)

    # Its place at the gateway

    def point(self) -> None:
        """Send requests to what serves, those that wait too."""
        assert self.target is not None
        self.route.point(self.target)

    async def drain(self, target: Target) -> None:
        """Let the requests end that a server answers; those that take too long are cut."""
        seconds = self.order.settings.gateway.drain_timeout
        if cut := await self.route.drain(target, seconds):
            requests = "1 request" if cut == 1 else f"{cut} requests"
            self.emit(Note(f"{requests} had not ended after {seconds:g} s: cut"))

    def _look_for_model(self) -> None:
        """Look whether the engine still has the model: a request was answered that it has not."""
        self.supervisor.look()

    def _load(self) -> Load:
        """Return what the server that serves has to do now."""
        return NO_LOAD if self.target is None else self.route.load(self.target)

    def _tell_suspects(self, suspects: Sequence[Suspect]) -> None:
        """Name the requests that a server ended with: beside its last words, and to whoever runs the service."""
        text = named(suspects)
        if self.ready is not None and suspects[0].target is self.target:
            self.ready.server.write_line(text)
        self.emit(Note(text))

    # What happens

    def on_event(self, supervisor: Supervisor, event: Public | Internal) -> None:
        """Pass on an event of a supervisor; the gateway and the record follow the one that serves."""
        if not isinstance(event, Internal):
            self.emit(event)
        if supervisor is self.supervisor and not self.is_stopping:
            self._react(event)

    def _react(self, event: Public | Internal) -> None:
        update = self.recorder.update_start
        match event:
            case Phase(phase=phase):
                update(phase=phase, progress="")
            case Wait(line=line):
                update(progress=line)
            case Percent(percent=percent):
                update(progress=f"{percent} %")
            case Download(file=file, done=done, total=total):
                if not self.recorder.was_written_lately:
                    percentage = f"{100 * done // total} %" if total else f"{done / 1e6:.0f} MB"
                    update(progress=f"{file}: {percentage}")
            case Note(text=text):
                # Each restart says the same again.
                update(notes=tuple(dict.fromkeys((*self.recorder.record.notes, text)))[-MOST_NOTES:])
            case PlanApplied(plan=plan):
                update(plan=asdict(plan))
            case Started():
                self._record_started(event)
            case Serving(ready=ready):
                self._serve(ready)
            case Down(error=error, lives=lives):
                self.route.hold(error.message)
                down = error.message
                server = self.recorder.record.server if lives else None
                update(state="starting", phase="restarting", progress=down, down=down, server=server)
            case Fetching() | Planned() | Loaded() | Room() | Step() | Switched() | Stopping():
                pass
            case _:
                assert_never(event)

    def _record_started(self, started: Started) -> None:
        self._update_serving(
            server=started.server.process,
            server_url=started.settled.spec.base_url,
            engine_version=started.settled.prepared.version,
            log=str(started.server.log_file),
        )

    def _serve(self, ready: Ready) -> None:
        self._warn_of_open_server(ready)
        self.ready, self.target = ready, target_of(ready)
        self._update_serving(
            state="ready",
            phase=READY,
            progress="",
            down="",
            model=str(ready.order.model),
            served_name=ready.order.served_name,
            engine=ready.engine.name,
            engine_version=ready.prepared.version,
            server=ready.server.process,
            server_url=ready.spec.base_url,
            log=str(ready.server.log_file),
            plan=asdict(ready.plan),
            detail=ready.loaded.detail if ready.loaded else "",
            capabilities=ready.prepared.facts.capabilities,
            settings=config.document(ready.order.settings),
            receipt=None,
        )
        self.point()
        self._spawn(self._record_provenance(ready))

    def _warn_of_open_server(self, ready: Ready) -> None:
        """Tell, once for each address, that the API key does not protect the server itself."""
        url = ready.spec.base_url
        known = self.ready is not None and self.ready.spec.base_url == url
        if self._has_api_key and not ready.spec.key and not known:
            text = f"{ready.engine.name} has no keys: whoever reaches `{url}` uses it without the API key"
            self.on_event(self.supervisor, Note(text))

    def _update_serving(self, **changes: object) -> None:
        """Update the record. Raises StateUnwritable in the first start only: a full disk ends no server that served."""
        try:
            self.recorder.update(**changes)
        except LlmdeployError:
            if self._keeping is None:
                raise

    async def _record_provenance(self, ready: Ready) -> None:
        found = await in_thread(lambda: provenance(ready))
        if ready is self.ready:  # it may have been started again meanwhile
            with suppress(LlmdeployError):
                self.recorder.update(receipt=found)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # The end

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks that run for it."""
        return [*([self._keeping] if self._keeping else []), *self._background]

    async def stop(self) -> None:
        """End all its servers."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors))

    def kill(self) -> None:
        """End all its servers at once."""
        for supervisor in self._supervisors:
            supervisor.kill()


def target_of(ready: Ready) -> Target:
    """Return the target of requests that this server answers."""
    url = urlsplit(ready.spec.base_url)
    return Target(
        engine=ready.engine.name,
        model=ready.spec.served_name,
        host=url.hostname or "127.0.0.1",
        port=url.port or (443 if url.scheme == "https" else 80),
        capabilities=ready.prepared.facts.capabilities,
        context=ready.plan.context.value,
        adapt=ready.spec.adapt,
        lacks=ready.engine.unsupported,
        closes_streams=ready.engine.closes_streams,
        tls=url.scheme == "https",
        key=ready.spec.key,
        prefix=url.path,
    )
