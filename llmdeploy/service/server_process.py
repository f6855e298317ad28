"""A server as a child on a leash: start it, read it, end it with all it started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread

from llmdeploy.config import api_key
from llmdeploy.errors import NotPermitted
from llmdeploy.service.process import ProcessId, identify, kill_group

GUARD = Path(__file__).with_name("watchdog.py")
SECRET = {api_key.VARIABLE}
"""Variables that are the gateway's affair, and no server's."""
LAST_WORDS = 1.0
"""Seconds to read on after the server has ended."""
LONGEST_LINE = 2**20
"""Bytes; a longer line comes in pieces."""


class Child:
    """A server on a leash: see watchdog.py. When this process ends, however it ends, the server ends too."""

    def __init__(self, argv: tuple[str, ...], env: Mapping[str, str], grace: float, on_line: Callable[[str], None]):
        """Start the server; it has `grace` seconds to end when it is told to. `on_line` is called in a thread."""
        output, its_output = os.pipe()
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), str(grace), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=its_output,
                env={**{name: it for name, it in os.environ.items() if name not in SECRET}, **env},
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(its_output)
        assert self._guard.stdout is not None
        with self._guard.stdout as first_line:
            pid = int(first_line.readline() or b"0")
        self.server: ProcessId | None = identify(pid) if pid else None
        self.ended: Future[int] = Future()
        """The exit status, negative for a signal, once all it wrote was read."""
        reader = Thread(target=_read, args=(output, on_line), daemon=True)
        reader.start()
        Thread(target=self._wait, args=(reader,), daemon=True).start()

    def let_go(self) -> None:
        """Have the server ended, politely first."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    def kill(self) -> None:
        """End the server and all it started at once."""
        if self.server is not None:
            kill_group(self.server)

    def _wait(self, reader: Thread) -> None:
        status = self._guard.wait()
        if status < 0:
            with suppress(NotPermitted):
                self.kill()  # the guard itself was killed: nothing else would end the server
        self.let_go()
        # What was written last; a process that left the group may hold the pipe open for as long as it likes.
        reader.join(LAST_WORDS)
        self.ended.set_result(128 - status if 128 < status <= 128 + 64 else status)  # a server may also end with 255


def _read(output: int, on_line: Callable[[str], None]) -> None:
    for line in _lines(output):
        on_line(line)
    os.close(output)


def _lines(output: int) -> Iterator[str]:
    """Lines as text; one longer than the buffer comes in pieces, and a bar that redraws itself as lines of its own."""
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
