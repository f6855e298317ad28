"""The text of a configuration file: read with a limit, parsed with messages that name the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmdeploy.errors import ConfigError
from llmdeploy.text import permissions_hint, plain

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.config_types import Words

LARGEST_FILE = 2**20
"""Bytes of a configuration file that are read at most: a device may have no end."""
LONGEST_SEARCH = 500
"""Lines that `line_of` reads at most: each step parses all lines before it."""
MOST_PARSED = 2**20
"""Characters that `line_of` parses at most in all its steps."""
MOST_STEPS = 400_000
"""The most steps of parsing, as `loads` estimates them: some 10,000 lines of `key = value`."""


def read(file: Path, shown: str) -> str | None:
    """Return the text of a file; None if it does not exist. Raises ConfigError."""
    try:
        if file.is_fifo():  # opening it waits until somebody writes to it
            raise ConfigError(f"`{shown}` is a pipe", "move it away: a configuration file is TOML text")
        if _is_terminal(file):  # reading it waits until somebody types
            raise ConfigError(f"`{shown}` is a terminal", "move it away: a configuration file is TOML text")
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"`{shown}` cannot be read: {error.strerror}", permissions_hint(file)) from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"`{shown}` is larger than 1 MiB", "a configuration file is a few lines of TOML text")
    try:
        return content.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"`{shown}`, line {line}: not UTF-8 text", "save it as UTF-8 in an editor") from None


def _is_terminal(file: Path) -> bool:
    """Return whether a file is a terminal: a link to `/dev/stdin` may come with a repository."""
    import os

    if not file.is_char_device():
        return False
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def parse(text: str, shown: str) -> dict[str, object]:
    """Return the content of a TOML text from the file `shown`. Raises ConfigError."""
    import re

    try:
        return loads(text)
    except RecursionError:
        raise ConfigError(f"`{shown}` is nested too deeply", "the file needs no arrays inside arrays") from None
    except ValueError as error:  # also what Python says to an integer of thousands of digits
        reason, place = str(error), ""
        if match := re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", reason, re.DOTALL):
            reason, place = match[1], f", {match[2]}"
        message = f"`{shown}`{place}: {plain(reason[:1].lower() + reason[1:])}"
        raise ConfigError(message, "the file is TOML: `key = value` lines, texts in double quotes") from None


def loads(text: str) -> dict[str, object]:
    """Return the content of a TOML text. Raises ValueError and RecursionError.

    The parser is written in Python: it takes about 10 µs for each value, and for a key of many parts (`a.b.c`) time and
    memory in proportion to their square. So the steps are estimated first; dots in texts count too.
    """
    import tomllib

    steps = 4 * sum(map(text.count, "=,[{"))
    for number, line in enumerate(text.split("\n"), 1):
        steps += line.count(".") ** 2
        if steps > MOST_STEPS:
            raise ValueError(f"too many values, or keys with too many dots (at line {number}, column 1)")
    return tomllib.loads(text)


def line_of(text: str, words: Words) -> int | None:
    """Return the number of the line, from 1, that first sets a key of a valid TOML text; None if unsure.

    Text that is cut inside a value does not parse, so the statement that adds the key starts on the line after the
    longest start of the text that parses without it.
    """
    import tomllib

    lines = text.replace("\r\n", "\n").split("\n")
    complete = parsed = 0
    for count in range(1, min(len(lines), LONGEST_SEARCH) + 1):
        start = "\n".join(lines[:count])
        if (parsed := parsed + len(start)) > MOST_PARSED:
            return None
        try:
            found: object = tomllib.loads(start)
        except (ValueError, RecursionError):
            continue
        for word in words:
            found = found.get(word) if isinstance(found, dict) else None
        if found is not None:
            return complete + 1
        complete = count
    return None
