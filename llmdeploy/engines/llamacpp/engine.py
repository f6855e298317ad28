"""llama.cpp: the embedded default. The user's `llama-server` is preferred; without one the xllamacpp wheel serves."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmdeploy.engines.base import Engine, EngineStatus, ServerSpec
from llmdeploy.engines.log_reader import Phase, PhaseReader
from llmdeploy.engines.vitals import Vitals
from llmdeploy.errors import EngineMissing
from llmdeploy.models import gguf
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import OllamaTag
from llmdeploy.models.weights import GGUF
from llmdeploy.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.config import Settings
    from llmdeploy.engines.advisories import Advisory
    from llmdeploy.engines.diagnosis import Diagnosis, Exit
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.reference import ModelRef
    from llmdeploy.plan import Plan, Wishes

VERSION_TIMEOUT = 1.5
"""Seconds that `llama-server --version` may take: a GPU build searches for its devices first."""

PROMPT_CACHE_BYTES = 512 * MIB
"""Size of llama.cpp's cache of earlier prompts; its own limit of 8 GiB would fill a laptop's memory over time."""

CHECKPOINTS = 8
"""Copies that each slot keeps of a sliding window or a recurrent state, of 50 to 400 MB in models of today.

llama.cpp keeps 32 by default, which is more memory than the bound of the server leaves for them.
"""

PHASES = (
    Phase("loading the weights", "loading model"),
    Phase("allocating the KV cache", "initializing, n_slots"),
)
PREFIX = "/llmdeploy"
"""The path before every route. llama.cpp leaves `/health` and its web page open to requests without the key, but only
where it knows them: below a prefix every route needs the key."""
PREFIX_BUILD = 6500
"""The build of `llama-server` from which on a prefix is asked for; it is a little older."""
OTHER_PROGRAM_HINT = (
    "install it again, or name another: `llmdeploy config set engines.llamacpp.server /path/to/llama-server`"
)
INSTALL_HINT = "`pip install xllamacpp`, or put a `llama-server` on PATH"


def engine(settings: Settings) -> LlamaCpp:
    return LlamaCpp(settings)


@dataclass(frozen=True)
class Program:
    """The program that would run: the first words of its command line, its version, and a sentence on both."""

    argv: tuple[str, ...]
    version: str | None
    detail: str
    on_gpu: bool
    """Whether it may use the GPUs of this machine. The wheel is a CPU build, except on macOS."""
    knows_prefix: bool = False
    """Whether its routes can be moved below `PREFIX`."""


class LlamaCpp(Engine):
    name = "llamacpp"
    formats = (GGUF,)
    closes_streams = True
    # It decodes a whole batch before it answers for its counters. One thread waits for a GPU in a loop; more compute.
    vitals = Vitals(
        ("llamacpp:n_decode_total", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"), gpu_cores=1.5
    )
    unsupported = MappingProxyType({"/v1/completions": ("best_of", "echo", "logprobs")})

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def install_hint(self) -> str:
        return f"it comes with llmdeploy: {INSTALL_HINT}"

    @property
    def update_hint(self) -> str:
        if isinstance(self._program, Program) and self._program.argv[0] == sys.executable:
            return "`pip install --upgrade xllamacpp`"
        return "a newer build: https://github.com/ggml-org/llama.cpp/releases"

    def release(self, version: str) -> str:
        """Return the number of the build, which is the end of the wheel's version: `2026.10.11549`."""
        return version.split()[0].rpartition(".")[2]

    def advisories(self) -> tuple[Advisory, ...]:
        from llmdeploy.engines.llamacpp.advisories import ADVISORIES

        return ADVISORIES

    def status(self) -> EngineStatus:
        if isinstance(self._program, Program):
            hint = "" if self._program.version else f"see why: `{shlex.join(self._program.argv)} --version`"
            return EngineStatus(True, self._program.version, self._program.detail, hint)
        configured = self._settings.llamacpp.server is not None
        return EngineStatus(False, None, self._program.message, self._program.hint, installed=configured)

    def resolve(self, model: ModelRef, *, reuse: bool = True, offline: bool = False) -> GgufModel:
        from llmdeploy.models import reuse as others

        mmproj, ollama = self._settings.flags.mmproj, self._settings.ollama.models
        if reuse and isinstance(model, OllamaTag) and (tagged := others.of_tag(model.name, ollama)):
            return tagged.model(mmproj, (str(model),))
        wanted = gguf.find(model, self._settings, offline=offline)
        if not reuse or wanted.is_present():
            return wanted
        found = others.of_files(wanted, others.tags(model), ollama)
        return found.model(mmproj, wanted.references()) if found else wanted

    def plan(self, facts: ModelFacts, hardware: Hardware, wishes: Wishes) -> Plan:
        from llmdeploy.plan import MemoryPart, Setting, compute_buffer, free_memory, make_plan

        threads, gpu_layers = self._settings.llamacpp.threads, self._settings.llamacpp.gpu_layers
        on_gpu = isinstance(self._program, Program) and self._program.on_gpu
        return make_plan(
            facts,
            wishes,
            free_memory(hardware, on_gpu=on_gpu and gpu_layers != 0),
            overhead=(compute_buffer(facts), MemoryPart("prompt cache", PROMPT_CACHE_BYTES, "its limit")),
            settings={
                "threads": Setting(hardware.usable_cores, "physical cores that this process may use")
                if threads is None
                else Setting(threads, "as asked for"),
                "gpu_layers": Setting(-1, "the engine offloads what fits")
                if gpu_layers is None
                else Setting(gpu_layers, "as asked for"),
            },
        )

    def server(self, weights: GgufModel, plan: Plan, *, served_name: str, port: int, key: str = "") -> ServerSpec:
        from llmdeploy.plan import memory_bound

        if not isinstance(self._program, Program):
            raise self._program
        file, mmproj = weights.paths()
        argv = [*self._program.argv, "--model", str(file)]
        if mmproj:
            argv += ["--mmproj", str(mmproj)]
        # llama.cpp divides its context among its slots; the plan's context is for one request.
        argv += ["--ctx-size", str(plan.context.value * plan.parallel.value), "--parallel", str(plan.parallel.value)]
        argv += ["--threads", str(plan.settings["threads"].value)]
        if (layers := plan.settings["gpu_layers"].value) >= 0:
            argv += ["--n-gpu-layers", str(layers)]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--alias", served_name, "--metrics"]
        prefix = PREFIX if key and self._program.knows_prefix else ""
        return ServerSpec(
            argv=tuple(argv),
            base_url=f"http://127.0.0.1:{port}{prefix}",
            health_path="/health",
            served_name=served_name,
            # As variables: older builds ignore an unknown variable, but exit on an unknown flag.
            # If gdb is installed, a failed assertion would print a backtrace of seconds after its message.
            memory=memory_bound(plan, on_gpu=self._program.on_gpu),
            env={
                "LLAMA_ARG_CACHE_RAM": str(PROMPT_CACHE_BYTES // MIB),
                "LLAMA_ARG_CTX_CHECKPOINTS": str(CHECKPOINTS),
                "GGML_NO_BACKTRACE": "1",
                **({"LLAMA_ARG_API_PREFIX": prefix} if prefix else {}),
            },
            key=key,
            key_variable="LLAMA_API_KEY",
        )

    def log_reader(self) -> PhaseReader:
        return PhaseReader(PHASES)

    def diagnose(self, log: Sequence[str], exit: Exit) -> Diagnosis | None:
        from llmdeploy.engines import diagnosis
        from llmdeploy.engines.llamacpp.failure_rules import ANY_ERROR, RULES

        if isinstance(exit, diagnosis.Unreachable):
            return None
        last_resort = (ANY_ERROR,) if exit.status > 0 else ()
        return diagnosis.diagnose((*RULES, *last_resort), log, exit.status)

    @cached_property
    def _program(self) -> Program | EngineMissing:
        if self._settings.llamacpp.server:
            return _llama_server(self._settings.llamacpp.server, "set by `engines.llamacpp.server`")
        on_path = shutil.which("llama-server")
        if on_path is None or not os.path.isabs(on_path):  # Windows looks into the current folder too
            return _wheel("")
        program = _llama_server(on_path, "found on PATH")
        # A broken build must not keep a working one from being used.
        return program if isinstance(program, Program) else _wheel(f"; {program.message}")


def _llama_server(path: str, why: str) -> Program | EngineMissing:
    """Return the program at `path` if it starts: a build whose libraries are missing does not."""
    import subprocess

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
        return Program((path,), None, f"llama-server at `{path}`, {why}, slow to report its version", on_gpu=True)
    except OSError as error:
        return EngineMissing(f"`{path}` ({why}) cannot be run: {error.strerror}", OTHER_PROGRAM_HINT)
    output = f"{done.stdout}\n{done.stderr}".strip().splitlines() or ["no output"]
    if done.returncode != 0:
        return EngineMissing(f"`{path}` ({why}) cannot be run: {output[-1]}", OTHER_PROGRAM_HINT)
    line = next((line for line in output if line.startswith("version:")), None)
    if line is None:
        return EngineMissing(f"`{path}` ({why}) is not a `llama-server`: it prints no version", OTHER_PROGRAM_HINT)
    version = line.removeprefix("version:").strip()
    detail = f"llama-server {version} at `{path}`, {why}"
    return Program((path,), version, detail, on_gpu=True, knows_prefix=_build(version) >= PREFIX_BUILD)


def _build(version: str) -> int:
    """Return the build number at the beginning of a version such as `6431 (abcdef0)`; 0 if there is none."""
    first = version.partition(" ")[0]
    return int(first) if first.isdecimal() and len(first) < 9 else 0


def _wheel(otherwise: str) -> Program | EngineMissing:
    if find_spec("xllamacpp") is None:
        return EngineMissing(f"no llama.cpp on this machine{otherwise}", INSTALL_HINT)
    from importlib.metadata import version

    installed = version("xllamacpp")
    # -P keeps the server from importing modules of the current folder.
    argv = (sys.executable, "-P", "-m", "llmdeploy.engines.llamacpp.server_program")
    return Program(
        argv, installed, f"xllamacpp {installed}, the embedded build{otherwise}", sys.platform == "darwin", True
    )
