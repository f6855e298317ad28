"""Entries from a catalog file: the shipped one, or the user's in the folder of the configuration file.

A model has the keys of its family too, which is the part of its name before the colon; the keys of the model itself
take precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from llmdeploy.models.catalog.entry import CatalogEntry, GgufFiles

Document = Mapping[str, Any]
"""The content of a catalog file as TOML parses it; `schema` has the keys."""

MADE = {"name", "capabilities", "gguf_files", "tag", "tags", "repositories", "aliases", "quant", "own"}
SAME = {field.name for field in fields(CatalogEntry)} - MADE
"""The keys that are fields of an entry under the same name."""


def entries(document: Document, *, own: bool = False) -> dict[str, CatalogEntry]:
    """Return the entries of a valid document by name, in its order."""
    sets = document.get("quantizations", {})
    return {name: _entry(name, whole(document, name), sets, own=own) for name in document.get("models", {})}


def whole(document: Document, name: str) -> dict[str, Any]:
    """Return the keys of a model, including those of its family."""
    family = document.get("families", {}).get(name.partition(":")[0], {})
    return {**family, **document["models"][name]}


def _entry(name: str, table: Mapping[str, Any], sets: Mapping[str, list[str]], *, own: bool) -> CatalogEntry:
    tag = table.get("ollama", "")
    pattern = table.get("ollama_tags", "{tag}-{quant}").replace("{tag}", tag)
    gguf = table.get("gguf")
    return CatalogEntry(
        name=name,
        capabilities=tuple(table.get("capabilities", ("text",))),
        gguf_files=None if gguf is None else _gguf(gguf, sets),
        tag=tag,
        tags={quant: pattern.replace("{quant}", quant) for quant in table.get("ollama_quants", ())},
        repositories=table.get("hub", {}),
        aliases=tuple(table.get("aliases", ())),
        own=own,
        **{key: value for key, value in table.items() if key in SAME},
    )


def _gguf(table: Mapping[str, Any], sets: Mapping[str, list[str]]) -> GgufFiles:
    quants = table["quants"]
    return GgufFiles(
        file=table["file"],
        quants=tuple(sets[quants] if isinstance(quants, str) else quants),
        repo=table.get("repo"),
        sizes=table.get("bytes", {}),
        mmproj=table.get("mmproj"),
        mmproj_bytes=table.get("mmproj_bytes", 0),
    )
