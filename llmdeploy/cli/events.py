"""Events on screen: lines for people, or one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, assert_never

from llmdeploy.cli.output import out
from llmdeploy.cli.phases import INDENT, say_phase
from llmdeploy.cli.progress import Downloads
from llmdeploy.service.events import (
    Download,
    Fetching,
    Loaded,
    Note,
    Percent,
    Phase,
    Planned,
    Public,
    Room,
    Step,
    Stopping,
    Switched,
    Wait,
    document,
)
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from llmdeploy.service.state import Record

OnReady = Callable[["Record"], None]
LONGEST = 100
"""Number of characters that are shown of a line of the server's log."""
CHECKING = "checking"
STEPS = {
    "check": "the engine, the weights, the memory",
    "prepare": "start the new server",
    "prove": "have it answer",
    "commit": "write the configuration, point the address to it",
    "finish": "let the last requests end, stop the old server",
    "undo": "stop the new server, keep the old one",
}
"""The steps of a switch, and what is done in each."""


class AsText:
    """Shows what happens on stderr; a `service.service.ServiceListener`."""

    def __init__(self, announce: OnReady) -> None:
        self._announce = announce
        self._downloads = Downloads()
        self._said = (0.0, "")

    def __enter__(self) -> AsText:
        self._downloads.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._downloads.__exit__(kind, error, trace)

    def on_event(self, event: Public, elapsed: float) -> None:
        """Show an event; `elapsed`: seconds since the command or the service began."""
        match event:
            case Phase(phase=phase):
                say_phase(phase, elapsed)
            case Wait(phase=phase, line=line):
                short = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
                say_phase(f"still {phase}" + (f": {short}" if line else ""), elapsed)
            case Percent(phase=phase, percent=percent):
                self._percent(phase, elapsed, percent)
            case Download(file=file, done=done, total=total):
                self._downloads.show(file, done, total)
            case Step(step=step):
                say_phase(f"{step}: {STEPS[step]}", elapsed)
            case Fetching():
                self._fetching(event)
            case Planned():
                self._aside(_plan(event))
            case Loaded(detail=detail, context=context):
                self._aside(f"{detail}" + (f", {context} tokens a request" if context else ""))
            case Note(text=text) | Room(reason=text):
                self._aside(text)
            case Switched() | Stopping():
                pass
            case _:
                assert_never(event)

    def _fetching(self, event: Fetching) -> None:
        if event.bytes:
            self._aside(f"{in_gib(event.bytes)} from {event.source}")
        elif event.reason:
            self._aside(f"its size is not known: {event.reason}")

    def _percent(self, name: str, elapsed: float, percent: int) -> None:
        """Show the percentage, at most once a second: a progress bar of vLLM redraws itself all the time."""
        before, phase = self._said
        if phase != name or elapsed > before + 1 or percent == 100:
            self._said = (elapsed, name)
            say_phase(f"{name}: {percent} %", elapsed)

    def _aside(self, text: str) -> None:
        out.note(f"{INDENT}{text}")

    def on_ready(self, record: Record, elapsed: float) -> None:
        say_phase("ready; Ctrl-C stops it", elapsed)
        self._announce(record)

    def on_stop(self) -> None:
        out.note("stopping")


def _plan(event: Planned) -> str:
    threads = event.settings.get("threads")
    own = [] if threads is None else [f"{threads} threads"]
    sizes = ", ".join([f"{event.context} tokens a request", f"{event.parallel} at a time", *own])
    free = "" if event.available_bytes is None else f" of {in_gib(event.available_bytes)} free memory"
    return f"{sizes}; {in_gib(event.needed_bytes)}{free}"


class AsJson(AsText):
    """Prints the events as JSON on stdout, and at last the document of what is served.

    Events before anything is started are held back: a start that is refused prints one document only.
    """

    def __init__(self, announce: OnReady) -> None:
        super().__init__(announce)
        self._held: list[dict[str, Any]] | None = []

    def on_event(self, event: Public, elapsed: float) -> None:
        if isinstance(event, Step) or (isinstance(event, Phase) and event.phase != CHECKING):
            self._release()
        if isinstance(event, Download) and not self._downloads.is_news(event.file, event.done, event.total):
            return
        self._print(document(event, elapsed))

    def _print(self, content: dict[str, Any]) -> None:
        if self._held is not None:
            self._held.append(content)
        else:
            out.event(content)

    def _release(self) -> None:
        held, self._held = self._held, None
        for content in held or ():
            out.event(content)

    def on_ready(self, record: Record, elapsed: float) -> None:
        self._announce(record)

    def on_stop(self) -> None:
        self._print(document(Stopping()))
