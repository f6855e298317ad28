"""How a model is run. A new engine is one file here and one name in `config.ENGINE_NAMES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from llmdeploy.config import ENGINE_NAMES

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.base import Engine


def get(name: str, settings: Settings) -> Engine:
    """The engine of that name (one of `ENGINE_NAMES`), with its own settings."""
    module = import_module(f"llmdeploy.engines.{name}")
    return cast("Engine", module.engine(settings))


def every(settings: Settings) -> list[Engine]:
    return [get(name, settings) for name in ENGINE_NAMES]
