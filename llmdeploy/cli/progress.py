"""Downloads on screen: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from llmdeploy.cli.output import one_line, out
from llmdeploy.units import in_gib, in_time

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

TOTAL = "in total"
NARROW, WIDE = 60, 100
"""Terminal widths: below NARROW the speed is left out, from WIDE on a bar is drawn."""


class Downloads:
    """Progress display of several downloads; empty until the first call of `show`, from any thread."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._files: dict[str, tuple[int, int]] = {}
        """Per file: bytes present and bytes in total."""
        self._said: dict[str, int] = {}
        self._began = (0.0, 0)
        """Time of the first `show`, and bytes that were present before the download."""

    def __enter__(self) -> Downloads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, file: str, done: int, total: int) -> None:
        """Report that `done` of the `total` bytes of `file` are present."""
        if out.quiet:
            return
        if file not in self._files:  # bytes that were present before do not count for the speed
            began, here = self._began
            self._began = (began or time.monotonic(), here + done)
        self._files[file] = (done, total)
        if sys.stderr.isatty():
            self._draw(file, done, total)
        else:
            self._say(file, done, total)

    @property
    def _sum(self) -> tuple[int, int]:
        return sum(done for done, _ in self._files.values()), sum(total for _, total in self._files.values())

    def _draw(self, file: str, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._tasks[TOTAL] = self._bars.add_task(TOTAL, visible=False)  # the first line, shown with a second file
            self._bars.start()
        self._move(self._bars, file, done, total)
        if len(self._files) > 1:
            self._move(self._bars, TOTAL, *self._sum)

    def _move(self, bars: Progress, name: str, done: int, total: int) -> None:
        """Update a bar. A file's bar is visible during its download, the bar of the total always."""
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(one_line(name), visible=False)  # until its numbers are known
        under_way = name == TOTAL or 0 < done < total or len(self._files) == 1
        bars.update(self._tasks[name], completed=done, total=total, visible=under_way)
        if done >= total:
            bars.refresh()

    def _say(self, file: str, done: int, total: int) -> None:
        """Print a line for each tenth of the total and, with several files, one for each complete file."""
        if len(self._files) > 1 and self.is_news(file, done, total) and done >= total:
            out.note(f"          {file}: {in_gib(total)}")
        name = TOTAL if len(self._files) > 1 else file
        all_done, all_total = self._sum
        if all_done and self.is_news(name, all_done, all_total):
            out.note(f"          {name}: {in_gib(all_done)} of {in_gib(all_total)}{self._pace(all_done, all_total)}")

    def _pace(self, done: int, total: int) -> str:
        began, here = self._began
        seconds = time.monotonic() - began
        if done <= here or seconds < 0.5:  # too early for a reliable speed
            return ""
        speed = (done - here) / seconds
        left = f", {in_time((total - done) / speed)} left" if done < total else ""
        return f", {in_gib(speed)}/s{left}"

    def is_news(self, file: str, done: int, total: int) -> bool:
        """Return whether another tenth of `file` has arrived since the last call."""
        tenth = 10 * done // total if total else 10
        news = self._said.get(file) != tenth
        self._said[file] = tenth
        return news


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{in_gib(task.completed)} of {in_gib(task.total or 0)}")

    class Pace(ProgressColumn):
        """Column with speed and time left."""

        def render(self, task: Task) -> Text:
            if task.finished or not task.speed:
                return Text("")
            speed = [] if console.width < NARROW else [f"{in_gib(task.speed)}/s"]
            left = [] if task.time_remaining is None else [f"{in_time(task.time_remaining)} left"]
            return Text(", ".join(speed + left))

    console = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, min_width=8))
    one_line = Column(no_wrap=True)
    columns: list[ProgressColumn] = [name, Amount(one_line), Pace(one_line)]
    if console.width >= WIDE:  # on narrower terminals the numbers need the room
        columns.insert(1, BarColumn(bar_width=24))
    return Progress(*columns, console=console, expand=True, transient=False)
