"""The bounds of JSON schemas, which engines compile into grammars. Pure functions.

Each object is checked as a schema, those in `default` or `properties` too: a `$ref` can point to any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from llmdeploy.gateway.grammar import pattern_complaint

DEEPEST = 64
"""Levels of objects and arrays. vLLM has the same bound."""
MOST_VALUES = 20_000
MOST_CHOICES = 1000
"""Values of all `enum`. The work of llama.cpp grows with their square."""
MOST_PROPERTIES = 256
"""Properties of one object. The work of llama.cpp grows with the cube of those that are optional."""
MOST_REPEATS = 10_000
"""The largest `maxLength`, `maxItems` and the like, and the sum of all."""
MOST_STEPS = 2000
"""Levels of all objects that a `$ref` points to: engines follow references on their stack."""
MOST_ALTERNATIVES = 5000
"""Schemas that one schema stands for when `$ref`, `allOf`, `anyOf` and `oneOf` are written out."""
LARGEST = 2**53
"""The largest `minimum`, `maximum` and the like; engines compute with them."""

_REPEATS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains")
_PAIRS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
)
_RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_GROUPS = ("allOf", "anyOf", "oneOf")

Schema = dict[str, Any]


def schema_complaint(document: Any) -> str | None:
    """Return why a schema is refused, as words after its name; None if it is within the bounds."""
    if not isinstance(document, dict):
        return "must be an object"
    containers = _containers(document)
    if isinstance(containers, str):
        return containers
    found = [it for it in containers if isinstance(it, dict)]
    repeats = choices = 0
    for schema in found:
        if complaint := _keyword_complaint(schema):
            return complaint
        choices += len(schema["enum"]) if isinstance(schema.get("enum"), list) else 0
        repeats += sum(int(schema[name]) for name in _REPEATS if _is_number(schema.get(name)))
    if choices > MOST_CHOICES:
        return f"has more than {MOST_CHOICES:,} values to choose from"
    if repeats > MOST_REPEATS:
        return f"has lengths and numbers of items that sum up to more than {MOST_REPEATS:,}"
    targets = _targets(document, found)
    if isinstance(targets, str):
        return targets
    heights = _heights(containers)
    if sum(heights[it] for it in {id(target) for target in targets.values()}) > MOST_STEPS:
        return "has too many references"
    return _loop_complaint(found, targets)


def _containers(document: Any) -> list[Any] | str:
    """Return all objects and arrays of the document, the outer ones first, or why it is refused."""
    found: list[Any] = []
    level, values = [document], 0
    for _ in range(DEEPEST):
        found += level
        values += sum(map(len, level))
        if values > MOST_VALUES:
            return f"has more than {MOST_VALUES:,} values"
        level = [below for value in level for below in _children(value)]
        if not level:
            return found
    return f"is nested deeper than {DEEPEST} levels"


def _children(value: Any) -> Iterator[Any]:
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield item


def _heights(containers: list[Any]) -> dict[int, int]:
    """Return the levels that each object and array has, by its id."""
    heights: dict[int, int] = {}
    for value in reversed(containers):
        heights[id(value)] = 1 + max((heights[id(below)] for below in _children(value)), default=0)
    return heights


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _keyword_complaint(schema: Schema) -> str | None:
    """Return why one object is refused."""
    for name in _REPEATS:
        if _is_number(value := schema.get(name)) and not 0 <= value <= MOST_REPEATS:
            return f"has a `{name}` that is not from 0 to {MOST_REPEATS:,}"
    for name in _RANGES:
        if _is_number(value := schema.get(name)) and not -LARGEST <= value <= LARGEST:
            return f"has a `{name}` beyond 2^53"
    for least, most in _PAIRS:
        one, other = schema.get(least), schema.get(most)
        if _is_number(one) and _is_number(other) and one > other:
            return f"has a `{least}` above its `{most}`"
    if len(schema) > MOST_PROPERTIES:
        return f"has an object with more than {MOST_PROPERTIES} names"
    patterns = [schema.get("pattern"), *(schema.get("patternProperties") or ())]
    for pattern in patterns:
        if isinstance(pattern, str) and (complaint := pattern_complaint(pattern)):
            return f"has a pattern that {complaint}"
    return None


def _targets(document: Any, found: list[Schema]) -> dict[str, Schema] | str:
    """Return the objects that each `$ref` points to, or why the schema is refused."""
    targets: dict[str, Schema] = {}
    for schema in found:
        name = schema.get("$ref")
        if isinstance(name, str) and name not in targets:
            if not name.startswith("#"):
                return f"has a `$ref` to another document: `{name[:80]}`"
            target = _target(document, name)
            if isinstance(target, dict):
                targets[name] = target
    return targets


def _target(document: Any, name: str) -> Any:
    """Return the value that a `$ref` points to; None if there is none."""
    value = document
    for step in name.removeprefix("#").split("/")[1:]:
        if isinstance(value, list):
            value = value[int(step)] if step.isdecimal() and len(step) < 6 and int(step) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(step, value.get(step.replace("~1", "/").replace("~0", "~")))
        else:
            return None
    return value


def _loop_complaint(found: list[Schema], targets: dict[str, Schema]) -> str | None:
    """Return why schemas are refused that stand for each other, or for too many others."""
    sizes: dict[int, int] = {}
    """The number of schemas that an object stands for, by its id; 0 while they are counted."""
    for start in found:
        stack = [start]
        while stack:
            schema = stack[-1]
            alternatives = _alternatives(schema, targets)
            if id(schema) not in sizes:
                sizes[id(schema)] = 0
                below = [it for it in alternatives if id(it) not in sizes]
                if any(sizes.get(id(it)) == 0 for it in alternatives):
                    return "has a `$ref` that leads back to itself"
                if len(stack) + len(below) > MOST_STEPS:
                    return "has too many references"
                stack.extend(below)
                if below:
                    continue
            stack.pop()
            if sizes[id(schema)] == 0:
                sizes[id(schema)] = 1 + sum(sizes.get(id(it), 0) for it in alternatives)
                if sizes[id(schema)] > MOST_ALTERNATIVES:
                    return f"stands for more than {MOST_ALTERNATIVES:,} schemas"
    return None


def _alternatives(schema: Schema, targets: dict[str, Schema]) -> list[Schema]:
    """Return the schemas that one stands for without a value in between."""
    groups = [schema.get(name) for name in _GROUPS]
    found = [it for group in groups if isinstance(group, list) for it in group if isinstance(it, dict)]
    name = schema.get("$ref")
    return [*found, targets[name]] if isinstance(name, str) and name in targets else found
