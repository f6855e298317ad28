"""A server that runs: its process, its log, and what its log says."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from llmdeploy.engines.diagnosis import Exit, Exited, over_bound
from llmdeploy.engines.log_filter import no_client_texts
from llmdeploy.errors import LlmdeployError, ServerDied, StartFailed
from llmdeploy.service import signals
from llmdeploy.service.server_log import ServerLog, open_log
from llmdeploy.service.server_process import Attached, Child
from llmdeploy.service.state import open_private, unwritable
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.engines.base import Engine, ServerSpec
    from llmdeploy.engines.log_reader import Loaded, Step
    from llmdeploy.service.process import ProcessId

STOP_GRACE = 3.0
"""Seconds a server has to end by itself before it is killed."""


class RunningServer:
    """A server that was started here, or that somebody else runs and this service uses."""

    def __init__(self, engine: Engine, spec: ServerSpec, log_file: Path) -> None:
        """Start the server, or watch the one that runs already. Raises StateUnwritable."""
        self.log_file = log_file
        self.is_ready = False
        """Whether the server has answered for its model."""
        self._engine = engine
        self._reader = engine.log_reader()
        self._filter = no_client_texts()
        self._steps: list[Step] = []
        self._log: ServerLog = open_log(log_file)
        try:
            for file, text in spec.files.items():
                _write(file, text)
            if spec.memory is not None:
                self._log.note(f"memory bound: {in_gib(spec.memory.bytes)} ({spec.memory.reason})")
            self._process = _process(spec, self.write_line)
        except OSError as error:
            self._log.close()
            raise unwritable(error) from error

    @property
    def exit(self) -> Future[Exit]:
        """The end of the server; done once it has ended."""
        return self._process.exit

    @property
    def process(self) -> ProcessId | None:
        """The server's process; None if somebody else runs it."""
        return self._process.server

    @property
    def is_external(self) -> bool:
        """Whether somebody else runs the server."""
        return isinstance(self._process, Attached)

    @property
    def is_away(self) -> bool:
        """Whether an external server does not answer at the moment: it may be started again."""
        return isinstance(self._process, Attached) and self._process.is_away

    @property
    def serves(self) -> bool:
        """Whether the server is ready and has not ended."""
        return self.is_ready and not self.exit.done()

    @property
    def last_line(self) -> str:
        """The last line of the server's log that is not blank."""
        return next((line for line in reversed(list(self._log.tail)) if line.strip()), "")

    def write_line(self, line: str) -> None:
        """Write a line to the log. Called in a thread, where nothing may fail: `take_steps` passes on what it says."""
        if (written := self._filter(line)) is not None:
            self._log.write(written)
        if step := self._reader.feed(line):
            self._steps.append(step)

    def take_steps(self) -> list[Step]:
        """Return the steps of the start that the log has told since the last call."""
        taken: list[Step] = []
        while self._steps:  # a thread appends to it meanwhile
            taken.append(self._steps.pop(0))
        return taken

    def loaded(self) -> Loaded | None:
        """Return what the log tells about the model in memory, once the server is ready."""
        return self._reader.outcome()

    def raise_if_over(self) -> None:
        """Raise ServerDied or StartFailed if the server has ended, or has said that it will."""
        if self.exit.done():
            raise self.ending(self.exit.result())
        if self.is_ready and self._reader.is_doomed:
            raise self.ending(Exited(1))

    def ending(self, exit: Exit) -> LlmdeployError:
        """Return the error that explains the server's end."""
        kind, when = (ServerDied, "while it served") if self.is_ready else (StartFailed, "before it was ready")
        tail = list(self._log.tail)
        diagnosis = over_bound(tail) or self._engine.diagnose(tail, exit)
        log = f"its log is `{self.log_file}`"
        if diagnosis is not None:
            error = kind(f"the server ended {when}: {diagnosis.cause}", f"{diagnosis.fix}; {log}")
            error.remedy = diagnosis.remedy
            return error
        return kind(f"the server ended {when} ({_how(exit)}): {self.last_line or 'it wrote nothing'}", log)

    def let_go(self) -> None:
        """Ask the server to end, or stop watching an external one."""
        self._process.let_go()

    def stop(self) -> None:
        """End the server, politely first, and close its log."""
        self.let_go()
        if not wait([self.exit], STOP_GRACE + 1).done:
            self.kill()
            wait([self.exit], STOP_GRACE)
        self._log.close()

    def kill(self) -> None:
        """End the server at once."""
        self._process.kill()


def _write(file: Path, text: str) -> None:
    """Write a file of the engine's; one that is there as it should be is left alone, because the disk may be full."""
    with suppress(OSError, ValueError):
        if file.read_text(encoding="utf-8") == text:
            return
    with open_private(file, os.O_TRUNC) as stream:
        stream.write(text)


def _process(spec: ServerSpec, on_line: Callable[[str], None]) -> Child | Attached:
    if not spec.argv:
        return Attached(spec, on_line)
    return Child(spec.argv, spec.environment(os.environ), STOP_GRACE, on_line, spec.memory)


def _how(exit: Exit) -> str:
    if not isinstance(exit, Exited):
        return "it does not answer"
    return signals.named(-exit.status) if exit.status < 0 else f"status {exit.status}"
