"""The bounds of grammars and regular expressions, which engines compile. Pure functions.

A few bytes can compile into rules beyond all memory (`a{99999999}`), or nest deeper than the stack of the engine.
"""

from __future__ import annotations

import re

MOST_REPEATS = 2000
"""Elements that a grammar or a pattern may have when its repetitions are written out. llama.cpp has the same bound."""
OPTIONAL = 10
"""Elements that an optional one counts for."""
DEEPEST = 64
MOST_BRACKETS = 2000
"""Opening brackets in a grammar. Brackets in literals count too, because each engine quotes in its own way."""
MOST_RULES = 2000
MOST_ALTERNATIVES = 500
MOST_OPTIONAL = 120
"""Optional elements, written out: for each token an engine tries every way to leave some of them out."""

_BRACES = re.compile(r"\{([^{}]{0,64})\}?")
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\]){0,256}\]|\{[^{}]{0,64}\}|.", re.DOTALL)
_COUNT = re.compile(r"\s*(\d{1,6})?\s*")
_NUMBER = re.compile(r"[-+]?\d")


def grammar_complaint(text: str) -> str | None:
    """Return why a grammar is refused, as words after its name; None if it is within the bounds."""
    if text.count("(") > MOST_BRACKETS or text.count("[") > MOST_BRACKETS:
        return f"has more than {MOST_BRACKETS} brackets"
    if text.count("::=") + text.count("\n") > MOST_RULES:
        return f"has more than {MOST_RULES} rules or lines"
    if text.count("|") > MOST_ALTERNATIVES:
        return f"has more than {MOST_ALTERNATIVES} alternatives"
    total, repeated = 0, 1
    for braces in _BRACES.finditer(text):
        counts = _counts(braces[1])
        if counts is None:
            return _broken(braces[0])
        total += counts
        if braces.start() and text[braces.start() - 1] == ")":
            repeated = max(repeated, counts)
    if total > MOST_REPEATS or (text.count("?") + text.count("*")) * repeated > MOST_OPTIONAL:
        return _too_many()
    return None


def pattern_complaint(text: str) -> str | None:
    """Return why a regular expression is refused, as words after its name; None if it is within the bounds."""
    for braces in _BRACES.finditer(text):
        if _counts(braces[1]) is None:
            return _broken(braces[0])
    sizes, last = [0], 0
    for token in _TOKEN.findall(text):
        if token == "(":
            sizes.append(0)
            if len(sizes) > DEEPEST:
                return f"is nested deeper than {DEEPEST} levels"
        elif token == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
            sizes[-1] += last
        elif token[0] == "{" and len(token) > 1:
            more = max(_counts(token[1:-1]) or 0, 1) - 1
            sizes[-1] += last * more
            last *= more + 1
        elif token in "?*":
            sizes[-1] += last * (OPTIONAL - 1)
            last *= OPTIONAL
        else:
            last = 1
            sizes[-1] += 1
        if sizes[-1] > MOST_REPEATS:
            return _too_many()
    return None


def _counts(words: str) -> int | None:
    """Return the largest number of repetitions in `{m,n}`, 0 for other braces; None if they are not valid."""
    parts = words.split(",")
    if not any(_NUMBER.match(part.lstrip()) for part in parts):
        return 0
    counts = [_COUNT.fullmatch(part) for part in parts]
    if len(parts) > 2 or not all(counts):
        return None
    numbers = [int(found[1]) for found in counts if found is not None and found[1]]
    return None if sorted(numbers) != numbers else numbers[-1]


def _broken(braces: str) -> str:
    return f"has a repetition that is not valid or too large: `{braces[:40]}`"


def _too_many() -> str:
    return f"has more than {MOST_REPEATS} elements when its repetitions are written out"
