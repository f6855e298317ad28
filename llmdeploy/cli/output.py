"""All output of the commands: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import LlmdeployError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


UNWRITABLE = "stdout_unwritable"

DRIVES_A_TERMINAL = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # controls, except tab and newline
    "\x7f-\x9f"  # delete, and the controls that some terminals obey without an escape character
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the order in which a line is shown
    "\u2028\u2029"  # they end a line
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags, which are not shown
    "\ud800-\udfff"  # not characters
    "]"
)
"""Characters that a terminal obeys, or that hide or reorder others, instead of being shown."""


class Output:
    """Writer for every command. Rich decides for each stream whether to use colour.

    What a terminal gets passes through `harmless`: names, answers and messages come from models, engines and
    repositories, and must not drive it. Into a pipe or a file `data` writes the text as it is, as `git` and `ls` do.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self._documented = False
        self._streams = False

    def data(self, text: str, end: str = "\n") -> None:
        """Write a result, or a piece of it, and flush. Raises LlmdeployError, BrokenPipeError."""
        self._write((harmless(text) if sys.stdout.isatty() else text) + end)

    def line(self, text: str) -> None:
        """Write one line of a result that may contain names from outside, escaped wherever it goes."""
        self._write(one_line(text) + "\n")

    def document(self, content: object) -> None:
        """Write the result as one JSON document; after events, on one last line."""
        self._documented = True
        self._write(_json(content, indent=None if self._streams else 2) + "\n")

    def event(self, content: object) -> None:
        """Write an event as a line of JSON."""
        self._streams = True
        self._write(_json(content) + "\n")

    def table(self, table: Table, rows: Iterable[Sequence[str | Text]]) -> None:
        """Write a table with these rows, wrapped on a terminal and with one row per line elsewhere."""
        for row in rows:
            table.add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in row))
        console = _console(stderr=False)
        with console.capture() as capture:
            console.print(table)
        for line in capture.get().split("\n")[:-1]:
            self._write(line.rstrip() + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

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
        print(one_line(question), end=" [y/N] ", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def error(self, error: LlmdeployError, *, as_json: bool) -> None:
        if as_json and not self._documented and error.code != UNWRITABLE:
            with suppress(LlmdeployError):  # stdout cannot be written: report on stderr
                self.document(error.as_document())
                return
        self._tell(f"error: {error.message}", "red")
        if error.hint:
            self._tell(f"hint: {error.hint}", "cyan")

    def traceback(self, error: Exception) -> None:
        """Write the traceback of an error on stderr."""
        import traceback

        for text in traceback.format_exception(error):
            for line in text.removesuffix("\n").split("\n"):
                self._tell(line, "")

    def _tell(self, text: str, style: str) -> None:
        text = one_line(text)
        with suppress(OSError):  # the terminal may be gone; the command must still finish its work
            if _plain(sys.stderr):
                print(text, file=sys.stderr, flush=True)
            else:
                _console(stderr=True).print(text, style=style or None, soft_wrap=True)


def harmless(text: str) -> str:
    """Return text from outside with an escape for each character that would drive a terminal. Lines stay lines."""
    if text.isprintable():
        return text
    return DRIVES_A_TERMINAL.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return names and messages from outside on one line: nothing in them is invisible or begins another line."""
    return text if text.isprintable() else "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)


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


def _json(content: object, indent: int | None = None) -> str:
    """Return a JSON document in which also those characters are escaped that JSON allows and terminals obey."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    return DRIVES_A_TERMINAL.sub(lambda found: json.dumps(found[0])[1:-1], text)


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
