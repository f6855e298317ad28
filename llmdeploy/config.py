"""What the user wishes, and where each wish comes from.

Flag > `LLMDEPLOY_*` > `./llmdeploy.toml` > the user's `config.toml` > default. Each field of `Settings` is one key:
its name in the files, its variable, its flag, its check and its messages follow from that one entry.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from llmdeploy import paths
from llmdeploy.config_rules import (
    LARGEST,
    Absolute,
    Address,
    Arguments,
    Fraction,
    Host,
    Length,
    Personal,
    Positive,
    Program,
    Rule,
    Secret,
    Switch,
    Text,
    Whole,
)
from llmdeploy.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Words = tuple[str, ...]  # a dotted key, split

# Written out: importing the engines to ask them would load them all.
ENGINE_NAMES = ("llamacpp", "ollama", "vllm")


LARGEST_FILE = 2**20  # bytes: it ends a device that has no end


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
        return Value(getattr(self, _by_name()[name].attribute), self.sources.get(name, "default"))

    def source(self, name: str) -> str:
        return self.value(name).source

    def of_engine(self, engine: str) -> dict[str, Any]:
        """What is set of an engine's own settings, by the last words of their keys."""
        own = {key.words[-1]: getattr(self, key.attribute) for key in keys() if key.words[:2] == ("engines", engine)}
        return {name: value for name, value in own.items() if value is not None}


DEFAULT = Settings()


def keys() -> tuple[Key, ...]:
    return tuple(Key(attribute=it.name, default=it.default, **it.metadata) for it in fields(Settings) if it.metadata)


def key_named(name: str) -> Key:
    """Raises UsageError for a name that is no key."""
    if (found := _by_name().get(name)) is None:
        raise UsageError(f"unknown key `{plain(name)}`", _keys_hint(name))
    return found


def load(flags: Mapping[str, object] | None = None) -> Settings:
    """Every key's value and source. `flags` maps dotted keys to values; None is a flag that was not given."""
    user_file = paths.user_config_file()
    values = (
        _from_file(user_file, str(user_file), required=bool(os.environ.get("LLMDEPLOY_CONFIG")))
        | _from_file(paths.PROJECT_CONFIG, f"./{paths.PROJECT_CONFIG}")
        | _from_environment(os.environ)
        | _from_flags(flags or {})
    )
    found: dict[str, Any] = {_by_name()[name].attribute: value.value for name, value in values.items()}
    return Settings(**found, sources={name: value.source for name, value in values.items()})


def line_of(text: str, words: Words) -> int | None:
    """The line, from 1, where a key of a valid TOML text is set first; None if unsure.

    Text that is cut inside a value does not parse, so the statement that adds the key starts on the line after the
    longest start of the text that parses without it.
    """
    import tomllib

    lines = text.replace("\r\n", "\n").split("\n")
    complete = 0
    for count in range(1, min(len(lines), 500) + 1):  # each step parses all lines before it
        try:
            found: object = tomllib.loads("\n".join(lines[:count]))
        except (ValueError, RecursionError):
            continue
        for word in words:
            found = found.get(word) if isinstance(found, dict) else None
        if found is not None:
            return complete + 1
        complete = count
    return None


def _by_name() -> dict[str, Key]:
    return {key.name: key for key in keys()}


def _tables() -> set[Words]:
    return {key.words[:depth] for key in keys() for depth in range(1, len(key.words))}


def _from_file(file: Path, shown: str, *, required: bool = False) -> dict[str, Value]:
    text = read(file, shown)
    if text is None:
        if required:
            raise ConfigError(f"LLMDEPLOY_CONFIG names `{shown}`, which does not exist", "`unset LLMDEPLOY_CONFIG`")
        return {}
    values = {}
    for words, value in leaves(parse(text, shown)):
        check(words, value, text, shown)
        values[".".join(words)] = Value(value, shown)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    values = {}
    for key in keys():
        if text := environment.get(key.variable):
            try:
                values[key.name] = Value(key.read(text), key.variable)
            except ValueError:
                message = must_be(key.variable, key.rule, f"`{plain(text)}`")
                raise ConfigError(message, f"`unset {key.variable}`") from None
    return values


def _from_flags(flags: Mapping[str, object]) -> dict[str, Value]:
    values = {}
    for name, value in flags.items():
        key = _by_name()[name]
        if value is None:
            continue
        if not key.rule.accepts(value):
            raise UsageError(must_be(f"`{key.flag}`", key.rule, f"`{plain(str(value))}`"), help_hint(key))
        values[name] = Value(value, key.flag)
    return values


def leaves(table: Mapping[str, object], prefix: Words = ()) -> Iterator[tuple[Words, object]]:
    """Everything in a document that is not one of our tables: values, and what should not be there."""
    for word, value in table.items():
        words = (*prefix, word)
        if words in _tables() and isinstance(value, dict):
            yield from leaves(value, words)
        else:
            yield words, value


def check(words: Words, value: object, text: str, shown: str) -> None:
    """ConfigError, with the place in the file, unless a key is known and its value is right."""
    if problem := _problem(words, value, in_project=shown == f"./{paths.PROJECT_CONFIG}"):
        message, hint = problem
        line = line_of(text, words)
        raise ConfigError(f"`{shown}`" + (f", line {line}" if line else "") + f": {message}", hint)


def _problem(words: Words, value: object, *, in_project: bool = False) -> tuple[str, str] | None:
    """What is wrong with a value in a file, as message and hint."""
    name = _dotted(words)
    key = next((key for key in keys() if key.words == words), None)
    if words in _tables():
        return must_be(f"`{name}`", "a table", _toml(value)), f"write `[{name}]` on a line, and its keys below it"
    if key is None:
        return f"unknown key `{name}`", _keys_hint(name)
    if not key.rule.accepts(value):
        return must_be(f"`{name}`", key.rule, _toml(value)), help_hint(key)
    return not_in_project(key) if in_project else None


def not_in_project(key: Key) -> tuple[str, str] | None:
    """What is wrong with a key in the file of a folder, as message and hint."""
    if not isinstance(key.rule, Personal):
        return None
    message = f"`{key.name}` names {key.rule.names}, which the file of a folder may not"
    return (
        message,
        f"take the line out; `llmdeploy config set {key.name} {key.rule.example}` writes it to your own file",
    )


def permissions_hint(path: str | Path) -> str:
    import shlex

    return f"look at its owner and mode: `ls -ld {shlex.quote(str(path))}`"


def must_be(subject: str, rule: object, shown: str) -> str:
    return f"{subject} must be {rule}, not {shown}"


def help_hint(key: Key) -> str:
    return f"`{key.name}` is {key.help}"


def _keys_hint(name: str) -> str:
    from difflib import get_close_matches

    tables = set(map(_dotted, _tables()))
    full = {key.name: key.name for key in keys()} | {table: table for table in tables if name not in tables}
    # A key that was written outside its table is near too.
    meant = {key.words[-1]: key.name for key in keys()} | full
    near = [it for it in get_close_matches(name, meant, n=2) if meant[it] != name]
    listed = "`llmdeploy config show` lists the keys"
    return f"did you mean `{meant[near[0]]}`? ({listed})" if near else listed


def _dotted(words: Words) -> str:
    """A key as TOML writes it."""
    return ".".join(
        plain(word) if word.isascii() and word.replace("_", "a").replace("-", "a").isalnum() else f'"{plain(word)}"'
        for word in words
    )


def _toml(value: object) -> str:
    """A value as TOML writes it, short enough for a message."""
    match value:
        case dict():
            return "a table"
        case list():
            return "an array"
        case bool():
            return str(value).lower()
        case int():
            return plain(str(value) if abs(value) <= LARGEST else hex(value))  # Python refuses to write huge decimals
        case str():
            return f'"{plain(value)}"'
        case _:
            return str(value)


def plain(text: str) -> str:
    """Text from outside, safe on a terminal and short enough for a message."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in short)


def read(file: Path, shown: str) -> str | None:
    """The text of a file; None if there is no such file."""
    try:
        if file.is_fifo():  # opening it waits until somebody writes to it
            raise ConfigError(f"`{shown}` is a pipe", "move it away: a configuration file is TOML text")
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"`{shown}` cannot be read: {error.strerror}", permissions_hint(file)) from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"`{shown}` is larger than 1 MiB", "a configuration file is a few lines of TOML text")
    try:
        return content.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"`{shown}`, line {line}: not UTF-8 text", "save it as UTF-8 in an editor") from None


def parse(text: str, shown: str) -> dict[str, object]:
    import re
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"`{shown}` is nested too deeply", "the file needs no arrays inside arrays") from None
    except ValueError as error:  # also what Python says to an integer of thousands of digits
        reason, place = str(error), ""
        if match := re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", reason, re.DOTALL):
            reason, place = match[1], f", {match[2]}"
        message = f"`{shown}`{place}: {plain(reason[:1].lower() + reason[1:])}"
        raise ConfigError(message, "the file is TOML: `key = value` lines, texts in double quotes") from None


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
        key = _by_name().get(name)
        if key is not None and key.rule.accepts(value):
            found[key.attribute] = value
        elif name == "mmproj" and isinstance(value, str):
            found[name] = Path(value)
        elif name in {"allow_cloud", "trust_remote_code"} and isinstance(value, bool):
            found[name] = value
        else:
            raise ConfigError(f"`{plain(name)}` is not known here, or its value is wrong", "restart the service")
    return Settings(**found, sources=dict.fromkeys(content, "the switch"))
