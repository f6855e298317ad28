"""The names of the catalog, and the lines of one model, found without parsing all of it, which takes long."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from llmdeploy import paths

SHIPPED = Path(__file__).with_name("catalog.toml")
_HEADER = re.compile(r'^\[models\.(?:"([^"]+)"|([\w-]+))\]$', re.MULTILINE)
_TABLE = re.compile(r'^\[(\w+)(?:\.(?:"([^"]+)"|([\w-]+)))?', re.MULTILINE)
"""The beginning of a table: its kind, and the name of the model or family that it belongs to."""


def user_file() -> Path:
    """Return the path of the user's catalog, which need not exist."""
    return paths.user_config_file().with_name("catalog.toml")


def shipped() -> list[str]:
    """Return the names in the shipped catalog, in its order."""
    return ["".join(name) for name in _HEADER.findall(SHIPPED.read_text(encoding="utf-8"))]


def excerpt(name: str) -> str:
    """Return the tables of one model of the shipped catalog, with those of its family; empty for any other name."""
    tables = _tables()
    model, family = tables.get(("models", name), ""), tables.get(("families", name.partition(":")[0]), "")
    return model and tables["quantizations", ""] + family + model


@cache
def _tables() -> dict[tuple[str, str], str]:
    """Return the text of the shipped catalog in pieces, by kind and by model or family."""
    text = SHIPPED.read_text(encoding="utf-8")
    found = list(_TABLE.finditer(text))
    tables: dict[tuple[str, str], str] = {}
    for start, end in zip(found, [*(it.start() for it in found[1:]), len(text)], strict=True):
        key = start[1], start[2] or start[3] or ""
        tables[key] = tables.get(key, "") + text[start.start() : end]
    return tables
