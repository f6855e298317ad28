"""The checks of the fields that an engine compiles before it generates: grammars, patterns, schemas. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from llmdeploy.gateway.errors import invalid
from llmdeploy.gateway.fields.engines import EngineFields, StructuredOutputs
from llmdeploy.gateway.fields.sampled import ResponseFormat
from llmdeploy.gateway.grammar import grammar_complaint, pattern_complaint
from llmdeploy.gateway.json_schema import schema_complaint

MOST_SCHEMA_BYTES = 512 * 1024
"""Bytes of all schemas of one request."""
MOST_SCHEMA_VALUES = 30_000
"""Values in all schemas of one request. Every comma counts, those in texts too."""
MOST_ARGUMENT_BYTES = 2**20
MOST_TEMPLATE_BYTES = 16 * 1024
MOST_DOCUMENT_BYTES = 256 * 1024
DEEPEST_VALUE = 64
MOST_BRACKETS = 500
"""Brackets in a text from which on its nesting is looked at."""

Named = tuple[str, Raw]


def check_engine_fields(asked: EngineFields) -> list[Named]:
    """Check the grammars and patterns of a request, and return its schemas with their places. Raises Refused."""
    _check_text("grammar", asked.grammar, grammar_complaint)
    _check_text("guided_grammar", asked.guided_grammar, grammar_complaint)
    _check_text("guided_regex", asked.guided_regex, pattern_complaint)
    _check_text("guided_whitespace_pattern", asked.guided_whitespace_pattern, pattern_complaint)
    schemas = [("guided_json", asked.guided_json), ("json_schema", asked.json_schema)]
    return [*given(schemas), *check_structured(asked.structured_outputs)]


def given(schemas: list[tuple[str, Raw | UnsetType]]) -> Iterator[Named]:
    """Yield the schemas that are there."""
    for place, schema in schemas:
        if isinstance(schema, Raw) and bytes(schema) != b"null":
            yield place, schema


def format_schemas(format: ResponseFormat | None) -> Iterator[Named]:
    """Yield the schemas of a response format."""
    if format is not None:
        inner = UNSET if format.json_schema is None else format.json_schema.schema
        yield from given([("response_format.json_schema.schema", inner), ("response_format.schema", format.schema)])


def check_structured(outputs: StructuredOutputs | None) -> Iterator[Named]:
    """Check vLLM's constraints of the output, and yield their schema with its place. Raises Refused."""
    if outputs is not None:
        place = "structured_outputs"
        _check_text(f"{place}.grammar", outputs.grammar, grammar_complaint)
        _check_text(f"{place}.regex", outputs.regex, pattern_complaint)
        _check_text(f"{place}.whitespace_pattern", outputs.whitespace_pattern, pattern_complaint)
        yield from given([(f"{place}.json", outputs.json)])


def _check_text(place: str, text: str | None, complaint_of: Callable[[str], str | None]) -> None:
    if text is not None and (complaint := complaint_of(text)):
        raise invalid(place, complaint, hint="simplify it")


def check_schemas(schemas: list[Named]) -> None:
    """Check the schemas of a request together. Raises Refused."""
    if not schemas:
        return
    contents = [bytes(schema) for _, schema in schemas]
    place = schemas[-1][0]
    if sum(map(len, contents)) > MOST_SCHEMA_BYTES:
        raise invalid(
            place, f"and the other schemas have more than {MOST_SCHEMA_BYTES // 1024} KiB", hint="simplify it"
        )
    if sum(it.count(b",") + it.count(b"{") + it.count(b"[") for it in contents) > MOST_SCHEMA_VALUES:
        raise invalid(place, f"and the other schemas have more than {MOST_SCHEMA_VALUES:,} values", hint="simplify it")
    for (place, _), content in zip(schemas, contents, strict=True):
        document = _value(place, content)
        if isinstance(document, str):  # vLLM takes a schema as a text, too
            document = _value(place, document.encode())
        if complaint := schema_complaint(document):
            raise invalid(place, complaint, hint="simplify the schema")


def check_value(place: str, value: Raw | UnsetType, most_bytes: int) -> None:
    """Check a field of any form that an engine does not compile. Raises Refused."""
    if not isinstance(value, Raw):
        return
    content = bytes(value)
    if len(content) > most_bytes:
        raise invalid(place, f"has more than {most_bytes // 1024} KiB", hint="leave out what is not needed")
    level = [_value(place, content)]
    for _ in range(DEEPEST_VALUE):
        level = [below for it in level for below in _inside(it)]
        if not level:
            return
    raise invalid(place, f"is nested deeper than {DEEPEST_VALUE} levels", hint="leave out what is not needed")


def check_arguments(place: str, text: str) -> None:
    """Check the arguments of a tool call, JSON as a text, which engines parse. Raises Refused."""
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        check_value(place, Raw(text.encode()), MOST_ARGUMENT_BYTES)


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _value(place: str, content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid(place, "is not valid JSON") from None
    except RecursionError:
        raise invalid(place, "is nested too deeply") from None
