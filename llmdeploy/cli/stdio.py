"""Standard streams that work when they were closed, cannot be written, or use another character set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO, cast


def make_safe() -> None:
    """Replace closed streams with the null device, and write UTF-8 everywhere, so that no character fails."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, nowhere(mode))
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if type(sys.stdout) is TextIOWrapper:
        lines, through = sys.stdout.line_buffering, sys.stdout.write_through
        sys.stdout = Stdout(sys.stdout.detach(), "utf-8", "backslashreplace", None, lines, through)


class Stdout(TextIOWrapper):
    """stdout that raises LlmdeployError when it cannot be written, also by Typer's help. BrokenPipeError passes."""

    def write(self, text: str) -> int:
        with _unwritable():
            return super().write(text)

    def flush(self) -> None:
        with _unwritable():
            super().flush()


@contextmanager
def _unwritable() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        from llmdeploy.errors import LlmdeployError

        sys.stdout = nowhere("w")  # its buffer can never be written
        message = f"stdout cannot be written: {error.strerror}"
        raise LlmdeployError(message, "free disk space, or write elsewhere", code="stdout_unwritable") from error


def nowhere(mode: str) -> TextIO:
    """Open the null device for the life of the process; like the interpreter's own streams it is never closed."""
    return cast("TextIO", open(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8", closefd=False))
