"""The sources of the configuration, merged: flag > `LLMDEPLOY_*` > `./llmdeploy.toml` > the user's file > default."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from llmdeploy import paths
from llmdeploy.config.check import check, help_hint, leaves
from llmdeploy.config.settings import DEFAULT, Settings, Value, by_name, keys, with_values
from llmdeploy.config.toml_file import parse, read
from llmdeploy.errors import ConfigError, UsageError
from llmdeploy.text import must_be, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def load(flags: Mapping[str, object] | None = None) -> Settings:
    """Return every key's value and its source. Raises ConfigError, UsageError.

    `flags` maps dotted keys to values; None stands for a flag that was not given.
    """
    user_file = paths.user_config_file()
    values = (
        _from_file(user_file, str(user_file), required=bool(os.environ.get("LLMDEPLOY_CONFIG")))
        | _from_file(paths.PROJECT_CONFIG, f"./{paths.PROJECT_CONFIG}")
        | _from_environment(os.environ)
        | _from_flags(flags or {})
    )
    settings = with_values(DEFAULT, {name: it.value for name, it in values.items()})
    return replace(settings, sources={name: it.source for name, it in values.items()})


def _from_file(file: Path, shown: str, *, required: bool = False) -> dict[str, Value]:
    text = read(file, shown)
    if text is None:
        if required:
            raise ConfigError(f"LLMDEPLOY_CONFIG names `{shown}`, which does not exist", "`unset LLMDEPLOY_CONFIG`")
        return {}
    values = {}
    for words, value in leaves(parse(text, shown)):
        check(words, value, text, shown)
        values[".".join(words)] = Value(value, shown)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    values = {}
    for key in keys():
        if text := environment.get(key.variable):
            try:
                values[key.name] = Value(key.read(text), key.variable)
            except ValueError:
                message = must_be(key.variable, key.rule, f"`{plain(text)}`")
                raise ConfigError(message, f"`unset {key.variable}`") from None
    return values


def _from_flags(flags: Mapping[str, object]) -> dict[str, Value]:
    values = {}
    for name, value in flags.items():
        key = by_name()[name]
        if value is None:
            continue
        if not key.rule.accepts(value):
            raise UsageError(must_be(f"`{key.flag}`", key.rule, f"`{plain(str(value))}`"), help_hint(key))
        values[name] = Value(value, key.flag)
    return values
