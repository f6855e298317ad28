"""The values that the steps of a start return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine, ServerSpec
    from llmdeploy.engines.log_reader import Loaded
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.weights import Weights
    from llmdeploy.plan import Plan
    from llmdeploy.service.order import Order
    from llmdeploy.service.running import RunningServer


@dataclass(frozen=True)
class Prepared:
    """All that a start needs is on this machine: the engine, its daemon if it has one, and the weights."""

    version: str | None
    """The engine's version."""
    weights: Weights
    facts: ModelFacts


@dataclass(frozen=True)
class Settled:
    """The server of a start is decided: its plan, and how to start it."""

    prepared: Prepared
    plan: Plan
    machine: Hardware
    """The machine as it was before the start."""
    spec: ServerSpec


@dataclass(frozen=True)
class Ready:
    """A server that answers for its model, and all that is known of it."""

    order: Order
    engine: Engine
    """The engine with the settings that the server was started with."""
    prepared: Prepared
    plan: Plan
    spec: ServerSpec
    server: RunningServer
    loaded: Loaded | None
    """The size and place of the model in memory; None if the engine does not tell."""
    seconds: float
    """Seconds that the start took."""
    gpus: tuple[tuple[int, int], ...]
    """The memory that the start took of each GPU: (index, bytes)."""
