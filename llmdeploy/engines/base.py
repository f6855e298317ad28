"""The seam between engines and the service: an engine describes, the service runs.

An engine is one package beside this file and one row in `config/settings.py`. It answers questions and returns data;
it starts no process, prints nothing and knows no command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llmdeploy.engines.environment import inherited
from llmdeploy.engines.log_reader import Loaded, LogReader, PhaseReader
from llmdeploy.engines.vitals import Vitals
from llmdeploy.errors import DownloadFailed

if TYPE_CHECKING:
    from llmdeploy.engines.advisories import Advisory
    from llmdeploy.engines.diagnosis import Diagnosis, Exit
    from llmdeploy.errors import Remedy
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.reference import ModelRef
    from llmdeploy.models.weights import Format, Weights
    from llmdeploy.plan import MemoryBound, Plan, Wishes

Request = Mapping[str, Any]
"""The body of a chat completions request, as OpenAI documents it."""


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can be used here, in words that `doctor` shows."""

    usable: bool
    version: str | None
    detail: str
    """The program that would run or runs, or why there is none."""
    hint: str = ""
    """Command that changes that; empty if there is nothing to do."""
    installed: bool = True
    """Whether any part of it is on this machine. If not, nothing is wrong: it is only not installed."""


@dataclass(frozen=True)
class ServerSpec:
    """One server, as data: how to start it and how to know that it serves."""

    argv: tuple[str, ...]
    """The command line; empty for a server that runs already, whoever started it."""
    base_url: str
    health_path: str
    served_name: str = ""
    """The model name that applications send; empty for a server that is started before its model is chosen."""
    model: str = ""
    """The engine's own name for the model; empty if it is the served name."""
    context: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    inherits: tuple[str, ...] = ()
    """Patterns of the user's variables that it gets beside the common ones: see `engines.environment`."""
    key: str = field(default="", repr=False)
    """The key that requests to the server need; empty if it asks for none."""
    is_remote: bool = False
    """Whether the model runs on another machine, where an answer may cost money."""
    key_variable: str = ""
    """The variable by which the server is given its key: a command line can be read by everyone."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """The engine's own configuration files, written before the start."""
    adapt: Callable[[Request], Request] | None = field(default=None, compare=False)
    """Rewrites a request in the engine's dialect and returns the same object if nothing changes; None without one."""
    memory: MemoryBound | None = None
    """The memory at which the server is ended; None if its plan does not tell what it may take of this machine's."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences on this start that the user is to read."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that a request to the server needs."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of the server; `ours`: the environment of this process."""
        key = {self.key_variable: self.key} if self.key else {}
        return {**inherited(ours, self.inherits), **self.env, **key}


class Daemon(Protocol):
    """A server that must answer before its engine knows any model, and that loads models on demand."""

    def spec(self, wishes: Wishes, port: int) -> ServerSpec:
        """Return the server to start on that port, or the one that runs (empty `argv`). Raises EngineMissing."""
        ...

    def attached(self, spec: ServerSpec) -> Engine:
        """Return the engine that works with the server of that spec, once it answers."""
        ...

    async def load(self, spec: ServerSpec, weights: Any) -> Loaded:
        """Load the model into the server's memory. May be cancelled."""
        ...

    async def has_model(self, spec: ServerSpec) -> bool:
        """Return whether the server still has the model under its served name. Raises LlmdeployError."""
        ...

    async def keep_loaded(self, spec: ServerSpec) -> None:
        """Load the model again if it was let go, unless another model has taken the memory."""
        ...

    def release(self, base_url: str, served_name: str) -> None:
        """Undo `load`: free the memory and remove what `load` has made. Does nothing without it. Raises TimedOut."""
        ...


class Engine(ABC):
    """A program that runs models. Every method is quick."""

    name: ClassVar[str]
    formats: ClassVar[tuple[Format, ...]]
    """The formats that it runs, the preferred one first."""
    side_by_side: ClassVar[bool] = True
    """Whether two servers of it can run at the same time; not if both share one daemon or one store."""
    closes_streams: ClassVar[bool] = False
    """Whether its server closes a connection after a chunked answer without having announced it."""
    unsupported: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    """Fields of a request, by route, that it would ignore or answer in a form of its own: they are refused."""
    vitals: ClassVar[Vitals] = Vitals()
    """The signs by which a server of it that works is told from one that hangs."""
    daemon: Daemon | None = None

    def advisories(self) -> tuple[Advisory, ...]:
        """Return the published vulnerabilities of its versions."""
        return ()

    def release(self, version: str) -> str:
        """Return the part of `version` that advisories compare."""
        return version

    @property
    def update_hint(self) -> str:
        """The command that installs a newer version."""
        return self.install_hint

    @property
    def install_hint(self) -> str:
        """Hint on how to get it; empty if `llmdeploy engines install` installs it."""
        return ""

    @abstractmethod
    def status(self) -> EngineStatus:
        """Return whether it is installed, which version, and whether it runs. Raises nothing, answers within 2 s."""

    @abstractmethod
    def resolve(self, model: ModelRef, *, reuse: bool = True, offline: bool = False) -> Weights:
        """Return the weights that this engine takes for that model. Raises ModelNotFound, ModelInvalid.

        `reuse`: take the same files of another program if the engine's own are not here. `offline`: ask no daemon, and
        refuse what its name alone shows to be of another format.
        """

    @abstractmethod
    def plan(self, facts: ModelFacts, hardware: Hardware, wishes: Wishes) -> Plan:
        """Return the settings for that model on that machine. Raises DoesNotFit."""

    @abstractmethod
    def server(self, weights: Any, plan: Plan, *, served_name: str, port: int, key: str = "") -> ServerSpec:
        """Return the server for weights of its own `resolve`, on a loopback port. Raises EngineMissing.

        `key`: the secret that requests to it are to need, if the engine can ask for one.
        """

    def log_reader(self) -> LogReader:
        """Return a reader for the log of the next start."""
        return PhaseReader(())

    @abstractmethod
    def diagnose(self, log: Sequence[str], exit: Exit) -> Diagnosis | None:
        """Return the cause of a server's end, found in its last lines; None if they show none."""

    def repaired(self, remedy: Remedy) -> Engine | None:
        """Return this engine with one setting changed; None if that changes nothing or is not its own to change."""
        return None


def plan_before_download(engine: Engine, weights: Weights, machine: Hardware, wishes: Wishes) -> Plan | None:
    """Return the plan for a model that may not be here yet; None if its source does not report its sizes.

    The plan may not fit. Raises DoesNotFit for a context that the model cannot have, ModelNotFound and ModelInvalid
    for a model that the engine cannot run.
    """
    try:
        facts = weights.facts()
    except DownloadFailed:  # a registry that only Ollama reaches
        return None
    return engine.plan(facts, machine, wishes)
