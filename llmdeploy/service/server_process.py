"""A server's process: a child on a leash, or a server that runs already and is only watched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

from llmdeploy.engines.diagnosis import Exit, Exited, Unreachable
from llmdeploy.errors import NotPermitted
from llmdeploy.service import scratch
from llmdeploy.service.descriptors import for_servers
from llmdeploy.service.health import reachable
from llmdeploy.service.process import ProcessId, identify, kill_group, wait_identifiable

if TYPE_CHECKING:
    from llmdeploy.engines.base import ServerSpec
    from llmdeploy.plan import MemoryBound

GUARD = scratch.WATCHDOG
SHORTAGE = 30.0
"""Seconds to wait for a free descriptor before a server is taken for one that cannot be identified."""
LAST_WORDS = 1.0
"""Seconds for which the output is still read after the server has ended."""
LONGEST_LINE = 2**20
"""Length of a line in bytes from which on it comes in pieces."""
LOOK = 1.0
"""Seconds between two looks at a server that runs already."""
PATIENCE = 15.0
"""Seconds such a server may be away: a service manager starts it again."""


class Child:
    """A server that ends when this process ends, however it ends: see watchdog.py."""

    def __init__(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        grace: float,
        on_line: Callable[[str], None],
        memory: MemoryBound | None = None,
    ) -> None:
        """Start the server with the environment `env`; it is ended at its bound of memory.

        It has `grace` seconds to end when it is told to. `on_line` is called in a thread.
        """
        self._scratch = scratch.create()
        output, its_output = os.pipe()
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), str(grace), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=its_output,
                env={**env, **for_servers(), **self._for_watchdog(memory)},
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(output)
            scratch.remove(self._scratch)
            raise
        finally:
            os.close(its_output)
        assert self._guard.stdout is not None
        with self._guard.stdout as first_line:
            pid = int(first_line.readline() or b"0")
        wait_identifiable(SHORTAGE)
        self.server: ProcessId | None = identify(pid) if pid else None
        self.exit: Future[Exit] = Future()
        """Done with the exit status, negative for a signal, once all that the server wrote was read."""
        reader = Thread(target=_read, args=(output, on_line), daemon=True)
        reader.start()
        Thread(target=self._wait, args=(reader,), daemon=True).start()

    def _for_watchdog(self, memory: MemoryBound | None) -> dict[str, str]:
        """Return the variables for `watchdog.py`, and those that put temporary files into the server's own folder."""
        bound = {} if memory is None else {"LLMDEPLOY_MEMORY": f"{memory.bytes} {memory.is_hard:d}"}
        return {**bound, **scratch.environment(self._scratch)}

    def let_go(self) -> None:
        """Ask the server to end; it is killed when its grace is over."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def kill(self) -> None:
        """End the server and all it started at once."""
        if self.server is not None:
            kill_group(self.server)

    def _wait(self, reader: Thread) -> None:
        status = self._guard.wait()
        if status < 0:
            wait_identifiable(SHORTAGE)
            with suppress(NotPermitted):
                self.kill()  # the watchdog itself was killed: nothing else would end the server
        self.let_go()
        scratch.remove(self._scratch)  # the watchdog has, unless it was killed
        # What was written last; a process that left the group may hold the pipe open for as long as it likes.
        reader.join(LAST_WORDS)
        # A server may also end with 255.
        self.exit.set_result(Exited(128 - status if 128 < status <= 128 + 64 else status))


class Attached:
    """A server that somebody else runs: watched, and never ended. It has the methods of `Child`."""

    server: ProcessId | None = None

    def __init__(self, spec: ServerSpec, on_line: Callable[[str], None]) -> None:
        self.exit: Future[Exit] = Future()
        """Done when the server has been away for too long."""
        self.is_away = False
        """Whether it did not answer at the last look."""
        self._let_go = Event()
        on_line(f"attached to {spec.base_url}, which keeps a log of its own")
        Thread(target=self._watch, args=(spec, on_line), daemon=True).start()

    def let_go(self) -> None:
        """Stop watching it."""
        self._let_go.set()

    def kill(self) -> None:
        """Stop watching it: the server belongs to somebody else."""
        self.let_go()

    def _watch(self, spec: ServerSpec, on_line: Callable[[str], None]) -> None:
        seen = time.monotonic()
        while not self._let_go.wait(LOOK):
            now = time.monotonic()
            self.is_away = not reachable(spec)
            if not self.is_away:
                seen = now
            elif now > seen + PATIENCE:
                on_line(f"{spec.base_url} has not answered for {PATIENCE:g} s")
                self.exit.set_result(Unreachable(spec.base_url, PATIENCE))
                return
        self.exit.set_result(Exited(0))


def _read(output: int, on_line: Callable[[str], None]) -> None:
    for line in _lines(output):
        on_line(line)
    os.close(output)


def _lines(output: int) -> Iterator[str]:
    """Yield the lines as text. A very long line comes in pieces; each state of a progress bar is a line."""
    rest = b""
    while chunk := os.read(output, 2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield from _parts(line)
        if len(rest) > LONGEST_LINE:
            yield from _parts(rest)
            rest = b""
    if rest:
        yield from _parts(rest)


def _parts(line: bytes) -> list[str]:
    return line.decode(errors="replace").rstrip("\r").split("\r")
