"""The seam: an engine describes, the service runs.

An engine is one module (or package) beside this file and one name in `config.ENGINE_NAMES`. It answers questions and
returns data; it starts no process, prints nothing and knows no command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from llmdeploy.engines.diagnosis import Diagnosis, Exit
from llmdeploy.errors import Remedy
from llmdeploy.hardware import Hardware
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.reference import ModelRef
from llmdeploy.models.requirements import Requirements
from llmdeploy.models.source import OnProgress
from llmdeploy.plan import Plan, Wishes

A = TypeVar("A")
"""What an engine needs of a model, its artefact: a file, a tag. Only the engine that made one looks into it."""

Request = Mapping[str, Any]
"""The body of a chat completions request, as OpenAI documents it."""


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can be used here, in words `doctor` can show."""

    usable: bool
    version: str | None
    detail: str
    """Which program would run or runs, or why none can."""
    hint: str = ""
    """What to type about it, where there is anything to do."""
    installed: bool = True
    """False where there is none of it on this machine: then nothing is wrong, it is only not here."""


@dataclass(frozen=True)
class Step:
    """A start has come further."""

    phase: str
    percent: int | None = None


class Progress(Protocol):
    """Reads the log of one server."""

    @property
    def is_doomed(self) -> bool:
        """Whether the server has said that it will end: a part of it is gone, and it takes its time."""
        ...

    def feed(self, line: str) -> Step | None:
        """Take a line; None where it brings nothing new. Raises nothing: it is called in a thread."""
        ...

    def outcome(self) -> Loaded | None:
        """What the log has told of the model in memory, once the server is ready."""
        ...


@dataclass(frozen=True)
class ServerSpec:
    """One server, as data: how to start it and how to know that it serves."""

    argv: tuple[str, ...]
    """Empty: it runs already, whoever started it."""
    base_url: str
    health_path: str
    served_name: str = ""
    """The model name that applications send; empty for a server that is started before its model is chosen."""
    model: str = ""
    """What the engine calls the model, where that is not what it is served as."""
    context: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    """The backend's own configuration, written before the start."""


@dataclass(frozen=True)
class Loaded:
    """What came of loading a model, as the engine tells it."""

    context: int | None
    """Tokens one request may use; None where the engine does not tell."""
    detail: str
    """How large it is and where it computes, in words."""


class Engine(Protocol[A]):
    """How a model is run. Every method is quick but `pull` and `load`."""

    name: str
    side_by_side: bool
    """Whether two servers of it run at the same time; not where one daemon or one store is behind both."""
    lacks: Mapping[str, tuple[str, ...]]
    """Fields of a request, by route, that it would ignore or answer in a form of its own: they are refused."""

    def status(self) -> EngineStatus:
        """Installed? Which version? Running? Never raises, answers within 2 s."""
        ...

    def daemon(self, wishes: Wishes, port: int) -> ServerSpec | None:
        """The server that must answer before this engine knows any model; None where nothing must.

        One with an empty `argv` runs already.
        """
        ...

    def artefact(self, model: ModelRef, *, anywhere: bool = True) -> A:
        """What this engine needs for that model. Raises ModelNotFound or ModelInvalid.

        `anywhere`: where it is not here, the same files of another program or engine are taken (see `saved`).
        """
        ...

    def present(self, artefact: A) -> bool:
        """Whether all of it is where the engine finds it. Touches no network beyond the daemon."""
        ...

    def need(self, artefact: A, folder: Path | None = None) -> Requirements:
        """What it needs, file by file, and what of it is missing; asks the source, and goes without where all is here.

        `folder`: to be put there and not into the source's cache. Raises DownloadFailed, ModelNotFound.
        """
        ...

    def pull(self, artefact: A, on_progress: OnProgress, folder: Path | None = None) -> None:
        """Fetch what is missing, once the disk has room for all of it. Raises DownloadFailed."""
        ...

    def facts(self, artefact: A) -> ModelFacts:
        """Sizes and shapes, from its headers, here or at the source. Raises ModelInvalid, DownloadFailed."""
        ...

    def saved(self, artefact: A) -> str | None:
        """What spared a download, in words: files that another program or another engine has; None where nothing did.

        Such files are of the same model, in the same quantization, and are told before they are used.
        """
        ...

    def files(self, artefact: A) -> tuple[Path, ...]:
        """The files of an artefact that is present, where they are this machine's."""
        ...

    def revision(self, artefact: A) -> str | None:
        """The commit of the Hub, or the digest at Ollama, that an artefact is of; None for files of the user's own."""
        ...

    def plan(self, facts: ModelFacts, hardware: Hardware, wishes: Wishes) -> Plan:
        """The settings for that model on that machine. Raises DoesNotFit."""
        ...

    def server(self, artefact: A, plan: Plan, *, served_name: str, port: int) -> ServerSpec:
        """The server for that artefact and plan, on a loopback port. Starts nothing. Raises EngineMissing."""
        ...

    def progress(self) -> Progress:
        """Of the next start: who reads its log."""
        ...

    def repaired(self, remedy: Remedy) -> Engine[A] | None:
        """This engine with one setting changed; None where that changes nothing, or is not its own to change."""
        ...

    async def load(self, spec: ServerSpec) -> Loaded | None:
        """Have a server that answers take its model; None where it did so in its start. May be cancelled."""
        ...

    async def keep(self, spec: ServerSpec) -> None:
        """Called from time to time while it serves: load again what was let go, unless something else took the room."""
        ...

    def release(self, base_url: str, served_name: str) -> None:
        """Undo `load`: the memory is free and nothing of ours is left there. Raises TimedOut; fine when nothing is."""
        ...

    @property
    def adapt(self) -> Callable[[Request], Request] | None:
        """A chat or completion request in this engine's dialect, the same object where it is; None without one."""
        ...

    def diagnose(self, log: Sequence[str], exit: Exit) -> Diagnosis | None:
        """The cause of a server's end, out of its last lines; None when they tell nothing."""
        ...
