"""The diagnosis of a server that ended: its log and its exit status -> the cause in one sentence, and the fix."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmdeploy.errors import Remedy
from llmdeploy.rules import LONGEST, Rule, matches
from llmdeploy.units import in_gib

OVER_BOUND = re.compile(r"watchdog: ended, memory (?P<taken>\d+) of (?P<bound>\d+) bytes$")
"""The line that `service/watchdog.py` writes before it ends a server that took too much memory."""


@dataclass(frozen=True)
class Exited:
    """The end of a server's process."""

    status: int
    """The exit status, negative for a signal."""


@dataclass(frozen=True)
class Unreachable:
    """The end of waiting for a server that somebody else runs."""

    url: str
    """The address of the server."""
    seconds: float
    """Seconds for which it has not answered."""


Exit = Exited | Unreachable
"""The end of a server."""


@dataclass(frozen=True)
class Diagnosis:
    """The cause of a server's end and the fix, as users read them; with a remedy if llmdeploy can apply the fix."""

    cause: str
    fix: str
    remedy: Remedy | None = None


@dataclass(frozen=True)
class FailureRule(Rule):
    """A failure of an engine's server. The pattern is searched in each line of its log."""

    cause: str
    fix: str
    remedy: Callable[[Mapping[str, str]], Remedy | None] | None = None
    """Computes a remedy from the groups; its value fills `{value}` in `fix`. A rule whose remedy is None is skipped."""
    log_pattern: str = ""
    """A second pattern that some line of the whole log must match too. Its groups fill `cause` and `fix` as well."""


def diagnose(table: Sequence[FailureRule], log: Sequence[str], exit_status: int) -> Diagnosis | None:
    """Return why a server ended, from its log and its exit status (negative: the number of a signal).

    None if no rule matches and the status gives no reason either.
    """
    return by_signal(exit_status) or first(table, log)


def over_bound(log: Sequence[str]) -> Diagnosis | None:
    """Return the diagnosis of a server that was ended because it took more memory than its bound; None otherwise."""
    last = next((line for line in reversed(log) if line.strip()), "")
    if (found := OVER_BOUND.match(last[:LONGEST])) is None:
        return None
    return Diagnosis(
        f"it took {in_gib(int(found['taken']))} of memory, and its bound is {in_gib(int(found['bound']))}",
        "a single request can do that; if it happens again, ask for less: `--context 2048 --parallel 1`",
    )


def by_signal(exit_status: int) -> Diagnosis | None:
    """Return the diagnosis for a signal that ended a server; None for other ends."""
    return _lacks_instructions(exit_status) or killed(exit_status)


def first(table: Sequence[FailureRule], lines: Sequence[str], log: Sequence[str] = ()) -> Diagnosis | None:
    """Return the diagnosis of the first rule that matches one of `lines`; `log` is all that the server wrote."""
    return next(filter(None, (_diagnosis(rule, match, log) for rule, match in matches(table, lines))), None)


def _diagnosis(rule: FailureRule, match: re.Match[str], log: Sequence[str]) -> Diagnosis | None:
    groups = match.groupdict("")
    if rule.log_pattern:
        found = next(filter(None, (re.search(rule.log_pattern, line[:LONGEST]) for line in log)), None)
        if found is None:
            return None
        groups |= found.groupdict("")
    remedy = rule.remedy(groups) if rule.remedy else None
    if remedy is not None:
        groups["value"] = str(remedy.value)
    elif rule.remedy:
        return None
    return Diagnosis(rule.cause.format(**groups), rule.fix.format(**groups), remedy)


def killed(exit_status: int) -> Diagnosis | None:
    """Return the diagnosis of a server that another program killed; None for other ends. The log does not matter."""
    if exit_status in {-9, -signal.SIGTERM}:  # Windows has no SIGKILL to name
        name = "SIGKILL" if exit_status == -9 else "SIGTERM"
        return Diagnosis(
            f"the server was killed from outside ({name})",
            "find out which program did; if memory ran out, `dmesg` shows it",
        )
    return None


def _lacks_instructions(exit_status: int) -> Diagnosis | None:
    if exit_status == -signal.SIGILL:
        return Diagnosis(
            "this processor lacks instructions that the engine's build uses (AVX2)",
            "put a `llama-server` that was built for this machine on PATH",
        )
    return None
