"""vLLM: the engine for production on NVIDIA GPUs. It runs as a program in its own environment and is never imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmdeploy import paths
from llmdeploy.engines.base import Engine, EngineStatus, ServerSpec
from llmdeploy.engines.vitals import Vitals
from llmdeploy.errors import EngineMissing, ModelInvalid, ModelNotFound
from llmdeploy.models import hf_model
from llmdeploy.models.hf_model import HfModel
from llmdeploy.models.weights import HF, MLX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmdeploy.config import Settings
    from llmdeploy.engines.advisories import Advisory
    from llmdeploy.engines.diagnosis import Diagnosis, Exit
    from llmdeploy.engines.log_reader import LogReader
    from llmdeploy.engines.python_environment.contents import Environment
    from llmdeploy.engines.python_environment.find import Found
    from llmdeploy.errors import Remedy
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.reference import ModelRef
    from llmdeploy.plan import Plan, Wishes

NO_HOST = "nothing.is.fetched.invalid"
"""The only host that vLLM may fetch images from; it cannot exist (RFC 2606)."""

TOOLS = "--enable-auto-tool-choice"
"""Flag without which vLLM refuses tools, even for a model that knows them."""

LOCK = ("--middleware", "llmdeploy_key.RequireKey")
"""Arguments by which vLLM asks for its key on every route. They come last, so that nothing is in front of the lock."""

TRUST = "--trust-remote-code"
"""Flag of vLLM by which the user trusts every model, whatever comes with it."""


def engine(settings: Settings) -> Vllm:
    return Vllm(settings)


@dataclass(frozen=True)
class VllmModel(HfModel):
    """A model in Hugging Face form, as vLLM serves it."""

    calls_tools: bool = False
    """Whether the user's flags let it call tools."""

    def facts(self) -> ModelFacts:
        self.require_tokenizer()
        self.require_weights()
        facts = super().facts()
        if facts.weights_bytes == 0:
            raise ModelInvalid(f"the safetensors of `{self}` hold no weights", "fetch the model again")
        return replace(facts, capabilities=(*facts.capabilities, "tools")) if self.calls_tools else facts


class Vllm(Engine):
    name = "vllm"
    formats = (HF,)
    # Its API server answers while the engine behind it is frozen. An idle worker asks for work in a loop, which takes
    # 5 % of a core, and one that waits for a GPU takes all of it.
    vitals = Vitals(
        (
            "vllm:iteration_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:prompt_tokens_total",
            "vllm:kv_cache_usage_perc",
            "vllm:num_requests_running",
        ),
        front_cores=0.3,
        cores=0.15,
        gpu_cores=math.inf,
    )

    @property
    def update_hint(self) -> str:
        from llmdeploy.engines.vllm.program import PROGRAM

        return PROGRAM.install_command

    def __init__(self, settings: Settings, repairs: Mapping[str, Any] | None = None) -> None:
        """Take settings; `repairs` are those that a failed start asked for, which override the user's."""
        self._settings = settings
        self._repairs = repairs or {}

    def advisories(self) -> tuple[Advisory, ...]:
        from llmdeploy.engines.vllm.advisories import ADVISORIES

        return ADVISORIES

    def status(self) -> EngineStatus:
        return self._found.status

    @cached_property
    def _found(self) -> Found:
        from llmdeploy.engines.python_environment import find
        from llmdeploy.engines.vllm.program import PROGRAM

        return find.detect(PROGRAM, self._settings)

    @property
    def _device(self) -> str:
        found = self._found.environment
        return (found and found.device) or "cuda"

    def resolve(self, model: ModelRef, *, reuse: bool = True, offline: bool = False) -> HfModel:
        """Return the weights; `reuse` changes nothing: no other program keeps models in this form elsewhere."""
        tools = any(argument.replace("_", "-").startswith(TOOLS) for argument in self._settings.vllm.extra_args or ())
        found = hf_model.find(model, self._settings, offline=offline)
        if found.format == MLX:
            raise ModelNotFound(
                f"`{found}` is quantized for MLX, which vLLM does not load",
                "name the original model's repository, or one with AWQ, GPTQ or FP8 weights",
            )
        return VllmModel(found.location, tools)

    def plan(self, facts: ModelFacts, hardware: Hardware, wishes: Wishes) -> Plan:
        from llmdeploy.engines.vllm import fit

        return fit.plan(facts, hardware, wishes, self._wanted, self._device)

    @property
    def _wanted(self) -> dict[str, Any]:
        """vLLM's settings under its own names: the user's, changed by repairs."""
        from llmdeploy.engines.vllm import fit

        return {**fit.named(self._settings), **self._repairs}

    def server(self, weights: HfModel, plan: Plan, *, served_name: str, port: int, key: str = "") -> ServerSpec:
        from llmdeploy.engines.vllm import consent, environment, fit, flags

        found = self._found.environment
        if found is None or not self._found.status.usable:
            raise EngineMissing(self._found.status.detail, self._found.status.hint)
        ours = {"model": str(weights.folder), "served_model_name": served_name, "host": "127.0.0.1", "port": port}
        chosen = {"max_model_len": plan.context.value, **{name: it.value for name, it in plan.settings.items()}}
        content: dict[str, Any] = {**chosen, **self._wanted, **ours}
        extra = tuple(self._settings.vllm.extra_args or ())
        code = weights.remote_code(flags.value_of("code-revision", extra) or "main")
        trust = self._settings.flags.trust_remote_code
        runs = _trusts(extra) or consent.given(weights, found, trust=trust, code=code)
        if runs:
            content["trust_remote_code"] = True
        if "allowed-media-domains" in flags.of(found):  # without a list vLLM fetches images from every host
            content["allowed_media_domains"] = [NO_HOST]
        flags.check(content, extra, found)
        config = paths.state_dir() / "vllm.yaml"
        return ServerSpec(
            argv=(found.python, *_module(found), "--config", str(config), *extra, *(LOCK if key else ())),
            base_url=f"http://127.0.0.1:{port}",
            health_path="/health",
            served_name=served_name,
            memory=fit.bound(plan, self._wanted, extra, self._device),
            env=environment.variables(self._device, self._settings.timeout),
            inherits=environment.INHERITED,
            key=key,
            key_variable=environment.KEY,
            files={config: flags.yaml(content)},
            notes=consent.remark(weights, code, runs=runs),
        )

    def log_reader(self) -> LogReader:
        from llmdeploy.engines.vllm import log

        return log.Progress()

    def repaired(self, remedy: Remedy) -> Vllm | None:
        if self._repairs.get(remedy.key) == remedy.value:
            return None
        repaired = Vllm(self._settings, {**self._repairs, remedy.key: remedy.value})
        vars(repaired)["_found"] = self._found  # a new detection takes a second
        return repaired

    def diagnose(self, log: Sequence[str], exit: Exit) -> Diagnosis | None:
        from llmdeploy.engines.diagnosis import Exited
        from llmdeploy.engines.vllm import failures

        return failures.diagnose(log, exit.status) if isinstance(exit, Exited) else None


def _trusts(arguments: Sequence[str]) -> bool:
    return any(argument.replace("_", "-").startswith(TRUST) for argument in arguments)


def _module(found: Environment) -> tuple[str, ...]:
    """Return the module to run. The command `vllm serve` needs metadata of that name, which repackaged builds lack."""
    if found.contents is not None and found.contents.name == "vllm":
        return "-m", "vllm.entrypoints.cli.main", "serve"
    return "-m", "vllm.entrypoints.openai.api_server"
