"""The contents of an environment, as its Python reports them, with a cache. Nothing is imported and nothing raised."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmdeploy.atomic_file import JsonFile
from llmdeploy.engines.python_environment.program import PythonProgram
from llmdeploy.paths import state_dir

INSPECT_SECONDS = 1.4
"""Seconds that a Python may take to report what is installed: 0.1 s, and more on a cold disk."""
INSPECT = Path(__file__).with_name("inspect_python.py")


@dataclass(frozen=True)
class Contents:
    """The packages beside a Python, as `inspect_python.py` reports them."""

    python_version: str
    folders: list[str]
    """The folders of its packages."""
    name: str | None = None
    version: str | None = None
    """The version of the engine, from its metadata."""
    requires_python: str = ""
    package: bool = False
    """Whether the code of the engine is installed too."""
    torch: str | None = None
    cuda: str | None = None
    """The version of CUDA that torch was built for. The same holds for `rocm` and `xpu`."""
    rocm: str | None = None
    xpu: str | None = None

    @property
    def device(self) -> str:
        """The device of this build, from its name and the suffix of its version (`+cpu`), as vLLM itself decides."""
        mark = (self.version or "").partition("+")[2]
        if (self.name or "").endswith("-cpu") or "cpu" in mark:
            return "cpu"
        for device in ("rocm", "xpu", "tpu"):
            if device in mark or getattr(self, device, None):
                return device
        return "cuda"


@dataclass(frozen=True)
class Environment:
    """A Python that may have the engine."""

    python: str
    origin: str
    """The way in which it was found, in words."""
    contents: Contents | None = None
    """The contents; None if its Python could not report them, or not in time."""
    problem: str = ""
    """The reason why it cannot be used on any machine; empty if there is none."""

    @property
    def version(self) -> str | None:
        return self.contents.version if self.contents else None

    @property
    def device(self) -> str | None:
        return self.contents.device if self.contents else None


def read(program: PythonProgram, environment: Environment, seconds: float = INSPECT_SECONDS) -> Environment:
    """Return the environment with its contents, from its Python or from the cache."""
    if environment.problem:
        return environment
    contents = _remembered(program, environment.python)
    if contents is None:
        try:
            contents = _inspected(program, environment.python, seconds)
        except subprocess.TimeoutExpired:
            return environment
        except OSError as error:
            return replace(environment, problem=f"it cannot be run: {error.strerror}")
        except (ValueError, TypeError) as error:
            return replace(environment, problem=f"it does not report what is installed there: {error}")
        _remember(program, environment.python, contents)
    return replace(environment, contents=contents, problem=problem(program, contents))


def problem(program: PythonProgram, contents: Contents) -> str:
    """Return what is wrong with an installation, whatever the machine; empty if nothing is."""
    if contents.version is None:
        return f"it has no {program.label}"
    name = f"{program.label} {contents.version}"
    if not contents.package:
        return f"{name} has its metadata but not its code"
    if not fits(contents.requires_python, contents.python_version):
        return f"{name} needs Python {contents.requires_python}, and this is {contents.python_version}"
    if contents.torch is None:
        return f"{name} is installed without torch"
    if contents.device == "cuda" and contents.cuda is None:
        return f"{name} is a CUDA build, but its torch {contents.torch} is not"
    return ""


def fits(requires_python: str, version: str) -> bool:
    """Return whether a version of Python satisfies `Requires-Python`, such as `>=3.11,<3.15`."""
    have = numbers(version)
    for operator, bound in re.findall(r"(>=|<=|<|>|!=)\s*([\d.]+)", requires_python):
        want = numbers(bound)
        held = {
            ">=": have >= want,
            "<=": have[: len(want)] <= want,
            "<": have < want,
            ">": have[: len(want)] > want,
            "!=": have[: len(want)] != want,
        }
        if not held[operator]:
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without its local part."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def _inspected(program: PythonProgram, python: str, seconds: float) -> Contents:
    """Ask a Python for its contents. Raises TimeoutExpired, OSError, ValueError and TypeError."""
    if seconds <= 0:
        raise subprocess.TimeoutExpired(python, seconds)
    done = subprocess.run(
        [python, "-c", INSPECT.read_text(), program.name, *program.distributions],
        cwd="/",  # modules in the current folder must not be imported
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise ValueError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return Contents(**json.loads((done.stdout.strip().splitlines() or [""])[-1]))


def _marks(python: str, contents: Contents) -> list[list[Any]]:
    """Return the values that change with each installation: the times of the package folders and of the Python."""
    return [[path, modified(Path(path))] for path in (python, *contents.folders)]


def modified(path: Path) -> int:
    """Return when a file or folder was changed, in nanoseconds; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _entries(program: PythonProgram) -> dict[str, Any]:
    """Return the cache, by the path of each Python that still exists."""
    entries: dict[str, Any] = JsonFile(_file(program)).read({})
    return {python: entry for python, entry in entries.items() if os.path.exists(python)}


def _remembered(program: PythonProgram, python: str) -> Contents | None:
    with suppress(TypeError, KeyError):
        entry = _entries(program)[python]
        contents = Contents(**entry["contents"])
        if entry["marks"] == _marks(python, contents):
            return contents
    return None


def _remember(program: PythonProgram, python: str, contents: Contents) -> None:
    """Write the cache; detection does not create the state folder for it. A lost cache costs a tenth of a second."""
    with suppress(OSError):
        if state_dir().is_dir():
            entry = {"marks": _marks(python, contents), "contents": asdict(contents)}
            JsonFile(_file(program)).write({**_entries(program), python: entry})


def _file(program: PythonProgram) -> Path:
    return state_dir() / f"{program.name}.json"
