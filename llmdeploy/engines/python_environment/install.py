"""The installation of an engine that is a Python program: planned as data, made with progress, complete or removed.

An environment is complete when its stamp is written, in the last step. An environment without one is a remnant of an
interrupted run, and the next run removes it.
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

from llmdeploy.engines.python_environment import package_installer
from llmdeploy.engines.python_environment.contents import Environment, read
from llmdeploy.engines.python_environment.find import STAMP
from llmdeploy.engines.python_environment.fitness import judge, unfit
from llmdeploy.engines.python_environment.package_installer import OnProgress, Step
from llmdeploy.engines.python_environment.program import OTHER_ENGINE, PythonProgram, Size
from llmdeploy.errors import InstallFailed, UsageError
from llmdeploy.hardware import disk_free
from llmdeploy.ownership import stranger
from llmdeploy.paths import state_dir
from llmdeploy.text import permissions_hint
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware

PYTHON_SECONDS = 5
TEST_SECONDS = 300
"""Seconds for `PROGRAM --version`: it takes 10 s, and longer the first time, when Python compiles everything."""


@dataclass(frozen=True)
class Installation:
    """The plan of an installation."""

    version: str
    cpu: bool
    folder: Path
    tool: str
    """`uv` or `pip`."""
    python: str
    """The interpreter for the environment, or a version of Python that uv downloads."""
    steps: tuple[Step, ...]
    size: Size

    @property
    def environment(self) -> Environment:
        return Environment(str(self.folder / "bin" / "python"), "installed by llmdeploy")


# The plan


def plan(
    program: PythonProgram, version: str | None = None, *, cpu: bool = False, platform: str = sys.platform
) -> Installation:
    """Plan an installation. Raises UsageError for an invalid version, InstallFailed if it is not possible here."""
    version = version or program.version
    if not re.fullmatch(r"\d+(\.\w+)+", version):
        raise UsageError(f"`{version}` is not a valid version", f"an example: `{program.version}`")
    if platform != "linux":
        raise InstallFailed(f"{program.label} runs only on Linux", OTHER_ENGINE)
    uv = shutil.which("uv")
    python = find_python(program.pythons)
    if python is None and uv is None:
        raise InstallFailed(
            f"{program.label} runs on Python {_words(program.pythons)}, and none of them is on PATH",
            "`pip install uv`, which fetches one",
        )
    folder = program.folder / (f"{version}-cpu" if cpu else version)
    distribution = program.cpu_distribution if cpu else program.distribution
    chosen = python or "{}.{}".format(*program.pythons[0])
    return Installation(
        version=version,
        cpu=cpu,
        folder=folder,
        tool="uv" if uv else "pip",
        python=chosen,
        steps=steps(uv, chosen, folder, f"{distribution}=={version}", os.environ, cpu=cpu),
        size=program.cpu_size if cpu else program.gpu_size,
    )


def steps(
    uv: str | None, python: str, folder: Path, requirement: str, variables: Mapping[str, str], *, cpu: bool
) -> tuple[Step, ...]:
    """Return the commands. uv knows the index of PyTorch's CPU builds; pip needs it in its own settings."""
    target = str(folder / "bin" / "python")
    make: tuple[str, ...]
    install: tuple[str, ...]
    if uv:
        # If the user has configured other package indexes, those must have the CPU builds too.
        own = any(variables.get(f"UV_{name}") for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "INDEX", "NO_INDEX"))
        for_cpu = cpu and not own
        make = (uv, "venv", "--python", python, str(folder))
        install = (uv, "pip", "install", "--python", target, *(("--torch-backend", "cpu") if for_cpu else ()))
    else:
        make = (python, "-m", "venv", str(folder))
        quiet = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")
        install = (target, "-m", "pip", "install", *quiet)
    return Step("making the environment", make), Step("installing", (*install, requirement))


def find_python(pythons: tuple[tuple[int, int], ...]) -> str | None:
    """Return an interpreter of one of these versions: llmdeploy's own if it fits, else one on PATH."""
    if sys.version_info[:2] in pythons:
        return sys.executable
    for wanted in pythons:
        path = shutil.which("python{}.{}".format(*wanted))
        if path and os.path.isabs(path) and _is(path, wanted):
            return path
    return None


def _is(path: str, wanted: tuple[int, int]) -> bool:
    """Return whether an interpreter has the version in its name: some are placeholders that end with an error."""
    command = [path, "-c", "import sys; print(tuple(sys.version_info[:2]))"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PYTHON_SECONDS, stdin=subprocess.DEVNULL, cwd="/"
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == str(wanted)


def warning(program: PythonProgram, plan: Installation, machine: Hardware) -> str:
    """Return why the planned installation would not run on a machine; empty if it would."""
    if plan.cpu:
        return ""
    why = unfit(program, program.cuda if plan.version == program.version else None, machine)
    return f"it would not run here: {why[0]}" if why else ""


def _words(versions: tuple[tuple[int, int], ...]) -> str:
    return ", ".join("{}.{}".format(*it) for it in sorted(versions))


# The installation


def here(program: PythonProgram, plan: Installation) -> Environment | None:
    """Return the planned environment if it exists already, complete and usable."""
    if not (plan.folder / STAMP).exists():
        return None
    found = read(program, plan.environment)
    return None if found.problem else found


def carry_out(program: PythonProgram, plan: Installation, on_progress: OnProgress) -> Environment:
    """Make the environment. Raises InstallFailed; whatever interrupts it, no incomplete environment is left."""
    require_space(program, plan)
    with _closed_to_the_group(), _alone(program):
        log = _log()
        clear(plan.folder)
        try:
            for step in plan.steps:
                package_installer.run(step, log, on_progress, program.failure_rules)
            if plan.cpu:
                _repair_cpu_build(program, plan, on_progress)
            on_progress("testing it", "")
            found = test(program, plan)
            (plan.folder / STAMP).write_text(json.dumps({"version": found.version}))
        except BaseException:
            clear(plan.folder)
            raise
    return found


def require_space(program: PythonProgram, plan: Installation) -> None:
    """Raise InstallFailed unless the disk has enough space."""
    free = disk_free(plan.folder)
    if free < plan.size.disk:
        raise InstallFailed(
            f"{program.label} takes {in_gib(plan.size.disk)}, and {in_gib(free)} are free for `{plan.folder.parent}`",
            "on another disk: `export LLMDEPLOY_DATA_DIR=/path/to/folder`, for `serve` too",
        )


def _repair_cpu_build(program: PythonProgram, plan: Installation, on_progress: OnProgress) -> None:
    on_progress("making the CPU build able to start", "")
    try:
        for words in program.repair_cpu_build(plan.folder):
            on_progress("making the CPU build able to start", words)
    except (OSError, subprocess.SubprocessError) as error:
        hint = f"once more: {program.cpu_install_command}"
        raise InstallFailed(f"the CPU build cannot be made to start: {error}", hint) from error


def test(program: PythonProgram, plan: Installation) -> Environment:
    """Inspect the new environment and, if it can run on this machine, run the program once. Raises InstallFailed."""
    from llmdeploy import hardware

    found = read(program, plan.environment, TEST_SECONDS)
    if found.problem:
        raise InstallFailed(f"the installation is incomplete: {found.problem}", package_installer.hint(log_file()))
    if judge(program, found, hardware.detect()).usable:
        _require_version(plan.folder / "bin" / program.name)
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
        raise InstallFailed(
            f"the installed program does not run: {error}", package_installer.hint(log_file())
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise InstallFailed(f"the installed program does not run: {last}", package_installer.hint(log_file()))


def remove(program: PythonProgram) -> int:
    """Remove all environments that llmdeploy made, complete or not. Return the freed bytes."""
    with _closed_to_the_group(), _alone(program):
        folders = every(program)
        freed = sum(map(size, folders))
        for folder in folders:
            clear(folder)
    return freed


def every(program: PythonProgram) -> list[Path]:
    """Return the folders of all environments that llmdeploy made, complete or not."""
    place = program.folder
    return sorted(it for it in place.iterdir() if it.is_dir()) if place.is_dir() else []


def size(folder: Path) -> int:
    """Return the size of a folder on disk in bytes."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def clear(folder: Path) -> None:
    """Remove an environment, its stamp first: a partly removed one must not pass for complete."""
    with suppress(FileNotFoundError):
        (folder / STAMP).unlink()
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise InstallFailed(f"`{folder}` cannot be removed: {error.strerror}", permissions_hint(folder)) from error


def log_file() -> Path:
    """Return the path of the log of installations."""
    return state_dir() / "install.log"


def _log() -> Path:
    """Return the log of this installation, empty."""
    file = log_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text("")
    except OSError as error:
        raise _unwritable(file, error) from error
    return file


@contextmanager
def _closed_to_the_group() -> Iterator[None]:
    """Make files and folders that only their owner can change: what others of a group may write to is not run."""
    before = os.umask(0o022)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _alone(program: PythonProgram) -> Iterator[None]:
    """Allow only one installation or removal at a time. Raises InstallFailed."""
    from filelock import FileLock, Timeout

    place = program.folder
    lock = FileLock(place / ".lock")
    try:
        place.mkdir(parents=True, exist_ok=True)
        if problem := stranger(*program.folders):
            raise InstallFailed(
                f"{problem}, and what is in it would be run",
                "`chmod go-w` it, or name another folder: `export LLMDEPLOY_DATA_DIR=/path/to/folder`",
            )
        lock.acquire(timeout=0)
    except Timeout:
        raise InstallFailed(
            f"another command installs or removes {program.label} now", "wait until it is done"
        ) from None
    except OSError as error:
        raise _unwritable(place, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> InstallFailed:
    return InstallFailed(f"`{path}` cannot be written: {error.strerror}", permissions_hint(path.parent))
