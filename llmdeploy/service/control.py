"""How commands reach the service: start it in the background, watch it, stop it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO

from llmdeploy import paths
from llmdeploy.errors import LlmdeployError, StateUnwritable, TimedOut
from llmdeploy.service import state
from llmdeploy.service.process import ProcessId, identify, kill_group, terminate, wait_gone
from llmdeploy.service.state import Record, Situation

STOP_DEADLINE = 10.0
"""Seconds the service may take to end by itself: its server's grace and some more."""
POLL = 0.03


@dataclass(frozen=True)
class Starting:
    """A service that was started in the background and answers for its own start."""

    process: subprocess.Popen[bytes]
    answer: IO[bytes]

    def wait(self, on_phase: Callable[[str, float], None]) -> Record:
        """Wait until it serves; it keeps its own deadline. Raises its error. Interrupted, it is stopped again."""
        try:
            return self._wait(on_phase)
        except BaseException:
            self._stop()
            raise
        finally:
            self.answer.close()

    def _wait(self, on_phase: Callable[[str, float], None]) -> Record:
        phase, began = "", time.monotonic()
        while self.process.poll() is None:
            record = state.read()
            if record is not None and record.service.pid == self.process.pid:
                if record.phase != phase:
                    phase = record.phase
                    on_phase(phase, time.monotonic() - began)
                if record.state == "ready":
                    return record
            time.sleep(POLL)
        raise self._error()

    def _error(self) -> LlmdeployError:
        self.answer.seek(0)
        with suppress(ValueError, KeyError, TypeError):
            return LlmdeployError.from_document(json.loads(self.answer.read()))
        return LlmdeployError(
            f"the service ended with status {self.process.returncode} and without a word",
            f"its log is `{state.service_log()}`",
        )

    def _stop(self) -> None:
        service = identify(self.process.pid)
        if service is not None:
            _end(service)
        self.process.wait()


def start_in_background(arguments: Sequence[str]) -> Starting:
    """Run `llmdeploy serve ARGUMENTS` as a service of its own session. Raises StateUnwritable."""
    # -P: the folder a user stands in must not lend its modules to the service.
    command = [sys.executable, "-P", "-m", "llmdeploy", "serve", "--json", *arguments]
    with ExitStack() as undo:
        # It has no name, so it is gone with the last of the two that hold it.
        answer = undo.enter_context(tempfile.TemporaryFile())
        try:
            paths.state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
            with state.open_private(state.service_log(), os.O_TRUNC) as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=answer,
                    stderr=log,
                    start_new_session=True,
                    creationflags=getattr(subprocess, "DETACHED_PROCESS", 0),  # Windows' way to leave the terminal
                )
        except OSError as error:
            raise state.unwritable(error) from error
        undo.pop_all()
    return Starting(process, answer)


def stop(situation: Situation) -> None:
    """Stop what runs and clear the record. Raises TimedOut when a process does not go, StateUnwritable."""
    record = situation.record
    if record is None:
        return
    _end(record.service)
    if record.server is not None:
        kill_group(record.server)
        if not wait_gone(record.server, STOP_DEADLINE):
            raise TimedOut(f"process {record.server.pid} does not end", f"`kill -9 {record.server.pid}`")
    try:
        with state.lock():
            state.forget()
    except StateUnwritable:
        raise
    except LlmdeployError:
        return  # another service has begun meanwhile; the record is its own


def _end(service: ProcessId) -> None:
    terminate(service)
    if wait_gone(service, STOP_DEADLINE):
        return
    terminate(service, kill=True)
    if not wait_gone(service, STOP_DEADLINE):
        raise TimedOut(f"process {service.pid} does not end", f"`kill -9 {service.pid}`")
