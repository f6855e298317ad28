"""All output of the commands: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import LlmdeployError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


UNWRITABLE = "stdout_unwritable"


class Output:
    """Writer for every command. Rich decides for each stream whether to use colour."""

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self._documented = False
        self._streams = False

    def data(self, text: str, end: str = "\n") -> None:
        """Write a result, or a piece of it, and flush. Raises LlmdeployError, BrokenPipeError."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Write a line of a result that may contain names from outside, with control characters escaped."""
        self.data(harmless(text))

    def document(self, content: object) -> None:
        """Write the result as one JSON document; after events, on one last line."""
        self._documented = True
        self.data(json.dumps(content, ensure_ascii=False, indent=None if self._streams else 2))

    def event(self, content: object) -> None:
        """Write an event as a line of JSON."""
        self._streams = True
        self.data(json.dumps(content, ensure_ascii=False))

    def table(self, table: Table) -> None:
        """Write a table, wrapped on a terminal and with one row per line elsewhere."""
        console = _console(stderr=False)
        with console.capture() as capture:
            console.print(table)
        for line in capture.get().splitlines():
            self.data(line.rstrip())

    def note(self, text: str, style: str = "") -> None:
        """Report progress or a remark on stderr, unless `--quiet`."""
        if not self.quiet:
            self._tell(text, style)

    def hint(self, text: str) -> None:
        if not self.quiet:
            self._tell(f"hint: {text}", "cyan")

    def warn(self, text: str) -> None:
        self._tell(f"warning: {text}", "yellow")

    def ask(self, question: str) -> bool:
        """Ask the user a yes-or-no question. Raises UsageError without a terminal."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"no terminal to ask on: {question}", "add `--yes` to agree")
        print(harmless(question), end=" [y/N] ", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def error(self, error: LlmdeployError, *, as_json: bool) -> None:
        if as_json and not self._documented and error.code != UNWRITABLE:
            with suppress(LlmdeployError):  # stdout cannot be written: report on stderr
                self.document(error.as_document())
                return
        self._tell(f"error: {error.message}", "red")
        if error.hint:
            self._tell(f"hint: {error.hint}", "cyan")

    def _tell(self, text: str, style: str) -> None:
        text = harmless(text)
        with suppress(OSError):  # the terminal may be gone; the command must still finish its work
            if _plain(sys.stderr):
                print(text, file=sys.stderr, flush=True)
            else:
                _console(stderr=True).print(text, style=style or None, soft_wrap=True)


def harmless(text: str) -> str:
    """Escape control characters in text from outside, so that a terminal shows them and does not obey them."""
    return "".join(it if it.isprintable() or it in "\n\t" else ascii(it)[1:-1] for it in text)


def columns() -> int:
    """Return `COLUMNS`, or else the width of the terminal on stdout, or else 80.

    `shutil.get_terminal_size` asks `sys.__stdout__`, which `make_safe` has detached.
    """
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named) > 0:
        return int(named)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _plain(stream: Any) -> bool:
    """Return whether Rich would print the text unchanged, so that its import (40 ms) can be saved."""
    return not (stream.isatty() or os.environ.get("FORCE_COLOR"))


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Without a terminal nothing is wrapped: scripts expect one row on one line.
    width = None if stream.isatty() else 10_000
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


out = Output()
