"""Checks of `llmdeploy doctor`. Each is a function that never raises; `examine` runs them in order."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, replace
from typing import Literal

from llmdeploy import config, hardware, paths
from llmdeploy.config import Settings
from llmdeploy.engines import advisories, registry
from llmdeploy.engines.base import Engine, EngineStatus
from llmdeploy.errors import LlmdeployError
from llmdeploy.hardware import Hardware
from llmdeploy.ownership import ELSEWHERE
from llmdeploy.service import state
from llmdeploy.service.ports import require_free_port
from llmdeploy.service.state import Situation
from llmdeploy.units import GIB, in_gib

Status = Literal["ok", "warn", "fail"]

LEAST_MEMORY = 2 * GIB
LEAST_DISK = 2 * GIB
"""Bytes below which `doctor` warns: even a small model does not fit, though the self-test model does."""


@dataclass(frozen=True)
class Check:
    """The result of one check, with a hint if it is not `ok`."""

    name: str
    status: Status
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Report:
    """The results of all checks, and the machine."""

    checks: tuple[Check, ...]
    hardware: Hardware

    @property
    def ok(self) -> bool:
        return all(check.status != "fail" for check in self.checks)


def examine() -> Report:
    """Run all checks on this machine. Never raises."""
    machine = hardware.detect()
    settings, config_check = _config()
    situation, state_check = _observed()
    checks = [
        *(check(machine) for check in (_python, _platform, _cpu, _memory, _disk, _gpus)),
        state_check,
        config_check,
        *_engines(settings),
        _port(settings, situation),
        _served(situation),
    ]
    return Report(tuple(checks), machine)


def _config() -> tuple[Settings, Check]:
    try:
        settings = config.load()
    except LlmdeployError as error:
        return Settings(), Check("config", "fail", error.message, error.hint)
    return settings, Check("config", "ok", f"model `{settings.model}` on {settings.engine}")


def _observed() -> tuple[Situation, Check]:
    try:
        return state.observe(), _state()
    except LlmdeployError as error:
        return Situation("stopped"), Check("state", "fail", error.message, error.hint)


def _python(machine: Hardware) -> Check:
    return Check("python", "ok", f"{platform.python_version()} at `{sys.executable}`")


def _platform(machine: Hardware) -> Check:
    return Check("platform", "ok", machine.platform)


def _cpu(machine: Hardware) -> Check:
    cores = f"{machine.usable_cores} of {machine.physical_cores} cores usable"
    return Check("cpu", "ok", f"{machine.cpu}, {cores}")


def _memory(machine: Hardware) -> Check:
    detail = f"{in_gib(machine.memory_available)} of {in_gib(machine.memory_total)} free"
    return _enough(
        "memory", machine.memory_available, LEAST_MEMORY, detail, "close programs that use it: `ps aux --sort=-rss`"
    )


def _disk(machine: Hardware) -> Check:
    folder = paths.state_dir()
    try:
        free = hardware.disk_free(folder)
    except OSError as error:
        return Check(
            "disk",
            "warn",
            f"the free space of `{folder}` is unknown: {error.strerror}",
            "`df -h` lists the file systems",
        )
    return _enough("disk", free, LEAST_DISK, f"{in_gib(free)} free for `{folder}`", "`df -h` shows what is full")


def _state() -> Check:
    """Check that a service could write its record."""
    folder = paths.state_dir()
    nearest = next((it for it in (folder, *folder.parents) if os.path.lexists(it)), folder)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Check("state", "ok", f"`{folder}`")
    return Check("state", "fail", f"`{nearest}` is not a folder that this user can write to", ELSEWHERE)


def _enough(name: str, amount: int, least: int, detail: str, hint: str) -> Check:
    return Check(name, "ok", detail) if amount >= least else Check(name, "warn", detail, hint)


def _gpus(machine: Hardware) -> Check:
    if machine.gpu_problem:
        return Check("gpu", "fail", machine.gpu_problem, "`nvidia-smi` shows what the driver says")
    if not machine.gpus:
        runs_on = "Apple's GPU" if machine.platform.startswith("macOS") and "arm64" in machine.platform else "the CPU"
        return Check("gpu", "ok", f"no NVIDIA GPU: models run on {runs_on}")
    cards = "; ".join(_card(gpu) for gpu in machine.gpus)
    return Check("gpu", "ok", f"{cards}; driver {machine.driver or 'unknown'}, CUDA {machine.cuda or 'unknown'}")


def _card(gpu: hardware.Gpu) -> str:
    if gpu.memory_total is None or gpu.memory_free is None:
        return f"{gpu.index}: {gpu.name}, memory not reported"
    return f"{gpu.index}: {gpu.name}, {in_gib(gpu.memory_free)} of {in_gib(gpu.memory_total)} free"


def _engines(settings: Settings) -> list[Check]:
    return [
        _safe(engine, found, _engine(engine.name, found, chosen=engine.name == settings.engine))
        for engine in registry.every(settings)
        for found in [engine.status()]
    ]


def _safe(engine: Engine, found: EngineStatus, check: Check) -> Check:
    """Return the check of an engine with a warning if its version has published vulnerabilities."""
    known = advisories.in_words(engine.advisories(), found.version and engine.release(found.version))
    if not known:
        return check
    hints = [check.hint, f"update it: {engine.update_hint}"]
    return replace(
        check,
        status="fail" if check.status == "fail" else "warn",
        detail=f"{check.detail}; {known}",
        hint="; ".join(hint for hint in hints if hint),
    )


def _engine(name: str, found: EngineStatus, *, chosen: bool) -> Check:
    """Check one engine. That an engine is missing is a failure only for the configured one."""
    if found.usable:
        return Check(name, "warn" if found.hint else "ok", found.detail, found.hint)
    if chosen:
        return Check(name, "fail", found.detail, found.hint)
    return Check(name, "warn" if found.installed else "ok", found.detail, found.hint if found.installed else "")


def _port(settings: Settings, situation: Situation) -> Check:
    record = situation.record
    serves = situation.state in {"starting", "ready"} or situation.leftover
    if serves and record and record.url.endswith(f":{settings.port}"):
        return Check("port", "ok", f"{settings.port} is this service's")
    try:
        require_free_port(settings.port, host=settings.host)
    except LlmdeployError as error:
        return Check("port", "fail", error.message, error.hint)
    return Check("port", "ok", f"{settings.port} is free")


def _served(situation: Situation) -> Check:
    record = situation.record
    if record is None:
        return Check("service", "ok", "nothing is served")
    detail = f"{situation.state}: `{record.served_name}` on {record.engine}, process {record.service.pid}"
    if situation.state in {"starting", "ready"}:
        if record.down:
            detail = f"{detail}; it does not serve at the moment: {record.down}"
            return Check("service", "warn", detail, "`llmdeploy logs` tells more")
        return Check("service", "ok", detail)
    if situation.leftover:
        return Check("service", "warn", f"{detail}; its server still runs", "`llmdeploy stop` ends it")
    return Check("service", "warn", detail, "`llmdeploy status` tells why")
