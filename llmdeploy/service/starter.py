"""Starts the one server of a log file, tells what happens meanwhile, and ends the server at any moment."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from typing import TYPE_CHECKING

from llmdeploy.errors import EngineMissing, LlmdeployError, TimedOut
from llmdeploy.service.events import Phase, Public, Wait
from llmdeploy.service.health import healthy
from llmdeploy.service.ports import free_port
from llmdeploy.service.running import RunningServer

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.engines.base import Engine, ServerSpec
    from llmdeploy.engines.log_reader import Loaded
    from llmdeploy.models.weights import Weights
    from llmdeploy.plan import Wishes
    from llmdeploy.service.events import OnEvent

POLL = 0.05
"""Seconds between two looks at the health of a server that starts."""
REMINDER = 5.0
"""Seconds after which a phase that goes on is mentioned again."""


class Abandoned(BaseException):
    """Ends the work of a thread whose result nobody waits for. Libraries that retry on errors let it pass."""


class Starter:
    """Starts a server, at most one. `abandon`, `stop` and `kill` may be called from any thread, at any time."""

    def __init__(self, engine: Engine, emit: OnEvent, log_file: Path, timeout: float) -> None:
        """`emit` is called from whichever thread an event happens in; `timeout`: seconds that a start may take."""
        self.engine = engine
        self.log_file = log_file
        self.timeout = timeout
        self.phase = ""
        self.server: RunningServer | None = None
        self._emit = emit
        self._loading: ServerSpec | None = None
        """The server, once its engine was asked to load the model."""
        self._abandoned = threading.Event()
        self._stopping = threading.Lock()

    def emit(self, event: Public) -> None:
        """Tell what happened. Raises Abandoned in a thread that nobody waits for."""
        if self._abandoned.is_set():
            raise Abandoned
        self._emit(event)

    def enter(self, phase: str) -> None:
        """Begin a phase of the start."""
        self.phase = phase
        self.emit(Phase(phase))

    def reach_engine(self, wishes: Wishes) -> str | None:
        """Check that the engine is installed and that its daemon, if it has one, answers; return its version.

        Raises EngineMissing, StartFailed, TimedOut.
        """
        self.enter("checking")
        found = self.engine.status()
        if not found.usable:
            found = self.engine.status()  # a look is short, and on a busy machine the first one may be too short
        if not found.usable:
            raise EngineMissing(found.detail, found.hint)
        if (daemon := self.engine.daemon) is not None:
            spec = daemon.spec(wishes, free_port())
            self._reach(spec)
            self.engine = daemon.attached(spec)
        return found.version

    def _reach(self, daemon: ServerSpec) -> None:
        """Start the engine's daemon, or wait until it has started."""
        self.enter(f"starting {self.engine.name}" if daemon.argv else f"reaching {self.engine.name}")
        server = self.run(daemon)
        began = reminded = time.monotonic()
        while not healthy(daemon):
            if wait([server.exit], POLL).done:
                raise server.ending(server.exit.result())
            reminded = self.remind(server, began, reminded)

    def remind(self, server: RunningServer, began: float, reminded: float) -> float:
        """Tell from time to time that the phase goes on; return when it was last told. Raises TimedOut."""
        now = time.monotonic()
        if now > began + self.timeout:
            raise TimedOut(
                f"the server was not ready after {self.timeout:g} s, still {self.phase}",
                f"give it longer with `--timeout`; its log is `{self.log_file}`",
            )
        if now <= reminded + REMINDER:
            return reminded
        self.emit(Wait(self.phase, server.last_line))
        return now

    def run(self, spec: ServerSpec) -> RunningServer:
        """Start the server, or watch the one that runs already. Raises StateUnwritable."""
        self.server = server = RunningServer(self.engine, spec, self.log_file)
        if self._abandoned.is_set():
            server.let_go()
        return server

    async def load(self, spec: ServerSpec, weights: Weights) -> Loaded | None:
        """Load the model into a daemon; None without one. `stop` releases the model again."""
        if self.engine.daemon is None:
            return None
        self._loading = spec
        return await self.engine.daemon.load(spec, weights)

    def abandon(self) -> None:
        """Make a thread that works for this start give up."""
        self._abandoned.set()

    def stop(self) -> None:
        """Release the model and end the server, politely first. Does nothing if nothing was started."""
        with self._stopping:  # whoever waited for it may have been called off, and somebody else stops it again
            if (server := self.server) is None:
                return
            if self._loading is not None and self.engine.daemon is not None and not server.exit.done():
                try:
                    self.engine.daemon.release(self._loading.base_url, self._loading.served_name)
                except LlmdeployError as error:
                    server.write_line(error.message)
            server.stop()

    def kill(self) -> None:
        """End the server at once: a second Ctrl-C does not wait."""
        if self.server is not None:
            self.server.kill()
