"""Processes, beyond doubt: which they are, whether they live, how they end. Knows no models."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmdeploy.errors import NotPermitted


@dataclass(frozen=True)
class ProcessId:
    """A process beyond doubt: a pid is given again, a pid with its start time is not."""

    pid: int
    started: float
    """Since boot in clock ticks where /proc tells, else in seconds since 1970."""


def identify(pid: int) -> ProcessId | None:
    """The living process with that pid; None when there is none (a zombie is none)."""
    started = _start_time(pid)
    return None if started is None else ProcessId(pid, started)


def alive(process: ProcessId | None) -> bool:
    return process is not None and identify(process.pid) == process


def terminate(process: ProcessId, *, kill: bool = False) -> None:
    """Ask the process to end; with `kill`, end it. Its group is left alone. Raises NotPermitted."""
    if os.name == "posix":
        # One that was stopped with Ctrl-Z hears it now.
        _send(process, os.kill, signal.SIGKILL if kill else signal.SIGTERM, signal.SIGCONT)
    else:
        _send(process, os.kill, signal.SIGTERM)  # which ends it at once there


def kill_group(process: ProcessId) -> None:
    """Kill a server and all it started. It leads its own group: the guard sees to that. Raises NotPermitted."""
    if os.name == "posix":
        _send(process, os.killpg, signal.SIGKILL)
    else:
        terminate(process, kill=True)


def orphans(leader: ProcessId) -> list[int]:
    """The processes of a group whose leader is gone. As long as there are any, no other process gets its pid."""
    if os.name != "posix" or identify(leader.pid) is not None:
        return []
    import psutil

    return [pid for pid in psutil.pids() if _group_of(pid) == leader.pid]


def kill_orphans(leader: ProcessId) -> None:
    """Kill what is left of a server whose own process is gone."""
    for pid in orphans(leader):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _send(process: ProcessId, send: Callable[[int, int], None], *numbers: int) -> None:
    """Signals for that process and no other, which may end at any moment."""
    if not alive(process):
        return
    try:
        for number in numbers:
            send(process.pid, number)
    except PermissionError:
        if os.name == "posix":  # Windows says so of a process that has just ended
            raise NotPermitted(f"process {process.pid} belongs to another user", "stop it as that user") from None
    except OSError:
        pass  # it has just ended


def wait_gone(process: ProcessId, seconds: float) -> bool:
    """Wait until the process has ended, `seconds` at most; whether it has."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _start_time(pid: int) -> float | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a process may call itself anything
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_time_anywhere(pid)
    # `pid (name) state ...`: the name may hold blanks and brackets. Field 3 is the state, 20 the threads, 22 the start.
    state, *fields = stat.rpartition(")")[2].split()
    # A zombie with threads is still being killed: its port and its memory are not free yet.
    gone = state in {"Z", "X"} and int(fields[16]) <= 1
    return None if gone else float(fields[18])


def _start_time_anywhere(pid: int) -> float | None:
    import psutil  # 12 ms, which `status` has not got to spare where /proc answers

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
