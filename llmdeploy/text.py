"""Text of messages: what comes from outside made safe to show, and phrases that several modules use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def plain(text: str) -> str:
    """Return text from outside, safe on a terminal and short enough for a message."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in short)


def must_be(subject: str, expected: object, shown: str) -> str:
    """Return the message for a value of the wrong kind."""
    return f"{subject} must be {expected}, not {shown}"


def permissions_hint(path: str | Path) -> str:
    """Return the hint for a file or folder that cannot be read or written."""
    import shlex

    return f"look at its owner and mode: `ls -ld {shlex.quote(str(path))}`"


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a message: each in backticks, with commas between them."""
    return ", ".join(f"`{name}`" for name in names)
