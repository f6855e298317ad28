"""The search for the environments that have an engine. The engine is not imported, and nothing is raised."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmdeploy.background import within
from llmdeploy.engines.base import EngineStatus
from llmdeploy.engines.python_environment.contents import INSPECT_SECONDS, Environment, modified, read
from llmdeploy.engines.python_environment.fitness import judge
from llmdeploy.engines.python_environment.program import OTHER_ENGINE, PythonProgram
from llmdeploy.ownership import stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmdeploy.config import Settings
    from llmdeploy.hardware import Hardware

SECONDS = 1.9
"""Seconds that the whole detection may take."""

STAMP = "llmdeploy.json"
"""The file that marks a complete environment of llmdeploy's."""


@dataclass(frozen=True)
class Found:
    """The environment that would serve, or else the first candidate, and its status."""

    environment: Environment | None
    status: EngineStatus


def detect(
    program: PythonProgram, settings: Settings, machine: Hardware | None = None, platform: str = sys.platform
) -> Found:
    """Return the environment that would serve. Takes under 2 s; `machine` is detected if it is not given."""
    if platform != "linux":
        return Found(
            None, EngineStatus(False, None, f"{program.label} runs only on Linux", OTHER_ENGINE, installed=False)
        )
    deadline = time.monotonic() + SECONDS
    closest = None
    for candidate in candidates(program, settings):
        environment = read(program, candidate, min(INSPECT_SECONDS, deadline - time.monotonic()))
        if environment.device == "cuda" and machine is None:
            machine = _machine(deadline - time.monotonic())
        found = Found(environment, judge(program, environment, machine))
        if found.status.usable:
            return found
        # An environment that cannot be used must not hide one that can.
        closest = closest or found
    if closest:
        return closest
    missing = f"no {program.label} on this machine"
    return Found(None, EngineStatus(False, None, missing, program.install_command, installed=False))


# The places


def candidates(program: PythonProgram, settings: Settings) -> Iterator[Environment]:
    """Yield the Pythons that may have the engine, the preferred one first. A configured one is the only one."""
    python: str | None = getattr(settings, program.name).python
    if python:
        yield Environment(python, f"set by `engines.{program.name}.python`")
        return
    places = [*_here(program), *_on_path(shutil.which(program.name)), *made(program)]
    seen = set()
    for environment in places:
        if environment.python not in seen:
            seen.add(environment.python)
            yield environment


def _here(program: PythonProgram) -> Iterator[Environment]:
    from importlib.metadata import distributions

    if any(True for name in program.distributions for _ in distributions(name=name)):
        yield Environment(sys.executable, "installed beside llmdeploy")


def _on_path(script: str | None) -> Iterator[Environment]:
    if script is None or not os.path.isabs(script):  # a script in the current folder is not meant
        return
    try:
        with open(script, "rb") as file:
            python = python_of(file.read(1024).decode(errors="replace"))
    except OSError as error:
        yield Environment(script, "found on PATH", problem=f"it cannot be read: {error.strerror}")
        return
    if python:
        yield Environment(python, "found on PATH")
    else:
        yield Environment(script, "found on PATH", problem="it does not name its Python")


def python_of(script: str) -> str | None:
    """Return the Python of a script, from its first line, or from its second if the path is long or has blanks."""
    long = re.match(r"""#!/bin/sh\n'''exec' ["']?(/[^"'\n]*?)["']? "\$0\"""", script)
    found = long or re.match(r"#!(/\S+)", script)
    return found[1] if found and os.path.basename(found[1]).startswith("python") else None


def made(program: PythonProgram) -> Iterator[Environment]:
    """Yield the complete environments that `engines install` made, the latest first."""
    for stamp in sorted(program.folder.glob(f"*/{STAMP}"), key=modified, reverse=True):
        problem = stranger(*program.folders, stamp.parent, stamp.parent / "bin")
        yield Environment(str(stamp.parent / "bin" / "python"), "installed by llmdeploy", problem=problem)


def _machine(seconds: float) -> Hardware | None:
    """Detect this machine; None if its driver does not answer in time."""
    from llmdeploy import hardware

    try:
        return within(max(0.0, seconds), hardware.detect)
    except TimeoutError:
        return None
