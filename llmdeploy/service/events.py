"""Events: what people and scripts are told on the way to a server, and what the service tells itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from llmdeploy.errors import LlmdeployError
    from llmdeploy.plan import Plan
    from llmdeploy.service.running import RunningServer
    from llmdeploy.service.stages import Ready, Settled


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=lambda name: name.lower()):
    """An event that scripts see: `event` is its kind, the other fields are its own. Fields are only ever added."""


class Phase(Event, frozen=True):
    """The start has entered a phase."""

    phase: str


class Percent(Event, frozen=True):
    """The phase has come this far."""

    phase: str
    percent: int


class Wait(Event, frozen=True):
    """The phase goes on; `line` is the last line of the server's log."""

    phase: str
    line: str


class Note(Event, frozen=True):
    """A remark for the user."""

    text: str


class Fetching(Event, frozen=True):
    """A download begins; if `bytes` is not known, `reason` says why."""

    source: str
    bytes: int
    reason: str


class Download(Event, frozen=True):
    """`done` of the `total` bytes of a file have arrived."""

    file: str
    done: int
    total: int


class Planned(Event, frozen=True, tag="plan"):
    """The settings of the server, and the memory that it needs."""

    context: int
    parallel: int
    needed_bytes: int
    available_bytes: int | None
    settings: dict[str, Any]


class Loaded(Event, frozen=True):
    """The model is in memory: `detail` says where, `context` how many tokens a request can have."""

    detail: str
    context: int | None


class Room(Event, frozen=True):
    """Whether the new server starts beside the old one, and why."""

    beside: bool
    reason: str


class Step(Event, frozen=True):
    """A switch has entered a step: `check`, `prepare`, `prove`, `commit`, `finish`, or `undo`."""

    step: str


class Switched(Event, frozen=True):
    """The switch is done: this engine and model serve now."""

    engine: str
    model: str


class Stopping(Event, frozen=True):
    """The service was told to stop."""


Public = Phase | Percent | Wait | Note | Fetching | Download | Planned | Loaded | Room | Step | Switched | Stopping
"""Events that people and scripts are told."""
OnEvent = Callable[[Public], None]


def document(event: Public, elapsed: float | None = None) -> dict[str, Any]:
    """Return the event as JSON holds it; `elapsed`: seconds since the service, or the command, began."""
    content: dict[str, Any] = msgspec.to_builtins(event)
    return content if elapsed is None else {**content, "elapsed": round(elapsed, 1)}


def parse(content: dict[str, Any]) -> Public | None:
    """Return the event that `document` wrote; None for a kind that is not known here."""
    try:
        event: Public = msgspec.convert(content, Public)
    except msgspec.ValidationError:
        return None
    return event


@dataclass(frozen=True)
class PlanApplied:
    """The whole plan of the next server, with the reasons of its settings."""

    plan: Plan


@dataclass(frozen=True)
class Started:
    """A server runs, and is not ready yet."""

    settled: Settled
    server: RunningServer


@dataclass(frozen=True)
class Serving:
    """A server answers: for the first time, or again."""

    ready: Ready


@dataclass(frozen=True)
class Down:
    """The server does not answer any more; whoever keeps it may start it again."""

    error: LlmdeployError
    lives: bool = False
    """Whether its process still runs."""


Internal = PlanApplied | Started | Serving | Down
"""Events of the service itself: without a JSON form, so that they cannot be sent."""
OnAnyEvent = Callable[[Public | Internal], None]
