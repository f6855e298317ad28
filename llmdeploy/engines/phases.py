"""The phases of a start that are known by a piece of a log line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmdeploy.engines.base import Loaded, Step


@dataclass(frozen=True)
class Phase:
    name: str
    log_text: str


class Phases:
    """Reads the log of one server. Phases only go forward."""

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
