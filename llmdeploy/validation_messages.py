"""Validation errors of msgspec, taken apart.

msgspec reports what is wrong in one English sentence. This is the only module that reads it, and only for the place and
for the words to show; a sentence of an unknown form is shown as it is. What kind of error it is follows from its class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec import ValidationError

LONGEST = 1000
"""Characters of a sentence that are read."""

_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`$")
_TYPE = re.compile(r"Expected `(?P<expected>[^`]+)`(?P<limit>[^`]*?)(?:, got `(?P<got>\w+)`)?$")


@dataclass(frozen=True)
class Violation:
    """One rule that a document breaks."""

    path: str
    """The field, such as `messages[0].role`; empty for the whole document."""
    text: str
    """msgspec's sentence without the place."""
    is_missing: bool = False
    """Whether the field is required and absent."""
    expected: tuple[str, ...] = ()
    """The types that the field may have, in msgspec's words; empty if the type is not the problem."""
    limit: str = ""
    """The bound that a value of the right type breaks, such as ` >= 1`."""
    got: str = ""
    """The type that the value has; empty if the type is right."""


def violation(error: ValidationError) -> Violation:
    """Return the parts of the error."""
    text, path = shortened(str(error)), ""
    if place := _PLACE.search(text):
        text, path = text[: place.start()], place["path"]
    if missing := _MISSING.match(text):
        return Violation(f"{path}.{missing['name']}" if path else missing["name"], text, is_missing=True)
    if wrong := _TYPE.match(text):
        return Violation(path, text, False, tuple(wrong["expected"].split(" | ")), wrong["limit"], wrong["got"] or "")
    return Violation(path, text)


def shortened(text: str) -> str:
    """Return a text of at most LONGEST characters. msgspec repeats wrong values, of any length, before the place."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 3]}...{text[-half:]}"


def is_utf8(data: bytes) -> bool:
    """Return whether the bytes are UTF-8. The class of msgspec's error for others depends on its release."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
