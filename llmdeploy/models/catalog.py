"""The catalog: models by name, and what each engine needs of them. The facts are in catalog.toml."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import ModelNotFound
from llmdeploy.models.reference import HubFile
from llmdeploy.paths import selftest_dir

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class GgufFiles:
    """A model's files for llama.cpp; sizes in bytes."""

    file: str
    bytes: int
    repo: str | None = None
    """The Hub repository; None: the files are in this package."""
    mmproj: str | None = None
    mmproj_bytes: int = 0


@dataclass(frozen=True)
class CatalogEntry:
    """A model that is known by name."""

    name: str
    gguf: GgufFiles
    license: str
    capabilities: tuple[str, ...]
    context: int
    """The longest context the model was trained for, in tokens."""
    parameters: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ollama: str | None = None
    hub: str | None = None
    shipped: bool = False
    hf_folder: str | None = None

    @property
    def sees_images(self) -> bool:
        return "image" in self.capabilities

    @property
    def weights(self) -> Path | HubFile:
        """The GGUF file, here or at the Hub."""
        return self._located(self.gguf.file)

    @property
    def mmproj(self) -> Path | HubFile | None:
        """The vision projector, here or at the Hub; None for a model that sees no images."""
        return None if self.gguf.mmproj is None else self._located(self.gguf.mmproj)

    def _located(self, file: str) -> Path | HubFile:
        return selftest_dir() / file if self.gguf.repo is None else HubFile(self.gguf.repo, file)


@cache
def load() -> Mapping[str, CatalogEntry]:
    """All entries by name, in the order of the file."""
    document = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: _entry(name, table) for name, table in document["models"].items()})


def names() -> list[str]:
    return list(load())


def find(name: str) -> CatalogEntry:
    """The entry of that name. Raises ModelNotFound, with the names that are near it."""
    if entry := load().get(name):
        return entry
    near = difflib.get_close_matches(name.lower(), names(), n=3)
    hint = f"did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else "`llmdeploy models` lists the names"
    raise ModelNotFound(f"no model is called `{name}`", hint)


def _entry(name: str, table: dict[str, Any]) -> CatalogEntry:
    rest = {key: value for key, value in table.items() if key not in {"gguf", "capabilities"}}
    return CatalogEntry(name=name, gguf=GgufFiles(**table["gguf"]), capabilities=tuple(table["capabilities"]), **rest)
