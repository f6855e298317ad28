"""Whether a model fits, before its weights are here: by what their headers say where they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from llmdeploy.errors import DownloadFailed

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine
    from llmdeploy.hardware import Hardware
    from llmdeploy.plan import Plan, Wishes

A = TypeVar("A")


def foreseen(engine: Engine[A], artefact: A, machine: Hardware, wishes: Wishes) -> Plan | None:
    """The engine's plan for a model on a machine, fit or not; None where its source does not tell enough.

    Raises DoesNotFit for a context that it cannot have, ModelNotFound and ModelInvalid for what is no model for it.
    """
    try:
        facts = engine.facts(artefact)
    except DownloadFailed:  # a registry that only Ollama reaches
        return None
    return engine.plan(facts, machine, wishes)
