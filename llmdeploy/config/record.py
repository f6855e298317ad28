"""Settings as the JSON document that the record of a deployment and a control request hold."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.config.settings import DEFAULT, Flags, Settings, by_name, keys, with_values
from llmdeploy.errors import ConfigError
from llmdeploy.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAGS = {it.name: it.default for it in fields(Flags)}


def document(settings: Settings) -> dict[str, Any]:
    """Return the settings that are not the default: keys and flags by their names."""
    found = {key.name: key.of(settings) for key in keys() if key.of(settings) != key.default}
    flags = {name: getattr(settings.flags, name) for name in _FLAGS if getattr(settings.flags, name) != _FLAGS[name]}
    return found | {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}


def from_document(content: Mapping[str, Any]) -> Settings:
    """Return the settings that `document` was made from. Raises ConfigError for an unknown key or a wrong value."""
    values: dict[str, object] = {}
    flags: dict[str, Any] = {}
    for name, value in content.items():
        if (key := by_name().get(name)) is not None and key.rule.accepts(value):
            values[name] = value
        elif name in _FLAGS and isinstance(value, str if _FLAGS[name] is None else bool):
            flags[name] = Path(value) if isinstance(value, str) else value
        else:
            raise ConfigError(f"`{plain(name)}` is not known here, or its value is wrong", "restart the service")
    settings = with_values(DEFAULT, values)
    return replace(settings, flags=Flags(**flags), sources=dict.fromkeys(content, "the switch"))
