"""The commands' side of the service: start it in the background, watch it, switch it, stop it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING

from llmdeploy import bounded_file, paths
from llmdeploy.errors import (
    AlreadyServing,
    LlmdeployError,
    NotPermitted,
    ServerDied,
    StartFailed,
    StateUnwritable,
    TimedOut,
)
from llmdeploy.service import signals, state
from llmdeploy.service.cleanup import end_leftover
from llmdeploy.service.health import connection
from llmdeploy.service.process import ProcessId, identify, terminate, wait_gone
from llmdeploy.service.state import Record, Situation

if TYPE_CHECKING:
    from llmdeploy.service.events import Public
    from llmdeploy.service.order import Order

STOP_DEADLINE = 10.0
"""Seconds that the service may take to end by itself: the grace of its server, and some more."""
UNDO_DEADLINE = 120.0
"""Seconds that the undo of a switch may take: perhaps the old server is started again."""
LONGEST_TOKEN = 1000
"""Bytes of the token of the state folder, at most."""
CONNECT = 5.0
"""Seconds that connecting to the service may take."""
POLL = 0.03
"""Seconds between two looks at the record."""
LARGE_LOG = 2**20
"""Size of `service.log` in bytes from which on a start empties it."""
REMINDER = 5.5
"""Seconds after which a phase that goes on is mentioned again: a little after the service's own reminder, which puts
the last line of the server's log on record."""
# On Windows a new session is made with these flags.
LEAVE_TERMINAL = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)


class Watch:
    """Reports the phases of a start from its record: each new phase, and from time to time that it goes on."""

    def __init__(self, on_phase: Callable[[str, float], None]) -> None:
        self._on_phase = on_phase
        self._began = time.monotonic()
        self._told = (0.0, "")

    def update(self, record: Record) -> None:
        """Report the phase of the record if it is new, or was not reported for a while."""
        elapsed = time.monotonic() - self._began
        at, phase = self._told
        if record.phase != phase:
            self._on_phase(record.phase, elapsed)
        elif elapsed > at + REMINDER:
            self._on_phase(f"still {record.phase}" + (f": {record.progress}" if record.progress else ""), elapsed)
        else:
            return
        self._told = (elapsed, record.phase)


@dataclass(frozen=True)
class Starting:
    """A service that was started in the background; it reports itself whether its start succeeded."""

    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    ticket: str

    def wait(self, on_phase: Callable[[str, float], None]) -> Record:
        """Wait until it serves; it keeps its own deadline. Raises its error. If interrupted, the service is stopped."""
        try:
            with signals.interrupting():
                return self._wait(on_phase)
        except BaseException:
            self._stop()
            raise
        finally:
            self.answer.close()

    def _wait(self, on_phase: Callable[[str, float], None]) -> Record:
        watch = Watch(on_phase)
        while self.process.poll() is None:
            record = state.read()
            if record is not None and record.ticket == self.ticket:
                watch.update(record)
                if record.state == "ready":
                    return record
            time.sleep(POLL)
        raise self._error()

    def _error(self) -> LlmdeployError:
        if self.process.returncode == 0:
            return StartFailed("the start was stopped by another command", "`llmdeploy serve` starts again")
        self.answer.seek(0)
        with suppress(ValueError, KeyError, TypeError):
            return LlmdeployError.from_document(json.loads(self.answer.read()))
        return LlmdeployError(
            f"the service exited with status {self.process.returncode} and printed nothing",
            f"its log is `{state.service_log()}`",
        )

    def _stop(self) -> None:
        service = identify(self.process.pid)
        if service is not None:
            _end(service)
        self.process.wait()


def start_in_background(order: Order) -> Starting:
    """Run `llmdeploy serve` as a service of its own session. Raises StateUnwritable.

    The service reads the order from its standard input; the model's name in its command line is for people.
    """
    # -P: the folder a user stands in must not lend its modules to the service.
    command = [sys.executable, "-P", "-m", "llmdeploy", "serve", "--json", "--", str(order.model)]
    ticket = secrets.token_hex(8)
    with ExitStack() as undo:
        # They have no names, so they are gone with the last of the two processes that hold them.
        answer = undo.enter_context(tempfile.TemporaryFile())
        orders = undo.enter_context(tempfile.TemporaryFile())
        try:
            orders.write(order.to_json())
            orders.seek(0)
            paths.state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
            with state.open_private(state.service_log(), _append_or_begin(state.service_log())) as log:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, state.TICKET: ticket},
                    stdin=orders,
                    stdout=answer,
                    stderr=log,
                    start_new_session=True,
                    creationflags=LEAVE_TERMINAL,
                )
        except OSError as error:
            raise state.unwritable(error) from error
        orders.close()
        undo.pop_all()
    return Starting(process, answer, ticket)


def _append_or_begin(log: Path) -> int:
    """Return the flags to open the log with. It is appended to, as another service may still write to it, until it is
    large.
    """
    large = log.exists() and log.stat().st_size > LARGE_LOG
    return os.O_APPEND | (os.O_TRUNC if large else 0)


def switch(record: Record, order: bytes) -> Generator[Public]:
    """Ask the service to switch, and yield what happens; to stop listening calls it off, up to its commit.

    Raises what kept it from being done.
    """
    from llmdeploy.service import events

    headers = {"Authorization": f"Bearer {_token()}", "Content-Type": "application/json"}
    channel, path = connection(record.url, CONNECT)
    try:
        channel.request("POST", f"{path}/llmdeploy/switch", order, headers)
        channel.sock.settimeout(None)  # it has deadlines of its own, and ends with the service
        answer = channel.getresponse()
        if answer.status != 200:
            raise LlmdeployError.from_document(json.loads(answer.read()))
        for line in answer:
            content = json.loads(line)
            if "error" in content:
                raise LlmdeployError.from_document(content)
            event = events.parse(content)
            if event is None:
                continue  # an event of a newer service
            yield event
            if isinstance(event, events.Switched):
                return
        raise HTTPException("it ended without a word")
    except (OSError, HTTPException, ValueError, KeyError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise ServerDied(f"the service broke off: {reason}", "`llmdeploy status` tells what is left") from error
    finally:
        channel.close()


def _token() -> str:
    """Return the token, which shows the service that its own user asks. Raises NotPermitted."""
    try:
        return bounded_file.read(state.token_file(), LONGEST_TOKEN).decode("ascii", "replace").strip()
    except OSError as error:
        raise NotPermitted(
            f"the service's token `{state.token_file()}` cannot be read: {error.strerror}",
            "`llmdeploy stop`, then serve again",
        ) from None


def wait_switched() -> Record | None:
    """Wait until no switch is under way; return the record, or None if nothing serves any more. Raises TimedOut."""
    deadline = time.monotonic() + UNDO_DEADLINE
    while (situation := state.observe()).state in {"starting", "ready"}:
        record = situation.record
        if record is not None and record.switch is None and record.state == "ready":
            return record
        if time.monotonic() > deadline:
            raise TimedOut("the switch is still being undone", "`llmdeploy status` shows how far it is")
        time.sleep(POLL)
    return None


def stop(situation: Situation) -> None:
    """Stop what runs and remove the record. Raises TimedOut if a process does not end, StateUnwritable."""
    record = situation.record
    if record is None:
        return
    _end(record.service)
    try:
        with state.lock():
            end_leftover(state.observe())
            state.forget()
    except (StateUnwritable, TimedOut):
        raise
    except AlreadyServing:
        return  # another service has begun meanwhile; the record is its own


def _end(service: ProcessId) -> None:
    terminate(service)
    if wait_gone(service, STOP_DEADLINE):
        return
    terminate(service, kill=True)
    if not wait_gone(service, STOP_DEADLINE):
        raise TimedOut(f"process {service.pid} does not end", f"`kill -9 {service.pid}`")
