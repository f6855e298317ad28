"""The weights that each engine would get of a model, as far as they are known without a network or a daemon."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy.errors import ModelNotFound
from llmdeploy.models.catalog import lookup
from llmdeploy.models.hf_facts import CONFIG
from llmdeploy.models.reference import CatalogName
from llmdeploy.models.weights import HF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.engines.base import Engine
    from llmdeploy.models.catalog.entry import CatalogEntry
    from llmdeploy.models.reference import ModelRef
    from llmdeploy.models.weights import Weights


@dataclass(frozen=True)
class Availability:
    """The weights for one engine. Sizes in bytes; 0 if unknown before the source is asked."""

    engine: str
    artefact: tuple[str, ...] = ()
    """References as they can be typed: the weights, then the vision projector; empty if there is nothing for it."""
    quant: str = ""
    bytes: int = 0
    exact: bool = False
    """Whether `bytes` is the size of its files, and not an estimate."""
    here: bool = False
    others: tuple[str, ...] = ()
    """The other quantizations that the catalog has."""
    gated: bool = False
    lacks: str = ""
    """Reason why there is nothing for this engine; empty if there is something."""


def availability(model: ModelRef, engines: Sequence[Engine]) -> tuple[Availability, ...]:
    """Return the weights that each engine would get. Raises ModelNotFound for an unknown name or a missing path."""
    if isinstance(model, Path) and not model.exists():
        raise ModelNotFound(f"there is no `{model}`", "give a GGUF file, or a folder with a `config.json`")
    entry = lookup.find(model.name) if isinstance(model, CatalogName) else None
    return tuple(_of_engine(engine, model, entry) for engine in engines)


def _of_engine(engine: Engine, model: ModelRef, entry: CatalogEntry | None) -> Availability:
    try:
        weights = engine.resolve(model, offline=True)
        found = _of_entry(engine, entry) if entry else Availability(engine.name)
    except ModelNotFound as error:
        others = entry.quants(entry.preferred(engine.formats)) if entry else ()
        return Availability(engine.name, others=others, lacks=error.message)
    return _with_files(replace(found, artefact=weights.references()), weights)


def _of_entry(engine: Engine, entry: CatalogEntry) -> Availability:
    """Return what the catalog knows of the model for that engine. Raises ModelNotFound."""
    format = entry.preferred(engine.formats)
    quant = entry.chosen(format)
    size, exact = entry.size(format)
    others = tuple(one for one in entry.quants(format) if one != quant)
    # The Hub asks for a login for the original weights, which are the first repository.
    gated = format == HF and entry.gated and quant == next(iter(entry.repositories), None)
    return Availability(engine.name, quant=quant, bytes=size, exact=exact, others=others, gated=gated)


def _with_files(found: Availability, weights: Weights) -> Availability:
    """Add the size of the files, if they are on this machine."""
    files = weights.local_files()
    if not all(file.is_file() for file in files):
        return found
    here = weights.is_present()
    return replace(found, bytes=_size(files), exact=True, here=here) if files else replace(found, here=here)


def _size(files: Sequence[Path]) -> int:
    """Return the bytes of the weights, without a configuration beside them."""
    return sum(file.stat().st_size for file in files if file.name != CONFIG)
