"""The seam: an engine describes, the service runs.

An engine is one file in this package and one name in `config.ENGINE_NAMES`. It answers questions and returns data; it
starts nothing, prints nothing and knows no command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llmdeploy.engines.failures import Diagnosis
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.reference import HubFile, ModelRef
from llmdeploy.plan import Plan

OnProgress = Callable[[str, int, int], None]
"""Called while weights are fetched: file name, bytes so far, bytes in all."""


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can be used here, in words `doctor` can show."""

    installed: bool
    version: str | None
    detail: str
    """Which program would run, or why none can."""
    hint: str = ""


@dataclass(frozen=True)
class Artefact:
    """What an engine needs of a model: here or still at the Hub."""

    weights: Path | HubFile
    mmproj: Path | HubFile | None = None
    """The vision projector; None for a model that sees no images."""

    @property
    def files(self) -> tuple[Path | HubFile, ...]:
        return (self.weights, self.mmproj) if self.mmproj else (self.weights,)


@dataclass(frozen=True)
class Phase:
    """A step of a server's start, known by a piece of a log line."""

    name: str
    log_text: str


@dataclass(frozen=True)
class ServerSpec:
    """One server, as data: how to start it and how to know that it serves."""

    argv: tuple[str, ...]
    base_url: str
    served_name: str
    health_path: str
    phases: tuple[Phase, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """How a model is run. Every method is quick but `pull`."""

    name: str

    @property
    def on_gpu(self) -> bool:
        """Whether the memory of this machine's GPUs counts for the plan."""
        ...

    def status(self) -> EngineStatus:
        """Installed? Which version? Never raises, answers within 2 s."""
        ...

    def artefact(self, model: ModelRef, mmproj: Path | None = None) -> Artefact:
        """What this engine needs for that model. Raises ModelNotFound or ModelInvalid."""
        ...

    def present(self, artefact: Artefact) -> bool:
        """Whether all of it is on this machine. Touches no network."""
        ...

    def pull(self, artefact: Artefact, on_progress: OnProgress) -> None:
        """Fetch what is missing. Raises DownloadFailed."""
        ...

    def facts(self, artefact: Artefact) -> ModelFacts:
        """Sizes and shapes of an artefact that is present. Raises ModelInvalid."""
        ...

    def server(self, artefact: Artefact, plan: Plan, *, served_name: str, port: int) -> ServerSpec:
        """The server for that artefact and plan, on a loopback port. Starts nothing. Raises EngineMissing."""
        ...

    def diagnose(self, log: Sequence[str], exit_status: int) -> Diagnosis | None:
        """The cause of a server's end, out of its last lines; None when they tell nothing."""
        ...
