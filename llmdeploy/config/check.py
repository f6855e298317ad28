"""Checks of what a configuration file holds, with messages that name the line and the key that was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from llmdeploy import paths
from llmdeploy.config.settings import Key, dotted, keys, keys_hint, tables
from llmdeploy.config.toml_file import line_of
from llmdeploy.config_types import LARGEST, Personal
from llmdeploy.errors import ConfigError
from llmdeploy.text import must_be, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmdeploy.config_types import Words


def leaves(table: Mapping[str, object], prefix: Words = ()) -> Iterator[tuple[Words, object]]:
    """Yield each entry of a document with its dotted key: values, and tables that are not part of the configuration."""
    for word, value in table.items():
        words = (*prefix, word)
        if words in tables() and isinstance(value, dict):
            yield from leaves(value, words)
        else:
            yield words, value


def check(words: Words, value: object, text: str, shown: str) -> None:
    """Raise ConfigError, with the line of the file, unless the key is known and its value is right."""
    if problem := _problem(words, value, in_project=shown == f"./{paths.PROJECT_CONFIG}"):
        message, hint = problem
        line = line_of(text, words)
        raise ConfigError(f"`{shown}`" + (f", line {line}" if line else "") + f": {message}", hint)


def _problem(words: Words, value: object, *, in_project: bool = False) -> tuple[str, str] | None:
    """Return what is wrong with a value in a file, as message and hint; None if nothing is."""
    name = dotted(words)
    key = next((key for key in keys() if key.words == words), None)
    if words in tables():
        return must_be(f"`{name}`", "a table", _toml(value)), f"write `[{name}]` on a line, and its keys below it"
    if key is None:
        return f"unknown key `{name}`", keys_hint(name)
    if not key.rule.accepts(value):
        return must_be(f"`{name}`", key.rule, _toml(value)), help_hint(key)
    return not_in_project(key, value) if in_project else None


def not_in_project(key: Key, value: object) -> tuple[str, str] | None:
    """Return why `./llmdeploy.toml` may not set a key to a value, as message and hint; None if it may."""
    if isinstance(key.rule, Personal):
        message, example = f"`{key.name}` names {key.rule.names}, which the file of a folder may not", key.rule.example
    elif key.is_limit and cast("float", value) > cast("float", key.default):
        message, example = f"`{key.name}` may be {key.default} at most in the file of a folder", _toml(value)
    else:
        return None
    return message, f"take the line out; `llmdeploy config set {key.name} {example}` writes it to your own file"


def help_hint(key: Key) -> str:
    """Return the hint that says what a key is for."""
    return f"`{key.name}` is {key.help}"


def _toml(value: object) -> str:
    """Return a value as TOML writes it, short enough for a message."""
    match value:
        case dict():
            return "a table"
        case list():
            return "an array"
        case bool():
            return str(value).lower()
        case int():
            return plain(str(value) if abs(value) <= LARGEST else hex(value))  # Python refuses to write huge decimals
        case str():
            return f'"{plain(value)}"'
        case _:
            return str(value)
