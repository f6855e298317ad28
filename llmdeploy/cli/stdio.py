"""The three standard streams, whatever state they were handed over in: closed, full, or in another character set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO, cast


def make_safe() -> None:
    """A closed stream takes anything, and no text fails for want of a character: JSON is UTF-8 everywhere."""
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
    """stdout that tells when it cannot be written, whoever writes: Typer's help too. BrokenPipeError stays itself."""

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

        sys.stdout = nowhere("w")  # what is left in it can never be written
        message = f"stdout cannot be written: {error.strerror}"
        raise LlmdeployError(message, "free the disk, or send it elsewhere", code="stdout_unwritable") from error


def nowhere(mode: str) -> TextIO:
    """A stream for as long as the process lives: like the interpreter's own it is never closed."""
    return cast("TextIO", open(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8", closefd=False))
