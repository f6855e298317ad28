"""Files of other programs on this machine, used instead of a download.

Only the same model in the same quantization is used: the same file of the same repository, or, for a model of the
catalog, the file that Ollama has under its tag. Ollama's models that do not run on llama.cpp as they are
(`ollama_compat`) and files that cannot be read are passed over: then the model is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmdeploy.config import Settings
from llmdeploy.errors import LlmdeployError, ModelNotFound
from llmdeploy.models import facts, gguf, gguf_header, quantization
from llmdeploy.models.catalog import lookup
from llmdeploy.models.catalog.entry import plain_quant
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import HUB_HOSTS, MAIN, CatalogName, HubFile, HubRepo, ModelRef, OllamaTag
from llmdeploy.models.stores import folders, lmstudio, ollama
from llmdeploy.models.stores.installed import is_whole, walk
from llmdeploy.models.weights import GGUF, OLLAMA
from llmdeploy.units import in_gib


@dataclass(frozen=True)
class Found:
    """The files of a model on this machine."""

    weights: Path
    mmproj: Path | None
    whose: str
    """Program that has the files, and their place: the words after "uses"."""

    def model(self, mmproj: Path | None = None, instead_of: tuple[str, ...] = ()) -> GgufModel:
        """Return the weights for an engine; `mmproj`: a projector that was asked for."""
        sentence = f"uses {self.whose}: {self.size} not fetched"
        return GgufModel(self.weights, mmproj or self.mmproj, sentence, instead_of)

    @property
    def size(self) -> str:
        """Size of the files, in words."""
        files = [*facts.parts(self.weights), *([self.mmproj] if self.mmproj else [])]
        return in_gib(sum(file.stat().st_size for file in files))


def tags(model: ModelRef) -> tuple[str, ...]:
    """Return Ollama's names for a model of the catalog, in all quantizations."""
    entry = lookup.get(model.name) if isinstance(model, CatalogName) else None
    return tuple(filter(None, (entry.tag, *entry.tags.values()))) if entry else ()


def of_files(wanted: GgufModel, tags: Sequence[str], ollama_models: str | None = None) -> Found | None:
    """Return files to use instead of those of the Hub that are not here; None if there are none.

    `tags`: names at Ollama that mean the same model, whatever their quantization is.
    """
    candidates = (*_copies(wanted), *_blobs(wanted, tags, ollama_models))
    return next((found for found in candidates if _usable(found)), None)


def of_tag(name: str, ollama_models: str | None = None) -> Found | None:
    """Return the files of a model in Ollama's store; None if it is not there.

    Raises ModelNotFound if llama.cpp cannot run them, unless the Hub has the model in another form (`hf.co/...`).
    """
    for store in ollama.stores(ollama_models):
        for packed in ollama.find(store, name):
            if why := ollama.reason(packed):
                if name.startswith(HUB_HOSTS):
                    return None
                raise ModelNotFound(
                    f"Ollama's `{packed.name}` does not run on llama.cpp: {why}",
                    f"serve it there: `llmdeploy serve {OllamaTag(name)} --engine ollama`",
                )
            found = _found(packed)
            return found if found and _usable(found) else None
    return None


def for_ollama(model: CatalogName, settings: Settings) -> GgufModel | None:
    """Return the catalog's GGUF files of a model, if all are here and in the quantization of Ollama's tag."""
    entry = lookup.get(model.name)
    if entry is None:
        return None
    try:
        if plain_quant(entry.chosen(OLLAMA) or quantization.FIRST[0]) != plain_quant(entry.chosen(GGUF)):
            return None
        wanted = gguf.find(model, settings)
        if wanted.is_present():
            found, local = Found(*wanted.paths(), ""), wanted
        elif copy := next((copy for copy in _copies(wanted) if _usable(copy)), None):
            found, local = copy, copy.model(settings.flags.mmproj)
        else:
            return None
        return replace(local, reused_from=f"Ollama takes `{found.weights}` of this machine: {found.size} not fetched")
    except (LlmdeployError, OSError):
        return None


def _copies(wanted: GgufModel) -> Iterator[Found]:
    """Yield the same files of the same repository in LM Studio's folders and in those of `pull --dir`."""
    home = _home(wanted)
    if home is None:
        return
    for root in lmstudio.roots():
        folder = root / home.repo
        paths = [file.relative_to(folder).as_posix() for file in walk(folder)]
        if found := _in_folder(wanted, folder, paths, "LM Studio's "):
            yield found
    for one in folders.filled():
        if one.repo == home and (found := _in_folder(wanted, one.folder, one.files, "")):
            yield found


def _in_folder(wanted: GgufModel, folder: Path, paths: Sequence[str], whose: str) -> Found | None:
    paths = [path for path in paths if is_whole(folder / path)]
    if not paths:
        return None
    try:
        if isinstance(wanted.weights, HubFile):
            choice = quantization.belonging(wanted.weights.file, paths)
        else:
            choice = quantization.choose(paths, quant_of(wanted))
    except ModelNotFound:
        return None
    mmproj = wanted.mmproj.file if isinstance(wanted.mmproj, HubFile) else choice.mmproj
    if not {*choice.weights, *([mmproj] if mmproj else [])} <= set(paths):
        return None
    weights = folder / choice.weights[0]
    return Found(weights, folder / mmproj if mmproj else None, f"{whose}`{weights}`")


def _blobs(wanted: GgufModel, tags: Sequence[str], ollama_models: str | None) -> Iterator[Found]:
    """Yield the model's files in Ollama's stores, in the wanted quantization."""
    home, quant = _home(wanted), quant_of(wanted)
    if home is None:
        return
    pulled = [f"{host}{home.repo}{tag}" for host in HUB_HOSTS for tag in (f":{quant}", "")]
    for store in ollama.stores(ollama_models):
        for packed in ollama.find(store, *tags, *pulled):
            if (found := _found(packed)) and _fits(packed, found, wanted, quant):
                yield found


def _home(wanted: GgufModel) -> HubRepo | None:
    """Return the repository if it is at the main branch of the Hub; else None: a named revision is taken literally."""
    if isinstance(wanted.weights, Path):
        return None
    home = wanted.weights.home
    return home if (home.source, home.revision) == ("hf", MAIN["hf"]) else None


def quant_of(wanted: GgufModel) -> str:
    """Return the wanted quantization, in capitals; for a repository, the one that would be downloaded by default."""
    if isinstance(wanted.weights, HubRepo):
        return wanted.weights.quant.upper() or quantization.FIRST[0]
    return quantization.quant_of(str(wanted.weights))


def _fits(packed: ollama.Packed, found: Found, wanted: GgufModel, quant: str) -> bool:
    try:
        if ollama.reason(packed) is not None:
            return False
        its = gguf_header.quantization(gguf_header.read(found.weights)).removesuffix("_MOE")
    except LlmdeployError:
        return False
    return its == quant.removesuffix("_MOE") and (found.mmproj is not None or not isinstance(wanted.mmproj, HubFile))


def _found(packed: ollama.Packed) -> Found | None:
    models, projectors = packed.files("model"), packed.files("projector")
    if len(models) != 1 or len(projectors) > 1:
        return None
    return Found(models[0], next(iter(projectors), None), f"Ollama's `{packed.name}` in `{packed.store}`")


def _usable(found: Found) -> bool:
    """Return whether all files are complete and readable."""
    try:
        facts.read_gguf(found.weights, found.mmproj)
    except (LlmdeployError, OSError):
        return False
    return True
