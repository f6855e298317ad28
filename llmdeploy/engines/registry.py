"""How a model is run. A new engine is one module or package here and one name in `config.ENGINE_NAMES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from llmdeploy.config import ENGINE_NAMES

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.base import Engine
    from llmdeploy.engines.python_environment.program import PythonProgram


def get(name: str, settings: Settings) -> Engine[Any]:
    """The engine of that name (one of `ENGINE_NAMES`), with its own settings."""
    module = import_module(f"llmdeploy.engines.{name}.engine")
    return cast("Engine[Any]", module.engine(settings))


def every(settings: Settings) -> list[Engine[Any]]:
    return [get(name, settings) for name in ENGINE_NAMES]


def python_program(name: str) -> PythonProgram:
    """Return the Python program that an engine is, one that `engines install` can install."""
    return cast("PythonProgram", import_module(f"llmdeploy.engines.{name}.program").PROGRAM)
