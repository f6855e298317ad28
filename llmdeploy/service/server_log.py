"""The server's log: one file for each start, rotated while it grows, readable by its owner alone."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from io import TextIOWrapper
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from llmdeploy.service.state import open_private

MAX_BYTES = 10 * 1024**2
"""Size in bytes from which on the file is rotated."""
BACKUPS = 3
"""Number of older files that are kept."""
TAIL_LINES = 2000
"""Number of lines kept in memory for a diagnosis: each of vLLM's processes writes a traceback of 70 lines."""


class ServerLog(RotatingFileHandler):
    """Appends lines to a file that begins empty; the files of earlier starts are kept.

    A file that was deleted is opened again. One that cannot be written ends nothing: the lines are still in `tail`.
    """

    def __init__(self, file: Path, *, delay: bool = False) -> None:
        """Open the file; with `delay`, only when a line comes, and with each line again until it can be opened."""
        options: dict[str, Any] = {"encoding": "utf-8", "errors": "replace", "delay": delay}
        super().__init__(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, **options)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        if not delay and file.stat().st_size:
            self.doRollover()

    _over = False

    def write(self, line: str) -> None:
        """Append a line."""
        self.tail.append(line)
        self.handle(makeLogRecord({"msg": line}))

    def note(self, line: str) -> None:
        """Append a line of llmdeploy's own: it says nothing about the server's end."""
        self.handle(makeLogRecord({"msg": line}))

    def emit(self, record: LogRecord) -> None:
        """Write a line unless the log was closed: another server may write to the file by then."""
        if not self._over:
            with suppress(OSError, ValueError):
                if self.stream is not None and self._is_gone(self.stream.fileno()):
                    gone, self.stream = self.stream, None  # it is opened again
                    gone.close()
            super().emit(record)

    def _is_gone(self, descriptor: int) -> bool:
        try:
            return not os.path.samestat(os.fstat(descriptor), os.stat(self.baseFilename))
        except OSError:
            return True

    def close(self) -> None:
        self._over = True
        with suppress(OSError):  # what a full disk did not take
            super().close()

    def _open(self) -> TextIOWrapper:
        stream: TextIOWrapper = open_private(Path(self.baseFilename), os.O_APPEND)
        return stream

    def handleError(self, record: LogRecord) -> None:
        """Ignore an error: a full disk must not end what is served, and the line is still in `tail`."""


def open_log(file: Path) -> ServerLog:
    """Begin a new log. A file that cannot be opened is tried again later: a server without it is better than none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ServerLog(file)
    except OSError:
        return ServerLog(file, delay=True)
