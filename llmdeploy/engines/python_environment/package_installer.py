"""The tools that install, uv and pip: run to their end, their lines told, their failures in a sentence."""

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

SILENCE_SECONDS = 15
"""After which a tool that says nothing is said to be at it still."""
GRACE_SECONDS = 5

OnProgress = Callable[[str, str], None]
"""The step, and what is new in it; empty where the step begins, or goes on in silence."""

FOREIGN = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV"),
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"),
}
"""Variables that would lead a tool out of the environment it is to work on, or stop it at a warning."""


@dataclass(frozen=True)
class Step:
    name: str
    argv: tuple[str, ...]


def run(step: Step, log: Path, on_progress: OnProgress, rules: tuple[FailureRule, ...] = ()) -> None:
    """Run a step to its end; what it says goes to the log and to `on_progress`. Raises InstallFailed.

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
    """What a line of pip's or uv's tells a user who waits: large downloads and the end; empty for all else."""
    if found := re.match(r"\s*Downloading ([\w-]+?)(?:-\d\S*)? .*\((\d{2,}(?:\.\d+)?) ?([MG]i?B)\)", line):
        return "downloading {} ({} {})".format(*found.groups())
    if found := re.match(r"Installing collected packages: (.*)", line):
        return f"writing {found[1].count(',') + 1} packages"
    return line.strip() if re.match(r"(Resolved|Prepared|Installed) \d+ packages", line) else ""


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in FOREIGN}


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """The lines of a child as they come; an empty text after each while of silence."""
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
    """A tool in a group of its own: what ends us early ends all of it."""
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
    """Why a step failed, in one sentence."""
    text = "\n".join(said[-40:])
    errors = [line for line in said if re.match(r"error: .*[^:]$", line, re.IGNORECASE)]
    told = (errors or said or [""])[-1]
    if found := diagnosis.first((*RULES, *rules), [text]):
        return InstallFailed(f"{step.name} failed: {found.cause}" + (f" ({told})" if told else ""), found.fix)
    return InstallFailed(f"{step.name} failed: {told or 'without a word'}", hint(log))


def hint(log: Path) -> str:
    return f"all that was said: `less {log}`"
