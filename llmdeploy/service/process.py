"""Processes: how they are identified, whether they live, and how they are ended."""

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
    """A process, identified beyond doubt: the system gives a pid again, but not with the same start time."""

    pid: int
    started: float
    """The start time: clock ticks since boot if /proc tells it, otherwise seconds since 1970."""


def boot_id() -> str:
    """Return a text that changes with each start of the system; empty if start times of processes need none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def identify(pid: int) -> ProcessId | None:
    """Return the living process with that pid; None if there is none. A zombie does not live."""
    started = _start_time(pid)
    return None if started is None else ProcessId(pid, started)


def wait_identifiable(seconds: float) -> None:
    """Wait until processes can be identified, `seconds` at most: `/proc` cannot be read while no descriptor is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open("/proc/self/stat", "rb"):
                return
        except FileNotFoundError:  # a system without it
            return
        except OSError:
            time.sleep(0.1)


def alive(process: ProcessId | None) -> bool:
    """Return whether the process still runs."""
    return process is not None and identify(process.pid) == process


def terminate(process: ProcessId, *, kill: bool = False) -> None:
    """Ask the process to end; with `kill`, end it at once. Its process group is left alone. Raises NotPermitted."""
    if os.name == "posix":
        # A process that was stopped with Ctrl-Z receives the first signal only once it continues.
        _send(process, os.kill, signal.SIGKILL if kill else signal.SIGTERM, signal.SIGCONT)
    else:
        _send(process, os.kill, signal.SIGTERM)  # which ends it at once there


def kill_group(process: ProcessId) -> None:
    """Kill a server and all it started. It leads its own group, which the watchdog made. Raises NotPermitted."""
    if os.name == "posix":
        _send(process, os.killpg, signal.SIGKILL)
    else:
        terminate(process, kill=True)


def orphans(leader: ProcessId) -> list[int]:
    """Return the processes of a group whose leader is gone. While there are any, nobody else gets its pid."""
    if os.name != "posix" or identify(leader.pid) is not None:
        return []
    import psutil

    return [pid for pid in psutil.pids() if _group_of(pid) == leader.pid]


def kill_orphans(leader: ProcessId) -> None:
    """Kill the processes that are left of a server whose own process is gone."""
    for pid in orphans(leader):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _send(process: ProcessId, send: Callable[[int, int], None], *numbers: int) -> None:
    """Send signals to that process and no other; it may end at any moment."""
    if not alive(process):
        return
    try:
        for number in numbers:
            send(process.pid, number)
    except PermissionError:
        if os.name == "posix":  # Windows says the same of a process that has just ended
            raise NotPermitted(f"process {process.pid} belongs to another user", "stop it as that user") from None
    except OSError:
        pass  # it has just ended


def wait_gone(process: ProcessId, seconds: float) -> bool:
    """Wait until the process has ended, `seconds` at most; return whether it has."""
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
