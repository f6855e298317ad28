"""Rules that recognize a failure by the text that a program wrote, and the one matcher for all of them.

The tables of rules are data, in files named `failure_rules*.py` beside the engine, the gateway or the source of models
that they belong to. In each table the special rules stand before the general ones: the first match decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from llmdeploy.errors import LlmdeployError


@dataclass(frozen=True)
class Rule:
    """A failure that is recognized by a piece of text. Subclasses add what it means."""

    pattern: str
    """A regular expression that is searched in each text. Its named groups can fill the messages of the rule."""
    statuses: Collection[int] = field(default=(), kw_only=True)
    """The HTTP statuses that the rule applies to; all if it is empty."""


@dataclass(frozen=True)
class ErrorRule(Rule):
    """A failure that is reported as an error of llmdeploy."""

    error: type[LlmdeployError]
    cause: str
    fix: str


R = TypeVar("R", bound=Rule)

LONGEST = 4096
"""Characters of a text that the patterns read. A text may hold what a client or a repository wrote, of any length, and
some patterns take time with the square of it."""


def matches(
    rules: Iterable[R], texts: Collection[str], *, status: int | None = None, ignore_case: bool = False
) -> Iterator[tuple[R, re.Match[str]]]:
    """Yield each rule with each of its matches, in the order of the rules and then of the texts."""
    for rule in rules:
        if rule.statuses and status not in rule.statuses:
            continue
        pattern = _compiled(rule.pattern, ignore_case)
        for text in texts:
            if match := pattern.search(text, 0, LONGEST):
                yield rule, match


def first_match(
    rules: Iterable[R], text: str, *, status: int | None = None, ignore_case: bool = False
) -> tuple[R, re.Match[str]] | None:
    """Return the first rule that matches a text, with its match; None if no rule does."""
    return next(matches(rules, (text,), status=status, ignore_case=ignore_case), None)


@cache
def _compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE if ignore_case else re.RegexFlag(0))
