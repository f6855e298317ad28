"""What a start says on its way: lines for people, or one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from llmdeploy.cli.output import out
from llmdeploy.cli.progress import Downloads
from llmdeploy.plan import in_gib

if TYPE_CHECKING:
    from llmdeploy.engines.base import Loaded
    from llmdeploy.plan import Plan
    from llmdeploy.service.state import Record

OnReady = Callable[["Record"], None]
LONGEST = 100
"""Characters of a line of a server's that is shown."""
CHECKING = "checking"
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

    def on_phase(self, name: str, elapsed: float) -> None:
        say_phase(name, elapsed)

    def on_wait(self, name: str, elapsed: float, line: str) -> None:
        short = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
        self.on_phase(f"still {name}" + (f": {short}" if line else ""), elapsed)

    def on_percent(self, name: str, elapsed: float, percent: int) -> None:
        """Not more often than once a second: a bar of vLLM's redraws itself all the time."""
        before, phase = self._said
        if phase != name or elapsed > before + 1 or percent == 100:
            self._said = (elapsed, name)
            self.on_phase(f"{name}: {percent} %", elapsed)

    def on_note(self, text: str) -> None:
        out.note(f"{INDENT}{text}")

    def on_download(self, file: str, done: int, total: int) -> None:
        self._downloads.show(file, done, total)

    def on_plan(self, plan: Plan) -> None:
        own = [f"{plan.settings['threads'].value} threads"] if "threads" in plan.settings else []
        sizes = ", ".join([f"{plan.context.value} tokens a request", f"{plan.parallel.value} at a time", *own])
        free = f" of {in_gib(plan.available.bytes)} free memory" if plan.available else ""
        self.on_note(f"{sizes}; {in_gib(plan.needed_bytes)}{free}")

    def on_loaded(self, loaded: Loaded) -> None:
        context = f", {loaded.context} tokens a request" if loaded.context else ""
        self.on_note(f"{loaded.detail}{context}")

    def on_ready(self, record: Record, elapsed: float) -> None:
        say_phase("ready; Ctrl-C stops it", elapsed)
        self._announce(record)

    def on_stop(self) -> None:
        out.note("stopping")


class AsJson(AsText):
    """The same on stdout as events, and the document of what is served as the last of them.

    What comes before anything is started is held back: a start that is refused answers with one document.
    """

    def __init__(self, announce: OnReady) -> None:
        super().__init__(announce)
        self._held: list[dict[str, object]] | None = []

    def _tell(self, event: str, **fields: object) -> None:
        content = {"event": event, **fields}
        if self._held is not None:
            self._held.append(content)
        else:
            out.event(content)

    def _release(self) -> None:
        held, self._held = self._held, None
        for content in held or ():
            out.event(content)

    def on_phase(self, name: str, elapsed: float) -> None:
        if name != CHECKING:
            self._release()
        self._tell("phase", phase=name, elapsed=round(elapsed, 1))

    def on_wait(self, name: str, elapsed: float, line: str) -> None:
        self._tell("wait", phase=name, elapsed=round(elapsed, 1), line=line)

    def on_percent(self, name: str, elapsed: float, percent: int) -> None:
        self._tell("percent", phase=name, elapsed=round(elapsed, 1), percent=percent)

    def on_note(self, text: str) -> None:
        self._tell("note", text=text)

    def on_download(self, file: str, done: int, total: int) -> None:
        if self._downloads.is_news(file, done, total):
            self._tell("download", file=file, done=done, total=total)

    def on_ready(self, record: Record, elapsed: float) -> None:
        self._announce(record)

    def on_stop(self) -> None:
        self._tell("stopping")
