"""Deploy a language model on Ollama, vLLM or llama.cpp behind one stable address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmdeploy.endpoint import Connection, connect

__version__ = "0.1.0"

__all__ = ["Connection", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    """Import `connect` and `Connection` when they are first used, so that `llmdeploy --version` stays fast."""
    if name not in {"Connection", "connect"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("llmdeploy.endpoint"), name)
