"""The settings and their keys.

Each field of `Settings` is one key: its name in the files, its variable, its flag, its check and its messages follow
from that one entry. A field that is a section holds the keys of one table of the files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from llmdeploy.config_types import Host, Origins, Positive, Rule, Secret, Text, Whole, setting
from llmdeploy.engines.llamacpp.settings import LlamaCppSettings
from llmdeploy.engines.ollama.settings import OllamaSettings
from llmdeploy.engines.vllm.settings import VllmSettings
from llmdeploy.errors import UsageError
from llmdeploy.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from llmdeploy.config_types import Words


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    name: str
    """The dotted name, as in the files."""
    section: str
    """The field of `Settings` that holds the key's table; empty for a key of no table."""
    attribute: str
    """The field of that section, or of `Settings`, that holds the value."""
    rule: Rule
    default: object
    help: str
    is_limit: bool = False
    """Whether the file of a folder may set no value above the default."""

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
        """Return the value that a text on the command line or in a variable stands for. Raises ValueError."""
        value = self.rule.read(text)
        if not self.rule.accepts(value):
            raise ValueError(text)
        return value

    def of(self, settings: Settings) -> Any:
        """Return the value of this key."""
        return getattr(getattr(settings, self.section) if self.section else settings, self.attribute)


@dataclass(frozen=True)
class Value:
    """The value of a key and the source that it comes from."""

    value: object
    source: str


@dataclass(frozen=True)
class Flags:
    """Choices of one command: flags alone, because no file may make them."""

    mmproj: Path | None = None
    """The vision projector of a GGUF file, if it is not beside it."""
    allow_cloud: bool = False
    """Whether a model may run in Ollama's cloud: no file may send prompts away."""
    trust_remote_code: bool = False
    """Whether the code that comes with this revision of the model may run; remembered for that revision."""
    pinned: bool = True
    """Whether `llmdeploy.lock` decides on revisions; False while the lock is being written."""


@dataclass(frozen=True)
class GatewaySettings:
    """The settings of the gateway."""

    max_body_mb: int = setting(Whole(1, 4096), 64, "the MiB that one request may hold, images included", is_limit=True)
    max_held: int = setting(
        Whole(0, 100_000), 200, "the requests that wait at once while no server is ready", is_limit=True
    )
    hold_timeout: float = setting(Positive(), 600, "the seconds that a request waits for a server", is_limit=True)
    stall_timeout: int = setting(
        Whole(1, 1_000_000),
        45,
        "the seconds without a sign of life after which a busy server is started again",
    )
    drain_timeout: float = setting(
        Positive(), 60, "the seconds that running requests have to end before they are cut off", is_limit=True
    )
    origins: Sequence[str] | None = setting(
        Origins(), None, "the origins of web pages and extensions that may use the address with the API key"
    )


@dataclass(frozen=True)
class EngineSettings:
    """The settings of each engine. The names of the fields are the names of the engines."""

    llamacpp: LlamaCppSettings = field(default_factory=LlamaCppSettings, metadata={"table": "engines.llamacpp"})
    ollama: OllamaSettings = field(default_factory=OllamaSettings, metadata={"table": "engines.ollama"})
    vllm: VllmSettings = field(default_factory=VllmSettings, metadata={"table": "engines.vllm"})


ENGINE_NAMES = tuple(it.name for it in fields(EngineSettings))


@dataclass(frozen=True)
class Settings(EngineSettings):
    """The value of every key, and the source that it comes from."""

    engine: str = setting(Text(*ENGINE_NAMES), "llamacpp", "the engine that runs the model")
    model: str = setting(Text(), "selftest", "the model to serve")
    hub: str = setting(
        Text("huggingface", "modelscope"),
        "huggingface",
        "the hub that models by name are fetched from",
        name="source",
    )
    host: str = setting(Host(), "127.0.0.1", "the address to listen on; one that others can reach needs an API key")
    port: int = setting(Whole(1, 65535), 11435, "the port of the address that applications use")
    api_key_file: str | None = setting(
        Secret(), None, "a file with the API key in its first line (none: LLMDEPLOY_API_KEY, or no key)"
    )
    context: int | None = setting(
        Whole(256, 100_000_000), None, "the tokens that one request can hold (none: the plan chooses)"
    )
    parallel: int | None = setting(Whole(1, 256), None, "the requests answered at once (none: the plan chooses)")
    timeout: float = setting(Positive(), 600, "the seconds to wait for a server's start", is_limit=True)
    gateway: GatewaySettings = field(default_factory=GatewaySettings, metadata={"table": "gateway"})
    flags: Flags = field(default_factory=Flags)
    sources: Mapping[str, str] = field(default_factory=dict)
    """The source of each key's value that is not the default, by the key's name."""

    def value(self, name: str) -> Value:
        """Return the value and the source of the key of that name."""
        return Value(by_name()[name].of(self), self.source(name))

    def source(self, name: str) -> str:
        """Return the source of a key's value."""
        return self.sources.get(name, "default")

    def of_engine(self, engine: str) -> dict[str, Any]:
        """Return the settings of an engine that have a value, by the names of the fields."""
        return {name: value for name, value in vars(getattr(self, engine)).items() if value is not None}


DEFAULT = Settings()


def with_values(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Return the settings with other values of some keys, by the keys' names."""
    for name, value in values.items():
        key = by_name()[name]
        change: dict[str, Any] = {key.attribute: value}
        if key.section:
            change = {key.section: replace(getattr(settings, key.section), **change)}
        settings = replace(settings, **change)
    return settings


@cache
def keys() -> tuple[Key, ...]:
    """Return all keys in the order in which `config show` lists them: those of the engines come last."""
    sections = sorted((it for it in fields(Settings) if "table" in it.metadata), key=lambda it: it.name in ENGINE_NAMES)
    holders = [(DEFAULT, "", ""), *((getattr(DEFAULT, it.name), it.metadata["table"], it.name) for it in sections)]
    return tuple(key for holder, table, section in holders for key in _keys_of(holder, table, section))


def _keys_of(holder: Any, table: str, section: str) -> Iterator[Key]:
    """Yield the keys of one table: the fields of a dataclass that have a rule."""
    for it in fields(holder):
        if "rule" in it.metadata:
            name = it.metadata.get("name", it.name)
            dotted_name = f"{table}.{name}" if table else name
            rule, help, is_limit = (it.metadata[part] for part in ("rule", "help", "limit"))
            yield Key(dotted_name, section, it.name, rule, it.default, help, is_limit)


@cache
def by_name() -> dict[str, Key]:
    """Return the keys by their names."""
    return {key.name: key for key in keys()}


@cache
def tables() -> set[Words]:
    """Return the names of the tables that the files may have."""
    return {key.words[:depth] for key in keys() for depth in range(1, len(key.words))}


def key_named(name: str) -> Key:
    """Return the key of that name. Raises UsageError, with the nearest names, if there is none."""
    if (found := by_name().get(name)) is None:
        raise UsageError(f"unknown key `{plain(name)}`", keys_hint(name))
    return found


def keys_hint(name: str) -> str:
    """Return the hint for an unknown key: the key that was probably meant."""
    from difflib import get_close_matches

    known = set(map(dotted, tables()))
    full = {key.name: key.name for key in keys()} | {table: table for table in known if name not in known}
    # A key that was written outside its table is near too.
    meant = {key.words[-1]: key.name for key in keys()} | full
    near = [it for it in get_close_matches(name, meant, n=2) if meant[it] != name]
    listed = "`llmdeploy config show` lists the keys"
    return f"did you mean `{meant[near[0]]}`? ({listed})" if near else listed


def dotted(words: Words) -> str:
    """Return a dotted key as TOML writes it."""
    return ".".join(
        plain(word) if word.isascii() and word.replace("_", "a").replace("-", "a").isalnum() else f'"{plain(word)}"'
        for word in words
    )
