"""llama.cpp: the embedded default. A `llama-server` of the user's own is preferred, else the xllamacpp wheel serves."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy.engines import failures
from llmdeploy.engines.base import Artefact, EngineStatus, OnProgress, Phase, ServerSpec
from llmdeploy.errors import EngineMissing, ModelNotFound
from llmdeploy.models import catalog, facts, hub
from llmdeploy.models.mmproj import find_mmproj
from llmdeploy.models.reference import HubFile, ModelRef
from llmdeploy.plan import MIB, PROMPT_CACHE_BYTES, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.config import Settings

VERSION_TIMEOUT = 1.5
"""Seconds a `llama-server --version` may take: a GPU build that looks for its devices needs some."""

PHASES = (
    Phase("loading the weights", "loading model"),
    Phase("allocating the KV cache", "initializing, n_slots"),
)
OTHER_PROGRAM_HINT = (
    "install it again, or name another: `llmdeploy config set engines.llamacpp.server /path/to/llama-server`"
)
INSTALL_HINT = "`pip install xllamacpp`, or put a `llama-server` on PATH"


def engine(settings: Settings) -> LlamaCpp:
    return LlamaCpp(settings.server)


@dataclass(frozen=True)
class Program:
    """What would run: the start of a command line, its version, and a sentence on both."""

    argv: tuple[str, ...]
    version: str | None
    detail: str
    on_gpu: bool
    """Whether it may use the GPUs of this machine: the wheel is a CPU build, but for Apple's."""


class LlamaCpp:
    name = "llamacpp"

    def __init__(self, configured_server: str | None = None) -> None:
        self._configured_server = configured_server

    def status(self) -> EngineStatus:
        if isinstance(self._program, Program):
            hint = "" if self._program.version else f"see why: `{shlex.join(self._program.argv)} --version`"
            return EngineStatus(True, self._program.version, self._program.detail, hint)
        return EngineStatus(False, None, self._program.message, self._program.hint)

    @property
    def on_gpu(self) -> bool:
        return isinstance(self._program, Program) and self._program.on_gpu

    def artefact(self, model: ModelRef, mmproj: Path | None = None) -> Artefact:
        found = _artefact(model)
        if mmproj is None:
            return found
        if not mmproj.is_file():
            raise ModelNotFound(f"there is no file `{mmproj}`", "give the vision projector's path with `--mmproj`")
        return replace(found, mmproj=mmproj)

    def present(self, artefact: Artefact) -> bool:
        return all(_here(file) for file in artefact.files)

    def pull(self, artefact: Artefact, on_progress: OnProgress) -> None:
        for file in artefact.files:
            if isinstance(file, HubFile) and not hub.cached(file):
                hub.download(file, on_progress)

    def facts(self, artefact: Artefact) -> facts.ModelFacts:
        weights, mmproj = _paths(artefact)
        return facts.read_gguf(weights, mmproj)

    def server(self, artefact: Artefact, plan: Plan, *, served_name: str, port: int) -> ServerSpec:
        if not isinstance(self._program, Program):
            raise self._program
        weights, mmproj = _paths(artefact)
        argv = [*self._program.argv, "--model", str(weights)]
        if mmproj:
            argv += ["--mmproj", str(mmproj)]
        # llama.cpp divides its context by its slots; the plan's is what one request may use.
        argv += ["--ctx-size", str(plan.context.value * plan.parallel.value), "--parallel", str(plan.parallel.value)]
        argv += ["--threads", str(plan.threads.value)]
        if plan.gpu_layers.value >= 0:
            argv += ["--n-gpu-layers", str(plan.gpu_layers.value)]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--alias", served_name, "--metrics"]
        return ServerSpec(
            argv=tuple(argv),
            base_url=f"http://127.0.0.1:{port}",
            served_name=served_name,
            health_path="/health",
            phases=PHASES,
            # By variable: builds from before the flag ignore it, where an unknown flag would end them.
            # Where gdb is installed, a failed assertion would bury its own words under a backtrace of seconds.
            env={"LLAMA_ARG_CACHE_RAM": str(PROMPT_CACHE_BYTES // MIB), "GGML_NO_BACKTRACE": "1"},
        )

    def diagnose(self, log: Sequence[str], exit_status: int) -> failures.Diagnosis | None:
        last_resort = (failures.LLAMACPP_ERROR,) if exit_status > 0 else ()
        return failures.diagnose((*failures.LLAMACPP, *last_resort), log, exit_status)

    @cached_property
    def _program(self) -> Program | EngineMissing:
        if self._configured_server:
            return _llama_server(self._configured_server, "set by `engines.llamacpp.server`")
        on_path = shutil.which("llama-server")
        if on_path is None or not os.path.isabs(on_path):  # Windows looks into the current folder too
            return _wheel("")
        program = _llama_server(on_path, "found on PATH")
        # A build that cannot start must not stand in the way of one that can.
        return program if isinstance(program, Program) else _wheel(f"; {program.message}")


def _llama_server(path: str, why: str) -> Program | EngineMissing:
    """The program at `path` if it starts: a build whose libraries are gone does not."""
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:  # a GPU build on a cold disk: slow is not broken
        return Program((path,), None, f"llama-server at `{path}`, {why}, slow to tell its version", on_gpu=True)
    except OSError as error:
        return EngineMissing(f"`{path}` ({why}) cannot be run: {error.strerror}", OTHER_PROGRAM_HINT)
    output = f"{done.stdout}\n{done.stderr}".strip().splitlines() or ["no output"]
    if done.returncode != 0:
        return EngineMissing(f"`{path}` ({why}) cannot be run: {output[-1]}", OTHER_PROGRAM_HINT)
    line = next((line for line in output if line.startswith("version:")), None)
    if line is None:
        return EngineMissing(f"`{path}` ({why}) is no `llama-server`: it tells no version", OTHER_PROGRAM_HINT)
    version = line.removeprefix("version:").strip()
    return Program((path,), version, f"llama-server {version} at `{path}`, {why}", on_gpu=True)


def _wheel(otherwise: str) -> Program | EngineMissing:
    if find_spec("xllamacpp") is None:
        return EngineMissing(f"no llama.cpp on this machine{otherwise}", INSTALL_HINT)
    from importlib.metadata import version

    installed = version("xllamacpp")
    # -P: the folder a user stands in must not lend its modules to the server.
    argv = (sys.executable, "-P", "-m", "llmdeploy.engines.llamacpp_server")
    return Program(argv, installed, f"xllamacpp {installed}, the embedded build{otherwise}", sys.platform == "darwin")


def _artefact(model: ModelRef) -> Artefact:
    if isinstance(model, Path):
        return Artefact(model, find_mmproj(model))
    if isinstance(model, HubFile):
        return Artefact(model)
    entry = catalog.find(model.name)
    return Artefact(entry.weights, entry.mmproj)


def _here(file: Path | HubFile) -> Path | None:
    return hub.cached(file) if isinstance(file, HubFile) else file


def _path(file: Path | HubFile) -> Path:
    path = _here(file)
    if path is None:
        raise ModelNotFound(f"`{file}` is not on this machine", "`llmdeploy serve` fetches it")
    return path


def _paths(artefact: Artefact) -> tuple[Path, Path | None]:
    return _path(artefact.weights), _path(artefact.mmproj) if artefact.mmproj else None
