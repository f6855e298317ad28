"""A server as a child on a leash: start it, read it, end it with all it started."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from llmdeploy.service.process import ProcessId, identify, kill_group

GUARD = Path(__file__).with_name("guard.py")
POLL = 0.05
LAST_WORDS = 1.0
"""Seconds to read on after the server has ended."""


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
        pid = int(first_line or b"0")
        return cls(guard, identify(pid) if pid else None)

    async def follow(self, on_line: Callable[[str], None]) -> int:
        """Hand over each line of output and return the exit status, negative for a signal."""
        reader = asyncio.ensure_future(self._read(on_line))
        status = await self._wait()
        # What was written last; a process that left the group may hold the pipe open for as long as it likes.
        await asyncio.wait({reader}, timeout=LAST_WORDS)
        reader.cancel()
        self._guard._transport.close()  # type: ignore[attr-defined] # else it complains when the loop is closed
        return 128 - status if 128 < status <= 128 + 64 else status  # a server may also end with 255

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
    """Lines as text; one longer than the buffer comes in pieces, and a bar that redraws itself as lines of its own."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial
        except asyncio.LimitOverrunError as error:
            line = await stream.readexactly(error.consumed)
        if not line:
            return
        for part in line.decode(errors="replace").rstrip("\r\n").split("\r"):
            yield part
