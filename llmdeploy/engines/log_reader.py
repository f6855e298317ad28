"""Readers of a server's log: the phases of its start, and the loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One step forward of a start."""

    phase: str
    percent: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as the engine reports it."""

    context: int | None
    """Tokens that one request may use; None if the engine does not report them."""
    detail: str
    """Size of the model and device that computes it, as a phrase."""


class LogReader(Protocol):
    """Reads the log of one server."""

    @property
    def is_doomed(self) -> bool:
        """Whether the server has reported that it will end: a part of it has died, and the rest takes its time."""
        ...

    def feed(self, line: str) -> Step | None:
        """Read a line; return None if it brings nothing new. Raises nothing: it is called in a thread."""
        ...

    def outcome(self) -> Loaded | None:
        """Return what the log has reported of the model in memory, once the server is ready."""
        ...


@dataclass(frozen=True)
class Phase:
    """A phase of a start, and a piece of the log line that begins it."""

    name: str
    log_text: str


class PhaseReader:
    """Finds phases by a piece of a log line each. Phases only go forward."""

    is_doomed = False

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._to_come = list(phases)

    def feed(self, line: str) -> Step | None:
        for at, phase in enumerate(self._to_come):
            if phase.log_text in line:
                del self._to_come[: at + 1]
                return Step(phase.name)
        return None

    def outcome(self) -> Loaded | None:
        return None
