"""The models on this machine, whichever program put them there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmdeploy.errors import ModelNotFound
from llmdeploy.models import quantization, source
from llmdeploy.models.catalog import lookup
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, ModelRef, OllamaTag, parse
from llmdeploy.models.stores import folders, hub_cache, lmstudio, modelscope, ollama
from llmdeploy.models.stores.installed import DiskUsage, InstalledModel, StoreListing


@dataclass(frozen=True)
class Store:
    """The models in all places of this machine."""

    everything: tuple[InstalledModel, ...]
    """All models, with those that are hidden from people."""
    notes: tuple[str, ...]
    """Sentences about what could not be read."""

    @property
    def models(self) -> tuple[InstalledModel, ...]:
        """The models that are shown to people."""
        return tuple(one for one in self.everything if not one.hidden)

    @cached_property
    def _disk_usage(self) -> DiskUsage:
        return DiskUsage(self.everything)

    def freed(self, *going: InstalledModel) -> int:
        """Return the bytes that the removal of these models frees."""
        return self._disk_usage.freed(going)

    def named(self, text: str) -> list[InstalledModel]:
        """Return the models of that name; a name of the catalog finds them in all places. Raises ModelNotFound."""
        wanted = _references(parse(text))
        if found := [one for one in self.models if any(_is(one, reference) for reference in wanted)]:
            return found
        raise ModelNotFound(f"`{text}` is not on this machine", self._near(text))

    def _near(self, text: str) -> str:
        names = [str(one.reference) for one in self.models]
        by_end = {name.rpartition("/")[2].lower(): name for name in names}
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.6)
        near += [by_end[it] for it in difflib.get_close_matches(text.rpartition("/")[2].lower(), by_end, n=3)]
        if near:
            return f"here is {' and '.join(f'`{one}`' for one in dict.fromkeys(near[:3]))}"
        return "`llmdeploy models` shows what is here"


def scan(ollama_models: str | None = None) -> Store:
    """Read all places, without the network and without Ollama's daemon.

    `ollama_models`: Ollama's store, if the configuration names one.
    """
    listings: list[StoreListing] = [
        hub_cache.read(source.origin("hf").cache()),
        modelscope.read(source.origin("ms").cache()),
        *(ollama.read(store) for store in ollama.stores(ollama_models)),
        folders.read(),
        *(lmstudio.read(root) for root in lmstudio.roots()),
    ]
    return Store(
        tuple(one for listing in listings for one in listing.models),
        tuple(note for listing in listings for note in listing.notes),
    )


def _references(reference: ModelRef) -> list[ModelRef]:
    """Return the references that a name of the catalog has at each engine; any other reference unchanged."""
    if not isinstance(reference, CatalogName):
        return [reference]
    entry = lookup.get(reference.name)
    if entry is None:
        return [reference, OllamaTag(reference.name)]
    found: list[ModelRef] = [CatalogName(str(entry))]
    with suppress(ModelNotFound):  # the entry has no such form; the same below
        if isinstance(weights := entry.weights, HubFile):
            found += [source.at(weights, name) for name in source.NAMES]
    with suppress(ModelNotFound):
        if entry.hub:
            found += [source.at(HubRepo(entry.hub), name) for name in source.NAMES]
    with suppress(ModelNotFound):
        if entry.ollama:
            found.append(OllamaTag(entry.ollama))
    return found


def _is(model: InstalledModel, wanted: ModelRef) -> bool:
    """Return whether a reference means this model, or the repository or folder that it belongs to."""
    mine = model.reference
    match wanted:
        case Path():
            return wanted == mine or wanted in model.files or (model.place == "folder" and wanted == model.root)
        case OllamaTag():
            return isinstance(mine, OllamaTag) and ollama.full_name(mine.name) == ollama.full_name(wanted.name)
        case HubRepo():
            return _same_repository(mine, wanted) and (
                not wanted.quant or any(quantization.quant_of(it) == wanted.quant.upper() for it in _weights(model))
            )
        case HubFile():
            return _same_repository(mine, wanted) and any(
                str(file).replace("\\", "/").endswith(f"/{wanted.file}") for file in model.files[:1]
            )
        case CatalogName():
            return mine == wanted


def _same_repository(mine: ModelRef, wanted: HubRepo | HubFile) -> bool:
    if not isinstance(mine, HubRepo | HubFile):
        return False
    return (mine.source, mine.repo.lower(), mine.revision) == (wanted.source, wanted.repo.lower(), wanted.revision)


def _weights(model: InstalledModel) -> Iterable[str]:
    if isinstance(model.reference, HubRepo) and model.reference.quant:
        return (f"x-{model.reference.quant}.gguf",)
    return tuple(str(file) for file in model.files[:1])
