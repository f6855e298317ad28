"""Filters of servers' output: what it quotes of a request does not reach the log."""

from __future__ import annotations

import re
from collections.abc import Callable

LogFilter = Callable[[str], str | None]
"""Returns the line to write for a line of the server; None for none. It may keep a state, and is called in a thread."""

REMOVED = "[a client's text]"
_BEGINNING = 4096
"""Length of a line's beginning that patterns read."""
_GRAMMAR = re.compile(r"error parsing grammar:|failed to parse grammar:|error parsing (?:JSON )?schema:")
"""The beginning of a message that ends with a whole grammar, on lines of its own."""
_LOGGED = re.compile(r"\d[\d.]* [A-Z] |(?:srv|slot|que|res|main|llama|ggml|common|time|watchdog)\b|\[GIN\]")
"""The beginning of a line by llama.cpp's or Ollama's logger, which no grammar goes beyond."""
_QUOTING = re.compile(r"got exception:|input_value=|Invalid (?:tool_choice|grammar):|what\(\):\s+\[json\.exception")
"""The words before a text of a client on the same line."""


def no_client_texts() -> LogFilter:
    """Return a filter for the output of one server."""
    in_grammar = False

    def filtered(line: str) -> str | None:
        nonlocal in_grammar
        beginning = line[:_BEGINNING]
        if found := _GRAMMAR.search(beginning):
            in_grammar = True
            return f"{line[: found.end()]} {REMOVED}"
        if in_grammar and not _LOGGED.match(beginning):
            return None
        in_grammar = False
        if found := _QUOTING.search(beginning):
            return f"{line[: found.end()]} {REMOVED}"
        return line

    return filtered
