"""The settings of Ollama: the table `engines.ollama` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from llmdeploy.config_types import Address, Program, Store, Switch, setting


@dataclass(frozen=True)
class OllamaSettings:
    host: str | None = setting(Address(), None, "the address of Ollama (none: OLLAMA_HOST, or 127.0.0.1:11434)")
    models: str | None = setting(
        Store(), None, "the store of an Ollama that llmdeploy starts (none: OLLAMA_MODELS, or Ollama's own)"
    )
    program: str | None = setting(Program(), None, "the path of the `ollama` program (none: found)")
    spread: bool | None = setting(
        Switch(),
        None,
        "whether an Ollama that llmdeploy starts spreads a model over all GPUs (none: where one is too small)",
    )
