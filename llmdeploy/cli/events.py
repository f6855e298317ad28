"""What a start says on its way: lines for people, or one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from llmdeploy.cli.output import out
from llmdeploy.cli.progress import Downloads
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from llmdeploy.service.launch import Event
    from llmdeploy.service.state import Record

OnReady = Callable[["Record"], None]
LONGEST = 100
"""Characters of a line of a server's that is shown."""
CHECKING = "checking"
STEPS = {
    "check": "the engine, the weights, the memory",
    "prepare": "start the new server",
    "prove": "have it answer",
    "commit": "write the configuration, point the address to it",
    "finish": "let the last requests end, stop the old server",
    "undo": "stop the new server, keep the old one",
}
"""Of a switch, and what is done there."""
INDENT = " " * len("[  0.0 s] ")


def say_phase(name: str, elapsed: float) -> None:
    out.note(f"[{elapsed:5.1f} s] {name}")


class AsText:
    """`service.deployment.Notices`, on stderr."""

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

    def tell(self, event: Event) -> None:
        match event:
            case {"event": "phase", "phase": phase}:
                say_phase(phase, event["elapsed"])
            case {"event": "wait", "phase": phase, "line": line}:
                short = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
                say_phase(f"still {phase}" + (f": {short}" if line else ""), event["elapsed"])
            case {"event": "percent", "phase": phase, "percent": percent}:
                self._percent(phase, event["elapsed"], percent)
            case {"event": "download", "file": file, "done": done, "total": total}:
                self._downloads.show(file, done, total)
            case {"event": "step", "step": step}:
                say_phase(f"{step}: {STEPS[step]}", event["elapsed"])
            case {"event": "fetching", "bytes": size, "source": source} if size:
                self._aside(f"{in_gib(size)} from {source}")
            case {"event": "fetching", "reason": reason} if reason:
                self._aside(f"its size is not known: {reason}")
            case {"event": "plan"}:
                self._aside(_plan(event))
            case {"event": "loaded", "detail": detail, "context": context}:
                self._aside(f"{detail}" + (f", {context} tokens a request" if context else ""))
            case {"event": "note", "text": text} | {"event": "room", "reason": text}:
                self._aside(text)

    def _percent(self, name: str, elapsed: float, percent: int) -> None:
        """Not more often than once a second: a bar of vLLM's redraws itself all the time."""
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


def _plan(event: Event) -> str:
    threads = event["settings"].get("threads")
    own = [] if threads is None else [f"{threads} threads"]
    sizes = ", ".join([f"{event['context']} tokens a request", f"{event['parallel']} at a time", *own])
    available = event["available_bytes"]
    free = "" if available is None else f" of {in_gib(available)} free memory"
    return f"{sizes}; {in_gib(event['needed_bytes'])}{free}"


class AsJson(AsText):
    """The same on stdout as events, and the document of what is served as the last of them.

    What comes before anything is started is held back: a start that is refused answers with one document.
    """

    def __init__(self, announce: OnReady) -> None:
        super().__init__(announce)
        self._held: list[Event] | None = []

    def tell(self, event: Event) -> None:
        if event["event"] == "step" or (event["event"] == "phase" and event["phase"] != CHECKING):
            self._release()
        if event["event"] == "download" and not self._downloads.is_news(event["file"], event["done"], event["total"]):
            return
        if self._held is not None:
            self._held.append(event)
        else:
            out.event(event)

    def _release(self) -> None:
        held, self._held = self._held, None
        for event in held or ():
            out.event(event)

    def on_ready(self, record: Record, elapsed: float) -> None:
        self._announce(record)

    def on_stop(self) -> None:
        self.tell({"event": "stopping"})
