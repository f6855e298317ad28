"""The catalog: models by name. The facts are in catalog.toml; entries in the user's own catalog take precedence.

    entry     = family [":" size]                  qwen2.5-vl:7b, the name as the catalog has it
    spelling  = entry, in any case, with any of `-` `_` `.` `:` or none     Qwen2.5_VL-7B
              | family                             its default size: qwen2.5-vl
              | Ollama's name for it               qwen2.5vl, qwen2.5vl:7b, qwen2.5vl:latest
              | the Hub's, without the owner       Qwen2.5-VL-7B-Instruct, Qwen2.5-VL-7B-Instruct-AWQ
    name      = spelling ["-" quantization]        qwen3:8b-q8_0, qwen3:8b-awq, qwen3:8b-fp8

A spelling that fits two entries is refused with both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

from llmdeploy.errors import ModelNotFound
from llmdeploy.models.catalog import reader
from llmdeploy.models.catalog.entry import FORM, CatalogEntry, plain_quant
from llmdeploy.models.catalog.names import SHIPPED, excerpt, user_file
from llmdeploy.models.catalog.reader import Document
from llmdeploy.models.reference import QUANT

__all__ = ["CatalogEntry", "canonical", "find", "get", "load", "names", "user_file"]

_SEPARATORS = re.compile(r"[-_.:]+")
_QUANT = re.compile(rf"(?P<name>.+?)[-_.:](?P<quant>{QUANT}|awq|gptq(?:-int[48])?|int[48])", re.IGNORECASE)


def load() -> Mapping[str, CatalogEntry]:
    """Return all entries by name, the user's first. Raises ConfigError if the user's catalog is wrong."""
    return _load(_own()).entries


def names() -> list[str]:
    return list(load())


def find(name: str) -> CatalogEntry:
    """Return the entry that a name stands for, in the quantization that the name has.

    Raises ModelNotFound for an unknown name, with similar names; for a spelling of two entries, with both; and for a
    quantization that no engine has, with those that exist. Raises ConfigError if the user's catalog is wrong.
    """
    if found := _found(name):
        return found
    near = difflib.get_close_matches(name.lower(), names(), n=3)
    hint = (
        f"did you mean {' or '.join(f'`{one}`' for one in near)}?"
        if near
        else "`llmdeploy models catalog` lists the names"
    )
    raise ModelNotFound(f"no model is called `{name}`", hint)


def get(name: str) -> CatalogEntry | None:
    """Return the entry that a name stands for, or None. Raises ConfigError if the user's catalog is wrong."""
    try:
        return _found(name)
    except ModelNotFound:
        return None


def canonical(name: str) -> str:
    """Return the name as the catalog spells it. Raises as `find`."""
    return str(find(name))


@dataclass(frozen=True)
class _Catalog:
    entries: Mapping[str, CatalogEntry]
    defaults: Mapping[str, str]
    """The model that the name of a family means, by family; without a row, the model that has that name."""

    @cached_property
    def spellings(self) -> Mapping[str, tuple[CatalogEntry, ...]]:
        """The entries that a spelling may mean, by the spelling without its separators."""
        spellings: dict[str, dict[str, CatalogEntry]] = {}
        for entry in self.entries.values():
            is_default = self.defaults.get(entry.family, entry.name) == entry.name
            for spelling, meant in _spellings(entry, is_default=is_default):
                # A quantization in the name takes precedence over a tag that only happens to be that of the default.
                found = spellings.setdefault(_plain(spelling), {}) if spelling else {}
                if meant.quant or entry.name not in {one.name for one in found.values()}:
                    found.pop(entry.name, None)
                    found[str(meant)] = meant
        return {key: tuple(found.values()) for key, found in spellings.items()}


def _own() -> Path | None:
    """Return the user's catalog, if there is one."""
    file = user_file()
    return file if file.exists() else None


@cache
def _load(own: Path | None) -> _Catalog:
    import tomllib

    shipped = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    theirs = _read(own) if own else {}
    entries = reader.entries(theirs, own=True)
    entries |= {name: entry for name, entry in reader.entries(shipped).items() if name not in entries}
    defaults = {
        family: f"{family}:{table['default']}"
        for document in (shipped, theirs)
        for family, table in document.get("families", {}).items()
        if "default" in table
    }
    return _Catalog(MappingProxyType(entries), defaults)


@lru_cache(maxsize=1000)
def _shipped(name: str) -> CatalogEntry | None:
    """Return the shipped entry of exactly this name, or None. Only its own tables are parsed: all take 20 ms."""
    import tomllib

    return reader.entries(tomllib.loads(excerpt(name))).get(name)


def _read(file: Path) -> Document:
    from llmdeploy.models.catalog import schema

    return schema.read(file)


def _spellings(entry: CatalogEntry, *, is_default: bool) -> Iterator[tuple[str, CatalogEntry]]:
    for name in (entry.name, entry.tag, *entry.aliases):
        yield name, entry
    if is_default:
        yield entry.family, entry
        yield entry.tag.partition(":")[0], entry
    for at, (quant, repository) in enumerate(entry.repositories.items()):
        yield repository.partition("/")[2], replace(entry, quant=quant.lower()) if at else entry
    for quant, tag in entry.tags.items():
        yield tag, replace(entry, quant=quant.lower()) if tag.endswith(quant) else entry


def _found(name: str) -> CatalogEntry | None:
    entry = load().get(name) if _own() else _shipped(name)
    if entry:
        return entry
    name = name.removesuffix(":latest")
    if entry := _spelled(name):
        return entry
    match = _QUANT.fullmatch(name)
    entry = _spelled(match["name"]) if match else None
    if match is None or entry is None:
        return None
    return _in_quant(entry, match["quant"])


def _spelled(name: str) -> CatalogEntry | None:
    """Return the entry with this spelling, or None. Raises ModelNotFound if two entries have it."""
    found = _load(_own()).spellings.get(_plain(name), ())
    if len(found) < 2:
        return found[0] if found else None
    both = " or ".join(f"`{entry}`" for entry in found)
    raise ModelNotFound(f"`{name}` may be {both}", f"say which: `llmdeploy models show {' '.join(map(str, found))}`")


def _in_quant(entry: CatalogEntry, quant: str) -> CatalogEntry:
    there = {plain_quant(one): one for format in FORM for one in entry.quants(format)}
    if plain_quant(quant) in there and not entry.quant:
        return replace(entry, quant=quant.lower())
    raise ModelNotFound(
        f"the catalog has no `{quant.lower()}` of `{entry.name}`",
        f"it has {', '.join(f'`{one.lower()}`' for one in there.values())}",
    )


def _plain(spelling: str) -> str:
    return _SEPARATORS.sub("", spelling.lower())
