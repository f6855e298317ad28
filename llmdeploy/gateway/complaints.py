"""A parser's complaint about a body, as the application is told it. Pure."""

from __future__ import annotations

import re

_PLACE = r"(?: - at `\$\.?(?P<place>.*)`)"
_PLACE = r"(?: - at (?:`key` in )?`\$\.?(?P<place>.*)`)"
_MISSING = re.compile(rf"Object missing required field `(?P<name>[^`]+)`{_PLACE}?$")
_WRONG = re.compile(rf"Expected `(?P<expected>[^`]+)`(?P<limit>[^`]*?)(?:, got `(?P<got>\w+)`)?{_PLACE}?$")
_OTHER = re.compile(rf"(?P<message>.*){_PLACE}$")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def complaint(error: Exception, body: bytes) -> tuple[str | None, str]:
    """The field that is wrong, None where it is the whole body, and a sentence."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return None, "the body is no JSON: it is not UTF-8"
    if isinstance(error, RecursionError):
        return None, "the body is nested too deeply"
    if not body.strip():
        return None, "the body is empty: a JSON object is expected"
    if found := _MISSING.match(text):
        place = f"{found['place']}.{found['name']}" if found["place"] else found["name"]
        return place, f"`{place}` is missing"
    if found := _WRONG.match(text):
        expected = " or ".join(_WORDS.get(word, word) for word in found["expected"].split(" | "))
        got = f", not {_WORDS.get(found['got'], found['got'])}" if found["got"] else ""
        place = found["place"] or None
        return place, f"{f'`{place}`' if place else 'the body'} must be {expected}{found['limit']}{got}"
    if found := _OTHER.match(text):
        return found["place"] or None, f"`{found['place']}`: {found['message']}"
    return None, f"the body is no JSON: {text.removeprefix('JSON is malformed: ')}"
