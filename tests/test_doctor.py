"""`doctor` and `models`, on this machine and on simulated ones."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llmdeploy import doctor, hardware, paths
from llmdeploy.doctor import Check
from llmdeploy.engines import registry
from llmdeploy.engines.base import EngineStatus
from llmdeploy.engines.llamacpp.engine import LlamaCpp
from llmdeploy.hardware import Gpu, Hardware
from llmdeploy.models.catalog import lookup
from llmdeploy.units import GIB, MIB
from tests import machines
from tests.conftest import BUSY, ROOT, World

MACHINE = ["python", "platform", "cpu", "memory", "disk", "gpu"]
NAMES = [*MACHINE, "state", "config", "llamacpp", "ollama", "vllm", "port", "service"]


def lines_of(text: str) -> dict[str, tuple[str, str]]:
    """Parse the checks in doctor's text into name -> (status, detail)."""
    found = re.findall(r"^(ok|warn|fail) +(\w+) +(.*)$", text, re.MULTILINE)
    return {name: (status, detail) for status, name, detail in found}


# This machine


def test_this_machine(world: World) -> None:
    result = world.run("doctor")
    assert result.status == 0, result.text
    lines = lines_of(result.stdout)
    assert list(lines) == NAMES
    assert len(result.stdout.splitlines()) == len(NAMES)
    python = ".".join(map(str, sys.version_info[:3]))
    assert lines["python"] == ("ok", f"{python} at `{sys.executable}`".replace(str(ROOT), "[ROOT]"))
    assert lines["config"] == ("ok", "model `selftest` on llamacpp")
    assert lines["llamacpp"][1].startswith("xllamacpp ")
    assert lines["port"] == ("ok", "[PORT] is free")
    assert lines["service"] == ("ok", "nothing is served")
    warned = [
        name for name, (status, _) in lines.items() if status == "warn"
    ]  # a machine with little memory or disk space
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == warned
    assert not world.state.exists(), "looking changes nothing"


def test_the_document(world: World) -> None:
    result = world.run("doctor", "--json")
    document = json.loads(result.stdout)
    assert (result.status, result.stderr, document["ok"]) == (0, "", True)
    assert list(document) == ["ok", "checks", "hardware"]
    assert [check["name"] for check in document["checks"]] == NAMES
    assert all(list(check) == ["name", "status", "detail", "hint"] for check in document["checks"])
    assert document["hardware"].keys() == asdict(machines.load("h200")).keys()


def test_doctor_is_fast(world: World) -> None:
    began = time.monotonic()
    assert world.run("doctor").status == 0
    assert time.monotonic() - began < 3 * BUSY


def test_doctor_during_a_service(served: World) -> None:
    result = served.run("doctor")
    assert result.status == 0, result.text
    lines = lines_of(result.stdout)
    assert lines["port"] == ("ok", "[PORT] is this service's")
    assert lines["service"] == ("ok", "ready: `selftest` on llamacpp, process [PID]")


# Failures


def failed(world: World, name: str, **variables: str) -> tuple[str, str]:
    """Return detail and hint of the only failing check, after comparing text and JSON."""
    text, as_json = (world.run("doctor", *flags, **variables) for flags in ([], ["--json"]))
    document = json.loads(as_json.stdout)
    assert (text.status, as_json.status, document["ok"]) == (1, 1, False)
    (check,) = [check for check in document["checks"] if check["status"] == "fail"]
    assert check["name"] == name
    assert lines_of(text.stdout)[name][0] == "fail"
    assert f"hint: {name}: " in text.stderr
    return check["detail"], check["hint"]


def test_a_port_in_use(world: World) -> None:
    with socket.create_server(("127.0.0.1", world.port)):
        detail, hint = failed(world, "port")
    assert re.fullmatch(r"port \[PORT\] is in use by `.+` \(process \[PID\]\)", detail)
    assert re.fullmatch(r"serve on another: `llmdeploy serve --port \d+`", hint)


def test_a_broken_configuration_file(world: World) -> None:
    world.config.parent.mkdir(parents=True)
    world.config.write_text("prot = 1\n")
    detail, hint = failed(world, "config")
    assert detail == "`[FOLDER]/home/.config/llmdeploy/config.toml`, line 1: unknown key `prot`"
    assert "port" in hint


MISSING = "`{}` (set by `engines.llamacpp.server`) cannot be run: {}"


def test_missing_configured_program(world: World) -> None:
    detail, hint = failed(world, "llamacpp", LLMDEPLOY_ENGINES_LLAMACPP_SERVER="/no/llama-server")
    assert detail == MISSING.format("/no/llama-server", "No such file or directory")
    assert hint.startswith("install it again, or name another: `llmdeploy config set engines.llamacpp.server ")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (r"printf 'a\377b\n'; exit 1", "a�b"),
        ("exit 1", "no output"),
        ("echo hello", None),
    ],
)
def test_configured_program_that_does_not_answer(world: World, script: str, why: str | None) -> None:
    program = world.folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    began = time.monotonic()
    result = world.run("doctor", "--json", LLMDEPLOY_ENGINES_LLAMACPP_SERVER=str(program))
    assert time.monotonic() - began < 3 * BUSY
    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["status"] == "fail"]
    no_version = "`[FOLDER]/program` (set by `engines.llamacpp.server`) is not a `llama-server`: it prints no version"
    assert check["detail"] == (MISSING.format("[FOLDER]/program", why) if why else no_version)


def test_slow_program_is_used(world: World) -> None:
    """Check that a slow program, such as a GPU build on a cold disk, is not replaced by the embedded build."""
    program = world.folder / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    began = time.monotonic()
    result = world.run("doctor", LLMDEPLOY_ENGINES_LLAMACPP_SERVER=str(program))
    assert time.monotonic() - began < 3 * BUSY
    assert result.status == 0
    assert lines_of(result.stdout)["llamacpp"] == (
        "warn",
        "llama-server at `[FOLDER]/program`, set by `engines.llamacpp.server`, slow to report its version",
    )
    assert "hint: llamacpp: see why: `[FOLDER]/program --version`\n" in result.stderr


def test_a_service_that_failed_is_a_warning(world: World) -> None:
    result = world.run("serve", "selftest", LLMDEPLOY_ENGINES_LLAMACPP_SERVER="/bin/true")
    assert result.status == 1
    result = world.run("doctor")
    assert result.status == 0
    assert lines_of(result.stdout)["service"] == ("warn", "failed: `selftest` on llamacpp, process [PID]")
    assert result.stderr.endswith("hint: service: `llmdeploy status` tells why\n")


# Other machines

Look = Callable[[Hardware], dict[str, Check]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Run doctor's checks on a simulated machine."""

    def look(machine: Hardware) -> dict[str, Check]:
        monkeypatch.setattr(hardware, "detect", lambda: machine)
        report = doctor.examine()
        assert report.hardware is machine
        assert report.ok == all(check.status != "fail" for check in report.checks)
        return {check.name: check for check in report.checks}

    return look


NO_GPU = "no NVIDIA GPU: models run on the CPU"

GPU_LINES = {
    "1x4090": "0: NVIDIA GeForce RTX 4090, 23.5 GiB of 24.0 GiB free; driver 570.133.07, CUDA 12.8",
    "2x4090": "0: NVIDIA GeForce RTX 4090, 23.5 GiB of 24.0 GiB free; "
    "1: NVIDIA GeForce RTX 4090, 23.5 GiB of 24.0 GiB free; driver 570.133.07, CUDA 12.8",
    "a100-80gb": "0: NVIDIA A100-SXM4-80GB, 79.3 GiB of 80.0 GiB free; driver 535.183.01, CUDA 12.2",
    "apple-m3-max": "no NVIDIA GPU: models run on Apple's GPU",
    "cpu-only": NO_GPU,
    "gb10": "0: NVIDIA GB10, memory not reported; driver 580.95.05, CUDA 13.0",
    "h200": "0: NVIDIA H200, 139.8 GiB of 140.4 GiB free; driver 580.95.05, CUDA 13.0",
    "t4": "0: Tesla T4, 14.6 GiB of 15.0 GiB free; driver 550.54.15, CUDA 12.4",
}


@pytest.mark.parametrize("name", machines.NAMES)
def test_gpu_lines(look: Look, name: str) -> None:
    assert look(machines.load(name))["gpu"] == Check("gpu", "ok", GPU_LINES[name])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"gpu_problem": "the NVIDIA driver was updated while it ran; reboot the machine"},
            Check(
                "gpu",
                "fail",
                "the NVIDIA driver was updated while it ran; reboot the machine",
                "`nvidia-smi` shows what the driver says",
            ),
        ),
        (
            {"driver": None, "cuda": None},
            Check("gpu", "ok", "0: Tesla T4, 14.6 GiB of 15.0 GiB free; driver unknown, CUDA unknown"),
        ),
        (
            {"memory_available": 2 * GIB - 1},
            Check("memory", "warn", "2.0 GiB of 12.7 GiB free", "close programs that use it: `ps aux --sort=-rss`"),
        ),
        ({"memory_available": 2 * GIB}, Check("memory", "ok", "2.0 GiB of 12.7 GiB free")),
        (
            {"memory_available": 300 * MIB},
            Check("memory", "warn", "300 MiB of 12.7 GiB free", "close programs that use it: `ps aux --sort=-rss`"),
        ),
        (
            {"usable_cores": 1, "physical_cores": 64, "cpu": "Any"},
            Check("cpu", "ok", "Any, 1 of 64 cores usable"),
        ),
        ({"platform": "Windows 11 AMD64"}, Check("platform", "ok", "Windows 11 AMD64")),
    ],
)
def test_memory_and_disk_warnings(look: Look, change: dict[str, Any], expected: Check) -> None:
    assert look(replace(machines.load("t4"), **change))[expected.name] == expected


@pytest.mark.parametrize(
    ("free", "status", "detail"),
    [(2 * GIB, "ok", "2.0 GiB free for `{}`"), (5 * MIB, "warn", "5 MiB free for `{}`")],
)
def test_disk(look: Look, monkeypatch: pytest.MonkeyPatch, free: int, status: str, detail: str) -> None:
    monkeypatch.setattr(hardware, "disk_free", lambda folder: free)
    found = look(machines.load("t4"))["disk"]
    assert (found.status, found.detail) == (status, detail.format(paths.state_dir()))


def test_a_disk_that_does_not_answer(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_free(folder: Path) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hardware, "disk_free", disk_free)
    found = look(machines.load("t4"))["disk"]
    assert (found.status, found.detail) == (
        "warn",
        f"the free space of `{paths.state_dir()}` is unknown: Input/output error",
    )


def test_machine_without_information(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(LlamaCpp):
        def status(self) -> EngineStatus:
            return EngineStatus(False, None, "")

    monkeypatch.setattr(registry, "every", lambda settings: [Silent(settings)])
    found = look(Hardware("", "", "", 0, 0, 0, 0, (Gpu(0, "", None, None), Gpu(1, "", 0, None))))
    assert list(found) == [name for name in NAMES if name not in {"ollama", "vllm"}]
    assert found["memory"].detail == "0 B of 0 B free"
    assert found["gpu"].detail == "0: , memory not reported; 1: , memory not reported; driver unknown, CUDA unknown"
    assert found["llamacpp"] == Check("llamacpp", "fail", "")


# models


def test_models(world: World) -> None:
    result = world.run("models", "catalog")
    assert (result.status, result.stderr) == (
        0,
        "hint: `llmdeploy models show NAME` shows what each engine would load, from where, and how large it is\n",
    )
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert list(rows) == ["NAME", *lookup.names()]
    assert re.sub(" +", " ", rows["selftest"]) == "selftest text, image 8192 2 MiB yes"
    assert re.sub(" +", " ", rows["qwen2.5-vl:7b"]) == "qwen2.5-vl:7b text, image 128000 5.2 GiB no"


def test_models_as_json(world: World) -> None:
    result = world.run("models", "--json")
    assert (result.status, result.stderr) == (0, "")
    models = {model["name"]: model for model in json.loads(result.stdout)["models"]}
    assert list(models) == lookup.names()
    shipped = "[ROOT]/llmdeploy/selftest"
    own = [f"{shipped}/selftest-f16.gguf", f"{shipped}/mmproj-selftest-f16.gguf"]
    selftest, vl = models["selftest"], models["qwen2.5-vl:7b"]
    assert {name: engine["artefact"] for name, engine in selftest["engines"].items()} == {
        "llamacpp": own,
        "ollama": own,
        "vllm": [f"{shipped}/hf"],
    }
    assert selftest["engines"]["llamacpp"]["bytes"] == 1_726_752 + 607_136
    assert (vl["capabilities"], vl["context"], vl["license"]) == (["text", "image"], 128_000, "Apache-2.0")
    assert vl["engines"]["ollama"]["artefact"] == ["ollama://qwen2.5vl:7b"]


# A narrow terminal


def on_terminal(world: World, columns: int, *arguments: str) -> list[str]:
    """Run a command on a terminal of this width; return the lines of stdout."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in world.environment.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen(
        world.command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        cwd=world.work,
        env=environment,
    ):
        os.close(theirs)
        output = b""
        with suppress(OSError):  # Linux's error for the end of a terminal
            while piece := os.read(ours, 4096):
                output += piece
        os.close(ours)
    return output.decode().splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_models_on_a_narrow_terminal(world: World, columns: int) -> None:
    lines = on_terminal(world, columns, "models", "catalog")
    assert max(map(len, lines)) <= columns
    assert [name for name in lookup.names() if not any(line.startswith(f"{name} ") for line in lines)] == []
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_models_show_on_a_narrow_terminal(world: World, columns: int) -> None:
    lines = on_terminal(world, columns, "models", "show", "qwen2.5-vl:7b", "llama4:scout", "qwen3:8b-awq")
    # References are not wrapped, so that they can be copied.
    assert max(len(line) for line in lines if "://" not in line) <= columns
    assert "    hf://Qwen/Qwen2.5-VL-7B-Instruct" in lines
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_doctor_on_a_narrow_terminal(world: World, columns: int) -> None:
    lines = on_terminal(world, columns, "doctor")
    assert max(map(len, lines)) <= columns
    text = "".join("".join(lines).split())
    assert "…" not in text
    for path in (sys.executable, str(world.state)):
        assert f"`{''.join(path.split())}`" in text
