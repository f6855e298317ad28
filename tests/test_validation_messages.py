"""The parts of errors that the installed release of msgspec raises."""

from __future__ import annotations

from typing import Annotated

import pytest
from msgspec import Meta, Struct, ValidationError, json

from llmdeploy.validation_messages import Violation, is_utf8, violation


class Inner(Struct):
    name: str


class Outer(Struct, forbid_unknown_fields=True):
    count: Annotated[int, Meta(ge=1)] | None = None
    inner: list[Inner] = []
    names: dict[Annotated[str, Meta(pattern="^a")], int] = {}


@pytest.mark.parametrize(
    ("document", "path", "expected", "limit", "got"),
    [
        (b"[]", "", ("object",), "", "array"),
        (b'{"count": "x"}', "count", ("int", "null"), "", "str"),
        (b'{"count": 0}', "count", ("int",), " >= 1", ""),
        (b'{"inner": [{"name": 1}]}', "inner[0].name", ("str",), "", "int"),
        (b'{"names": {"b": 1}}', "names", ("str",), " matching regex '^a'", ""),
        (b'{"x": 1}', "", (), "", ""),
    ],
)
def test_a_violation_is_taken_apart(
    document: bytes, path: str, expected: tuple[str, ...], limit: str, got: str
) -> None:
    found = read(document)
    assert (found.path, found.expected, found.limit, found.got) == (path, expected, limit, got)
    assert not found.is_missing
    assert " - at " not in found.text


def test_a_missing_field_is_named_with_its_place() -> None:
    found = read(b'{"inner": [{}]}')
    assert (found.path, found.is_missing, found.expected) == ("inner[0].name", True, ())


def test_a_sentence_of_an_unknown_form_is_kept() -> None:
    assert violation(ValidationError("Something else")) == Violation("", "Something else")
    assert violation(ValidationError("Something else - at `$.a.b`")) == Violation("a.b", "Something else")


def test_utf8_is_recognized() -> None:
    assert is_utf8("\u4f60".encode())
    assert not is_utf8(b"\xff")
    assert not is_utf8(b"\xed\xa0\x80"), "a surrogate"


def read(document: bytes) -> Violation:
    with pytest.raises(ValidationError) as caught:
        json.decode(document, type=Outer)
    return violation(caught.value)
