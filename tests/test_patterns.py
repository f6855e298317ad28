"""No pattern that reads what an engine, a model or a repository says takes long, whatever it says."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from functools import cache
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import llmdeploy
from llmdeploy.rules import LONGEST, Rule, first_match

READERS = ("llmdeploy.gateway", "llmdeploy.engines", "llmdeploy.models.hub", "llmdeploy.http1")
"""The modules that read what others say. The rest read the user's words, and files that are bounded elsewhere."""
MOST_SECONDS = 0.1
"""Processor time for one pattern on one text, on a slow machine. A quadratic pattern of cheap steps needs 0.03 s."""
CATEGORIES = {
    code.CATEGORY_DIGIT: r"\d",
    code.CATEGORY_SPACE: r"\s",
    code.CATEGORY_WORD: r"\w",
    code.CATEGORY_NOT_DIGIT: r"\D",
    code.CATEGORY_NOT_SPACE: r"\S",
    code.CATEGORY_NOT_WORD: r"\W",
}


@cache
def patterns() -> tuple[tuple[str, re.Pattern[Any]], ...]:
    """Return the patterns of every module, with their places: compiled ones, and those of rules."""
    found: dict[tuple[str, str], re.Pattern[Any]] = {}
    for module in pkgutil.walk_packages(llmdeploy.__path__, "llmdeploy."):
        if module.name.startswith(READERS):
            for value in vars(importlib.import_module(module.name)).values():
                for pattern in _in(value):
                    found.setdefault((module.name, repr(pattern.pattern)), pattern)
    return tuple((f"{place} {words}", pattern) for (place, words), pattern in found.items())


def _in(value: Any) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, Rule):
        for words in (value.pattern, getattr(value, "log_pattern", "")):
            yield re.compile(words)
    elif isinstance(value, tuple):
        for item in value:
            yield from _in(item)


def example(items: Any, length: int = 1) -> str:
    """Return a text that the parsed pattern matches, with unbounded repeats of that length."""
    text = ""
    for kind, value in items:
        if kind is code.LITERAL:
            text += chr(value)
        elif kind is code.NOT_LITERAL:
            text += "x" if value != ord("x") else "y"
        elif kind is code.ANY:
            text += "x"
        elif kind is code.IN:
            text += _member(value)
        elif kind in (code.MAX_REPEAT, code.MIN_REPEAT, code.POSSESSIVE_REPEAT):
            least, most, inner = value
            text += example(inner, length) * (least if most is not code.MAXREPEAT else max(least, length))
        elif kind is code.SUBPATTERN:
            text += example(value[-1], length)
        elif kind is code.BRANCH:
            text += example(value[1][0], length)
        elif kind is code.ATOMIC_GROUP:
            text += example(value, length)
    return text


def _member(members: Any) -> str:
    """Return a character of a class."""
    one = re.compile(f"[{''.join(map(_shown, members))}]")
    return next(it for it in map(chr, [*range(ord("a"), 127), *range(ord("a")), *range(127, 0x3000)]) if one.match(it))


def _shown(member: Any) -> str:
    kind, value = member
    if kind is code.NEGATE:
        return "^"
    if kind is code.CATEGORY:
        return CATEGORIES[value]
    return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}" if kind is code.RANGE else re.escape(chr(value))


def hostile(pattern: re.Pattern[Any]) -> set[str]:
    """Return texts that make a backtracking pattern try many ways: its own beginnings, again and again."""
    words = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    items = list(parser.parse(words, pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else 0))
    edges = [0, *(at for at in range(1, len(items)) if not all(it[0] is code.LITERAL for it in items[at - 1 : at + 1]))]
    texts = set()
    for end in [*edges[1:], len(items)]:
        for start in (it for it in edges if it < end):
            for length in (1, 20, LONGEST):
                if unit := example(items[start:end], length):
                    texts.add((unit * (LONGEST // len(unit) + 1))[:LONGEST] + "\0")
                    texts.add(example(items[:start]) + (unit * (LONGEST // len(unit) + 1))[:LONGEST] + "\0")
    return texts


@pytest.mark.parametrize("part", range(8))
def test_no_pattern_takes_long_on_any_text(part: int) -> None:
    slow = []
    for place, pattern in patterns()[part::8]:
        for text in hostile(pattern):
            look = pattern.search if "rules" in place or ".gateway" in place else pattern.match
            started = time.thread_time()
            look(text if isinstance(pattern.pattern, str) else text.encode("latin-1"))
            if (seconds := time.thread_time() - started) > MOST_SECONDS:
                slow.append(f"{seconds:.2f} s: {place} on {text[:80]!r}")
                break
    assert not slow, "\n".join(slow)


def test_every_table_of_rules_is_among_them() -> None:
    places = " ".join(place for place, _ in patterns())
    for table in ("gateway", "engines.llamacpp", "engines.python_environment", "models.hub"):
        assert f"llmdeploy.{table}.failure_rules " in places
    assert len(patterns()) > 200


def test_rules_read_the_beginning_of_a_text() -> None:
    rule = Rule("needle")
    assert first_match([rule], "x" * (LONGEST - 6) + "needle")
    assert not first_match([rule], "x" * (LONGEST - 5) + "needle")
