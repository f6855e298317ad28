"""What the user sees: stdout is the answer, everything else is stderr."""

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
    """The one way out of every command. Rich decides on colour, for each stream by itself."""

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self._documented = False
        self._streams = False

    def data(self, text: str, end: str = "\n") -> None:
        """The answer, or a piece of it: seen at once, also through a pipe. Raises LlmdeployError, BrokenPipeError."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """A line of the answer that may hold names from outside."""
        self.data(harmless(text))

    def document(self, content: object) -> None:
        """The answer as JSON: one document, or the last line where events came before it."""
        self._documented = True
        self.data(json.dumps(content, ensure_ascii=False, indent=None if self._streams else 2))

    def event(self, content: object) -> None:
        """What happens on the way, as JSON: a line of its own."""
        self._streams = True
        self.data(json.dumps(content, ensure_ascii=False))

    def table(self, table: Table) -> None:
        """The answer as a table: folded on a terminal, one row a line elsewhere."""
        console = _console(stderr=False)
        with console.capture() as capture:
            console.print(table)
        for line in capture.get().splitlines():
            self.data(line.rstrip())

    def note(self, text: str, style: str = "") -> None:
        """Progress and remarks."""
        if not self.quiet:
            self._tell(text, style)

    def hint(self, text: str) -> None:
        if not self.quiet:
            self._tell(f"hint: {text}", "cyan")

    def warn(self, text: str) -> None:
        self._tell(f"warning: {text}", "yellow")

    def ask(self, question: str) -> bool:
        """Whether the user agrees; only somebody at a terminal can. Raises UsageError where there is none."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"there is no terminal to ask on: {question}", "add `--yes` to agree")
        print(harmless(question), end=" [y/N] ", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def error(self, error: LlmdeployError, *, as_json: bool) -> None:
        if as_json and not self._documented and error.code != UNWRITABLE:
            with suppress(LlmdeployError):  # stdout cannot be written: then stderr has it
                self.document(error.as_document())
                return
        self._tell(f"error: {error.message}", "red")
        if error.hint:
            self._tell(f"hint: {error.hint}", "cyan")

    def _tell(self, text: str, style: str) -> None:
        text = harmless(text)
        with suppress(OSError):  # the terminal may be gone; what is being done must still end well
            if _plain(sys.stderr):
                print(text, file=sys.stderr, flush=True)
            else:
                _console(stderr=True).print(text, style=style or None, soft_wrap=True)


def harmless(text: str) -> str:
    """Names of files and words of servers may hold control characters: on a terminal they are shown, not obeyed."""
    return "".join(it if it.isprintable() or it in "\n\t" else ascii(it)[1:-1] for it in text)


def columns() -> int:
    """The width of the terminal that stdout is, or what `COLUMNS` says; 80 where neither tells.

    shutil's function asks the stream that the interpreter began with, which `make_safe` has replaced.
    """
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named) > 0:
        return int(named)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _plain(stream: Any) -> bool:
    """Whether Rich would only pass the text on: then its 40 ms are saved."""
    return not (stream.isatty() or os.environ.get("FORCE_COLOR"))


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Off a terminal there is no width to fold to, and a script wants a row on one line.
    width = None if stream.isatty() else 10_000
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


out = Output()
