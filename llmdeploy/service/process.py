"""A child process: start, watch, stop with all it started. Knows no models."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
POLL = 0.05


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
    """Ask the process to end; with `kill`, end it. Its group is left alone."""
    if not alive(process):
        return
    with suppress(ProcessLookupError):
        # On Windows both end it at once.
        os.kill(process.pid, signal.SIGKILL if kill and os.name == "posix" else signal.SIGTERM)


def kill_group(process: ProcessId) -> None:
    """Kill a server and all it started. It leads its own group: the guard sees to that."""
    if not alive(process):
        return
    with suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            terminate(process, kill=True)


def wait_gone(process: ProcessId, seconds: float) -> bool:
    """Wait until the process has ended, `seconds` at most; whether it has."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Child:
    """A server on a leash: see guard.py. When this process ends, however it ends, the server ends too."""

    def __init__(self, guard: asyncio.subprocess.Process, server: ProcessId | None) -> None:
        self._guard = guard
        self.server = server

    @classmethod
    async def start(cls, argv: tuple[str, ...], env: Mapping[str, str], grace: float) -> Child:
        """Start the server; it has `grace` seconds to end when it is told to."""
        guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(GUARD), str(grace), *argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,
            limit=2**20,
        )
        assert guard.stdout is not None
        first_line = await guard.stdout.readline()
        return cls(guard, identify(int(first_line or b"0")))

    async def follow(self, on_line: Callable[[str], None]) -> int:
        """Hand over each line of output and return the exit status, negative for a signal."""
        _, status = await asyncio.gather(self._read(on_line), self._wait())
        return 128 - status if status > 128 else status

    async def _read(self, on_line: Callable[[str], None]) -> None:
        assert self._guard.stderr is not None
        async for line in _lines(self._guard.stderr):
            on_line(line)

    async def _wait(self) -> int:
        # Process.wait() would wait for the pipe too, which the server holds open when its guard is gone.
        while (status := self._guard.returncode) is None:
            await asyncio.sleep(POLL)
        if status < 0:
            self.kill()  # the guard itself was killed: nothing else would end the server
        return status

    def let_go(self) -> None:
        """Have the server ended, politely first."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def kill(self) -> None:
        """End the server and all it started at once."""
        if self.server is not None:
            kill_group(self.server)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as text; one longer than the buffer comes in pieces."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial
        except asyncio.LimitOverrunError as error:
            line = await stream.readexactly(error.consumed)
        if not line:
            return
        yield line.decode(errors="replace").rstrip("\r\n")


def _start_time(pid: int) -> float | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
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
    except psutil.NoSuchProcess:
        return None
