"""What the user wishes, and where each wish comes from.

Flag > `LLMDEPLOY_*` > `./llmdeploy.toml` > the user's `config.toml` > default. Each field of `Settings` is one key:
its name in the files, its variable, its flag, its check and its messages follow from that one entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from llmdeploy.config_types import (
    Absolute,
    Address,
    Arguments,
    Fraction,
    Host,
    Length,
    Positive,
    Program,
    Rule,
    Secret,
    Switch,
    Text,
    Whole,
)
from llmdeploy.errors import ConfigError, UsageError
from llmdeploy.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llmdeploy.config_types import Words

# Written out: importing the engines to ask them would load them all.
ENGINE_NAMES = ("llamacpp", "ollama", "vllm")


@dataclass(frozen=True)
class Key:
    name: str
    attribute: str
    rule: Rule
    default: object
    help: str

    @property
    def words(self) -> Words:
        return tuple(self.name.split("."))

    @property
    def variable(self) -> str:
        return "LLMDEPLOY_" + self.name.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.words[-1].replace("_", "-")

    def read(self, text: str) -> object:
        """The value that a text on the command line or in a variable stands for; ValueError if it stands for none."""
        value = self.rule.read(text)
        if not self.rule.accepts(value):
            raise ValueError(text)
        return value


@dataclass(frozen=True)
class Value:
    value: object
    source: str


def _key(name: str, rule: Rule, default: object, help: str) -> Any:
    return field(default=default, metadata={"name": name, "rule": rule, "help": help})


@dataclass(frozen=True)
class Settings:
    engine: str = _key("engine", Text(*ENGINE_NAMES), "llamacpp", "the engine that runs the model")
    model: str = _key("model", Text(), "selftest", "the model to serve")
    hub: str = _key(
        "source", Text("huggingface", "modelscope"), "huggingface", "the hub that models by name are fetched from"
    )
    host: str = _key(
        "host", Host(), "127.0.0.1", "the address to listen on; one that others can reach needs an API key"
    )
    port: int = _key("port", Whole(1, 65535), 11435, "the port of the address that applications use")
    api_key_file: str | None = _key(
        "api_key_file", Secret(), None, "a file with the API key in its first line (none: LLMDEPLOY_API_KEY, or no key)"
    )
    context: int | None = _key(
        "context", Whole(256, 100_000_000), None, "the tokens that one request can hold (none: the plan chooses)"
    )
    parallel: int | None = _key(
        "parallel", Whole(1, 256), None, "the requests answered at once (none: the plan chooses)"
    )
    timeout: float = _key("timeout", Positive(), 600, "the seconds to wait for a server's start")
    gateway_max_body_mb: int = _key(
        "gateway.max_body_mb", Whole(1, 4096), 64, "the MiB that one request may hold, images included"
    )
    gateway_max_held: int = _key(
        "gateway.max_held", Whole(0, 100_000), 200, "the requests that wait at once while no server is ready"
    )
    gateway_hold_timeout: float = _key(
        "gateway.hold_timeout", Positive(), 600, "the seconds that a request waits for a server"
    )
    gateway_drain_timeout: float = _key(
        "gateway.drain_timeout", Positive(), 60, "the seconds that running requests have to end before they are cut off"
    )
    threads: int | None = _key(
        "engines.llamacpp.threads", Whole(1, 1024), None, "the CPU threads of llama.cpp (none: the plan chooses)"
    )
    gpu_layers: int | None = _key(
        "engines.llamacpp.gpu_layers",
        Whole(-1, 9999),
        None,
        "the layers on the GPU, -1 for all that fit (none: the plan chooses)",
    )
    server: str | None = _key(
        "engines.llamacpp.server",
        Program(),
        None,
        "the path of a `llama-server` program (none: one on PATH, or the embedded one)",
    )
    ollama_host: str | None = _key(
        "engines.ollama.host", Address(), None, "the address of Ollama (none: OLLAMA_HOST, or 127.0.0.1:11434)"
    )
    ollama_models: str | None = _key(
        "engines.ollama.models",
        Absolute("folder"),
        None,
        "the store of an Ollama that llmdeploy starts (none: OLLAMA_MODELS, or Ollama's own)",
    )
    ollama_program: str | None = _key(
        "engines.ollama.program",
        Program(),
        None,
        "the path of the `ollama` program (none: found)",
    )
    ollama_spread: bool | None = _key(
        "engines.ollama.spread",
        Switch(),
        None,
        "whether an Ollama that llmdeploy starts spreads a model over all GPUs (none: where one is too small)",
    )
    vllm_python: str | None = _key(
        "engines.vllm.python",
        Program(),
        None,
        "the path of the Python that has vLLM (none: found)",
    )
    vllm_max_model_len: int | str | None = _key(
        "engines.vllm.max_model_len", Length(1), None, "the context of vLLM, where `context` names none"
    )
    vllm_gpu_memory_utilization: float | None = _key(
        "engines.vllm.gpu_memory_utilization",
        Fraction(),
        None,
        "the part of a GPU that vLLM takes (none: what is free)",
    )
    vllm_kv_cache_memory_bytes: str | None = _key(
        "engines.vllm.kv_cache_memory_bytes",
        Text(),
        None,
        "the size of vLLM's KV cache, such as `4G` (none: the rest)",
    )
    vllm_kv_cache_dtype: str | None = _key(
        "engines.vllm.kv_cache_dtype", Text(), None, "the type of vLLM's KV cache, such as `fp8` (none: the model's)"
    )
    vllm_tensor_parallel_size: int | None = _key(
        "engines.vllm.tensor_parallel_size",
        Whole(1, 1024),
        None,
        "the GPUs that share each layer (none: as needed)",
    )
    vllm_pipeline_parallel_size: int | None = _key(
        "engines.vllm.pipeline_parallel_size",
        Whole(1, 1024),
        None,
        "the groups of GPUs that share layers (none: 1)",
    )
    vllm_dtype: str | None = _key("engines.vllm.dtype", Text(), None, "the type vLLM computes in (none: the model's)")
    vllm_quantization: str | None = _key(
        "engines.vllm.quantization", Text(), None, "the quantization of the weights (none: the model's)"
    )
    vllm_max_num_seqs: int | None = _key(
        "engines.vllm.max_num_seqs", Whole(1), None, "the requests in one step of vLLM's (none: its own)"
    )
    vllm_limit_mm_per_prompt: str | None = _key(
        "engines.vllm.limit_mm_per_prompt", Text(), None, 'the images a request may hold, as JSON: `{"image": 4}`'
    )
    vllm_enforce_eager: bool | None = _key(
        "engines.vllm.enforce_eager", Switch(), None, "whether to start without compiling and graphs (none: no)"
    )
    vllm_extra_args: Sequence[str] | None = _key(
        "engines.vllm.extra_args", Arguments(), None, "arguments that `vllm serve` gets as they are"
    )
    mmproj: Path | None = None
    """The vision projector of a GGUF file, where it is not beside it."""
    allow_cloud: bool = False
    """Whether a model may run in Ollama's cloud. A flag alone: no file may send prompts away."""
    trust_remote_code: bool = False
    """Whether the code that comes with this revision of the model may run. A flag alone, and remembered for it."""
    pinned: bool = True
    """Whether `llmdeploy.lock` decides on revisions; not where it is written anew."""
    sources: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> Value:
        return Value(getattr(self, by_name()[name].attribute), self.sources.get(name, "default"))

    def source(self, name: str) -> str:
        return self.value(name).source

    def of_engine(self, engine: str) -> dict[str, Any]:
        """What is set of an engine's own settings, by the last words of their keys."""
        own = {key.words[-1]: getattr(self, key.attribute) for key in keys() if key.words[:2] == ("engines", engine)}
        return {name: value for name, value in own.items() if value is not None}


DEFAULT = Settings()


@cache
def keys() -> tuple[Key, ...]:
    return tuple(Key(attribute=it.name, default=it.default, **it.metadata) for it in fields(Settings) if it.metadata)


def key_named(name: str) -> Key:
    """Raises UsageError for a name that is no key."""
    if (found := by_name().get(name)) is None:
        raise UsageError(f"unknown key `{plain(name)}`", keys_hint(name))
    return found


@cache
def by_name() -> dict[str, Key]:
    return {key.name: key for key in keys()}


@cache
def tables() -> set[Words]:
    return {key.words[:depth] for key in keys() for depth in range(1, len(key.words))}


def keys_hint(name: str) -> str:
    from difflib import get_close_matches

    known = set(map(dotted, tables()))
    full = {key.name: key.name for key in keys()} | {table: table for table in known if name not in known}
    # A key that was written outside its table is near too.
    meant = {key.words[-1]: key.name for key in keys()} | full
    near = [it for it in get_close_matches(name, meant, n=2) if meant[it] != name]
    listed = "`llmdeploy config show` lists the keys"
    return f"did you mean `{meant[near[0]]}`? ({listed})" if near else listed


def dotted(words: Words) -> str:
    """A key as TOML writes it."""
    return ".".join(
        plain(word) if word.isascii() and word.replace("_", "a").replace("-", "a").isalnum() else f'"{plain(word)}"'
        for word in words
    )


def document(settings: Settings) -> dict[str, Any]:
    """What is not the default, as JSON holds it: keys by their names, flags that are no keys by theirs."""
    set_keys = {key.name: getattr(settings, key.attribute) for key in keys()}
    found = {key.name: set_keys[key.name] for key in keys() if set_keys[key.name] != key.default}
    flags: dict[str, Any] = {
        "mmproj": settings.mmproj and str(settings.mmproj),
        "allow_cloud": settings.allow_cloud,
        "trust_remote_code": settings.trust_remote_code,
    }
    return {**found, **{name: value for name, value in flags.items() if value}}


def from_document(content: Mapping[str, Any]) -> Settings:
    """The settings that `document` was made from. Raises ConfigError for what is none."""
    from pathlib import Path

    found: dict[str, Any] = {}
    for name, value in content.items():
        key = by_name().get(name)
        if key is not None and key.rule.accepts(value):
            found[key.attribute] = value
        elif name == "mmproj" and isinstance(value, str):
            found[name] = Path(value)
        elif name in {"allow_cloud", "trust_remote_code"} and isinstance(value, bool):
            found[name] = value
        else:
            raise ConfigError(f"`{plain(name)}` is not known here, or its value is wrong", "restart the service")
    return Settings(**found, sources=dict.fromkeys(content, "the switch"))
