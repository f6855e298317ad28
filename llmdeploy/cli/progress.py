"""Downloads on screen: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from llmdeploy.cli.output import out
from llmdeploy.plan import in_gib

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Downloads:
    """Shows nothing until the first byte is asked for."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None
        self._said: dict[str, int] = {}

    def __enter__(self) -> Downloads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, file: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `file` are here."""
        if out.quiet:
            return
        if sys.stderr.isatty():
            self._draw(file, done, total)
        else:
            self._say(file, done, total)

    def _draw(self, file: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
        if file not in self._tasks:
            self._tasks[file] = self._bar.add_task(file, total=total)
        self._bar.update(self._tasks[file], completed=done, total=total)
        self._draw_total(self._bar)
        if all(task.finished for task in self._bar.tasks):
            self._bar.refresh()

    def _draw_total(self, bar: Progress) -> None:
        """A bar for all files, once there are two: of those that have begun, for the others are not known yet."""
        parts = [task for task in bar.tasks if task.id != self._total]
        if len(parts) < 2:
            return
        if self._total is None:
            self._total = bar.add_task("in total")
        bar.update(
            self._total,
            completed=sum(task.completed for task in parts),
            total=sum(task.total or 0 for task in parts),
        )

    def _say(self, file: str, done: int, total: int) -> None:
        if self.is_news(file, done, total):
            out.note(f"          {file}: {in_gib(done)} of {in_gib(total)}")

    def is_news(self, file: str, done: int, total: int) -> bool:
        """Whether another tenth of it is here since this was asked last."""
        tenth = 10 * done // total if total else 10
        news = self._said.get(file) != tenth
        self._said[file] = tenth
        return news
