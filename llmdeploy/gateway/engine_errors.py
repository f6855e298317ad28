"""The status, the code and the hint for an error of an engine, the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

from llmdeploy.gateway.failure_rules import LOGS, RULES
from llmdeploy.gateway.target import Target
from llmdeploy.rules import first_match


@dataclass(frozen=True)
class Meaning:
    """The answer that a client gets for an error of an engine."""

    status: int
    code: str | None = None
    param: str | None = None
    hint: str = ""
    message: str = ""
    """Replaces the engine's own message; empty to keep that."""


def meaning_of(status: int, message: str, target: Target) -> Meaning:
    """Return what an engine's error means. One that no rule knows keeps its status and its message."""
    found = first_match(RULES, message, status=status)
    if found is None:
        return Meaning(status, hint="" if status < 500 else LOGS)
    rule, match = found
    text = rule.message.format(model=target.model, engine=target.engine, **match.groupdict(""))
    return Meaning(rule.status, rule.code, rule.param, rule.hint, text)
