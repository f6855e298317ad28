"""A phase of a start, as people see it."""

from __future__ import annotations

from llmdeploy.cli.output import out

INDENT = " " * len("[  0.0 s] ")
"""The space before a remark that belongs to the phase above it."""


def say_phase(name: str, elapsed: float) -> None:
    """Show that a phase begins, `elapsed` seconds after the command began."""
    out.note(f"[{elapsed:5.1f} s] {name}")
