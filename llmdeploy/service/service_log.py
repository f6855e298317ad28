"""The messages of the service itself, on stderr: which is `service.log` if it runs in the background.

The file is bounded, a deleted one is opened again, and one that cannot be written ends nothing. An error that is not
expected is written with its traceback once, and after that only counted. Texts of requests never get here: of an
exception only its type and its place in the code are written, because its message may quote a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from llmdeploy.service import state

MAX_BYTES = 2**20
"""Size in bytes from which on the file is rotated; one older file is kept."""
WATCH = 5.0
"""Seconds between two looks at the file."""
LONGEST = 2000
"""Length of a message up to which it is written."""
MOST_KINDS = 200
"""Number of different errors that are counted; further kinds count as one."""


class Messages(logging.StreamHandler[TextIO]):
    """Writes what the service logs, on stderr or on another stream."""

    def __init__(self, file: LogFile | None = None, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.setLevel(logging.WARNING)
        self._file = file
        self._seen: dict[str, int] = {}
        """The number of errors of each kind."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # Below the first line asyncio writes the objects that are concerned, and their data with them.
        text = (record.getMessage().splitlines() or [""])[0][:LONGEST]
        lines = [text] if error is None else self._error(text, error)
        if self._file is not None:
            self._file.check()
        if lines:
            super().emit(logging.makeLogRecord({"msg": "\n".join(lines)}))

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore an error: a full disk, or a terminal that is gone, ends nothing."""

    def _error(self, text: str, error: BaseException) -> list[str]:
        kind = _kind(error)
        if kind not in self._seen and len(self._seen) >= MOST_KINDS:
            kind = "another error"
        times = self._seen[kind] = self._seen.get(kind, 0) + 1
        if times == 1:
            return [text, *_traceback(error)]
        is_told = times == 10 ** (len(str(times)) - 1)
        return [f"{text}: {kind}, {times} times so far"] if is_told else []


def _kind(error: BaseException) -> str:
    """Return the type and the place of an error."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def _traceback(error: BaseException) -> Iterator[str]:
    """Yield the lines of the traceback, the cause first, without the errors' messages."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _traceback(before)
        yield "then:"
    for text in traceback.format_list(traceback.extract_tb(error.__traceback__, limit=-50)):
        yield from text.rstrip("\n").split("\n")
    said = error.strerror if isinstance(error, OSError) else None
    yield type(error).__name__ + (f": {said}" if said else "")


class LogFile:
    """The file behind stderr."""

    def __init__(self, file: Path, descriptor: int = 2) -> None:
        self._file = file
        self._descriptor = descriptor

    def check(self) -> None:
        """Rotate the file if it has grown too long, and open it again if it was removed or replaced."""
        with suppress(OSError):  # the old one goes on
            held = os.fstat(self._descriptor)
            if self._is_there(held):
                if held.st_size <= MAX_BYTES:
                    return
                os.replace(self._file, self._file.with_name(f"{self._file.name}.1"))
            with state.open_private(self._file, os.O_APPEND) as stream:
                os.dup2(stream.fileno(), self._descriptor)

    def _is_there(self, held: os.stat_result) -> bool:
        try:
            return os.path.samestat(held, self._file.stat())
        except FileNotFoundError:
            return False

    async def watch(self) -> None:
        """Check the file from time to time: libraries write to it as well."""
        while True:
            self.check()
            await asyncio.sleep(WATCH)


def install() -> LogFile | None:
    """Take over the messages of this process. Return the log's file if stderr was opened as one by a command."""
    file = LogFile(state.service_log()) if state.TICKET in os.environ and os.name == "posix" else None
    logging.getLogger().addHandler(Messages(file))
    return file
