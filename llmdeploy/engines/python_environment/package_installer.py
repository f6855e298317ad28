"""The runs of uv and pip, with their progress, and their failures in one sentence."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from llmdeploy.engines import diagnosis
from llmdeploy.engines.diagnosis import FailureRule
from llmdeploy.engines.python_environment.failure_rules import RULES
from llmdeploy.errors import InstallFailed
from llmdeploy.rules import LONGEST

SILENCE_SECONDS = 15
"""Seconds without output after which a step is reported as still running."""
GRACE_SECONDS = 5
"""Seconds between SIGTERM and SIGKILL."""

OnProgress = Callable[[str, str], None]
"""Called with the step and its news; the news are empty when the step begins, and while it runs silently."""

FOREIGN = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV"),
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"),
}
"""Variables that would make a tool change another environment, or stop at a warning."""


@dataclass(frozen=True)
class Step:
    """A command of an installation."""

    name: str
    argv: tuple[str, ...]


def run(step: Step, log: Path, on_progress: OnProgress, rules: tuple[FailureRule, ...] = ()) -> None:
    """Run a step to its end; its output goes to the log, its news to `on_progress`. Raises InstallFailed.

    `rules` are the failures of this installation alone.
    """
    on_progress(step.name, "")
    said: list[str] = []
    with log.open("a") as file, _child(step, log) as child:
        for line in _lines(child):
            file.write(line)
            if line.strip():
                said.append(line.strip())
            words = news(line)
            if words or not line:
                on_progress(step.name, words)
        status = child.wait()
    if status != 0:
        raise failure(step, said, log, rules)


def news(line: str) -> str:
    """Return the news in a line of pip or uv: large downloads and the end of a phase; empty for other lines."""
    line = line[:LONGEST]
    if found := re.match(r"\s*Downloading ([\w-]+?)(?:-\d\S*)? .*\((\d{2,}(?:\.\d+)?) ?([MG]i?B)\)", line):
        return "downloading {} ({} {})".format(*found.groups())
    if found := re.match(r"Installing collected packages: (.*)", line):
        return f"writing {found[1].count(',') + 1} packages"
    return line.strip() if re.match(r"(Resolved|Prepared|Installed) \d+ packages", line) else ""


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that would mislead a tool."""
    return {name: value for name, value in variables.items() if name not in FOREIGN}


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of a process as they come, and an empty text after each SILENCE_SECONDS without one."""
    lines: Queue[str | None] = Queue()

    def read() -> None:
        for line in child.stdout or ():
            lines.put(line)
        lines.put(None)

    Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=SILENCE_SECONDS)
        except Empty:
            yield ""
            continue
        if line is None:
            return
        yield line


@contextmanager
def _child(step: Step, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a tool in a process group of its own, which ends as a whole if the block is interrupted."""
    try:
        child = subprocess.Popen(
            step.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=clean(os.environ),
            start_new_session=True,
        )
    except OSError as error:
        raise InstallFailed(f"`{step.argv[0]}` cannot be run: {error.strerror}", hint(log)) from error
    with child:
        try:
            yield child
        except BaseException:
            _end(child)
            raise


def _end(child: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
            return


def failure(step: Step, said: list[str], log: Path, rules: tuple[FailureRule, ...] = ()) -> InstallFailed:
    """Return the error for a failed step, in one sentence."""
    errors = [line for line in said if line.lower().startswith("error: ") and not line.endswith(":")]
    last = (errors or said or [""])[-1]
    if found := diagnosis.first((*RULES, *rules), said[-40:]):
        return InstallFailed(f"{step.name} failed: {found.cause}" + (f" ({last})" if last else ""), found.fix)
    return InstallFailed(f"{step.name} failed: {last or 'without a word'}", hint(log))


def hint(log: Path) -> str:
    return f"the whole output: `less {log}`"
