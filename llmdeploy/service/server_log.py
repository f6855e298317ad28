"""The server's log: one file a start, rotated while it grows, readable by its owner alone."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from io import TextIOWrapper
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path

from llmdeploy.service.state import open_private, unwritable

MAX_BYTES = 10 * 1024**2
BACKUPS = 3
TAIL_LINES = 2000
"""Lines kept at hand for a diagnosis: each of vLLM's processes writes a traceback of 70 lines."""


class ServerLog(RotatingFileHandler):
    """Appends lines; begins with a file of its own and keeps those of the starts before it."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", errors="replace")
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        if file.stat().st_size:
            self.doRollover()

    _over = False

    def write(self, line: str) -> None:
        self.tail.append(line)
        self.handle(makeLogRecord({"msg": line}))

    def emit(self, record: LogRecord) -> None:
        """What comes after the end stays out: the file may be another server's by then."""
        if not self._over:
            super().emit(record)

    def close(self) -> None:
        self._over = True
        with suppress(OSError):  # what a full disk did not take
            super().close()

    def _open(self) -> TextIOWrapper:
        stream: TextIOWrapper = open_private(Path(self.baseFilename), os.O_APPEND)
        return stream

    def handleError(self, record: LogRecord) -> None:
        """A full disk must not end what is served: the line is in `tail` still."""


def open_log(file: Path) -> ServerLog:
    """Raises StateUnwritable."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ServerLog(file)
    except OSError as error:
        raise unwritable(error) from error
