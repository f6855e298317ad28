"""All engines by name. A new engine is one package here and one row in `config/settings.py`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from llmdeploy.config import DEFAULT, ENGINE_NAMES

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.base import Engine
    from llmdeploy.engines.python_environment.program import PythonProgram
    from llmdeploy.models.weights import Format


def get(name: str, settings: Settings) -> Engine:
    """Return the engine of that name (one of `ENGINE_NAMES`), with its settings."""
    module = import_module(f"llmdeploy.engines.{name}.engine")
    return cast("Engine", module.engine(settings))


def every(settings: Settings) -> list[Engine]:
    """Return all engines, in the order in which they are shown."""
    return [get(name, settings) for name in ENGINE_NAMES]


def running(*formats: Format) -> tuple[str, ...]:
    """Return the names of the engines that run any of these formats."""
    return tuple(engine.name for engine in every(DEFAULT) if not set(formats).isdisjoint(engine.formats))


def python_program(name: str) -> PythonProgram:
    """Return the Python program that an engine is, one that `engines install` can install."""
    return cast("PythonProgram", import_module(f"llmdeploy.engines.{name}.program").PROGRAM)
