"""What each engine would get of a model, as far as that is known without a network or a daemon."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llmdeploy.config import DEFAULT
from llmdeploy.errors import ModelNotFound
from llmdeploy.models.catalog import lookup
from llmdeploy.models.catalog.entry import CatalogEntry
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.hf_model import HfModel
from llmdeploy.models.quantization import find_mmproj
from llmdeploy.models.reference import HUB_HOSTS, CatalogName, HubFile, HubRepo, ModelRef, OllamaTag
from llmdeploy.models.source import at, first_here, in_order
from llmdeploy.models.stores import ollama
from llmdeploy.paths import selftest_dir


@dataclass(frozen=True)
class Availability:
    """What one engine would get. Bytes are bytes; 0: not known before the source is asked."""

    engine: str
    artefact: tuple[str, ...] = ()
    """References as they can be typed: the weights, then the vision projector. Empty: there is nothing for it."""
    quant: str = ""
    bytes: int = 0
    exact: bool = False
    """Whether that is the size of its files, and no estimate."""
    here: bool = False
    others: tuple[str, ...] = ()
    """The other quantizations there are."""
    gated: bool = False
    lacks: str = ""
    """Why there is nothing for it."""


def availability(model: ModelRef, hub: str = DEFAULT.hub) -> tuple[Availability, ...]:
    """For llama.cpp, Ollama and vLLM, in this order. Raises ModelNotFound for an unknown name or a path of nothing.

    `hub`: where a name of the catalog is fetched from, as the configuration calls it, unless the other one has it here.
    """
    match model:
        case CatalogName():
            entry = lookup.find(model.name)
            return tuple(_of_entry(entry, engine, hub) for engine in lookup.ENGINES)
        case Path():
            return _of_path(model)
        case OllamaTag():
            return _of_tag(model)
        case HubFile():
            return _of_gguf(model)
        case HubRepo():
            if model.quant or model.repo.lower().endswith("gguf"):
                return _of_gguf(model)
            none = "it needs GGUF files, which are in other repositories: `owner/name-GGUF`"
            offer = _sized(Availability("vllm", (str(model),)), HfModel(model))
            return Availability("llamacpp", lacks=none), Availability("ollama", lacks=none), offer


def _of_entry(entry: CatalogEntry, engine: str, hub: str) -> Availability:
    try:
        size, exact = entry.size(engine)
        quant = entry.chosen(engine)
        offer = Availability(engine, quant=quant, bytes=size, exact=exact)
        offer = replace(offer, others=tuple(one for one in entry.quants(engine) if one != quant))
        if engine == "vllm":
            return _of_repository(entry, offer, hub)
        if engine == "ollama" and (tag := entry.ollama):
            return replace(offer, artefact=(str(OllamaTag(tag)),), here=ollama.has(tag))
        weights, mmproj = entry.weights, entry.mmproj
        model = first_here(GgufModel(_at(weights, name), mmproj and _at(mmproj, name)) for name in in_order(hub))
        here = engine == "llamacpp" and model.present() and all(file.is_file() for file in model.local_files())
        return replace(offer, artefact=tuple(map(str, model.files)), here=here)
    except ModelNotFound as error:
        return Availability(engine, others=entry.quants(engine), lacks=error.message)


def _of_repository(entry: CatalogEntry, offer: Availability, hub: str) -> Availability:
    if entry.hf_folder:
        folder = selftest_dir() / entry.hf_folder
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return replace(offer, artefact=(str(folder),), bytes=size, exact=True, here=folder.is_dir())
    if entry.hub is None:
        return Availability("vllm", lacks=f"the catalog has no repository of `{entry.name}` that vLLM reads")
    model = first_here(HfModel(at(HubRepo(entry.hub), name)) for name in in_order(hub))
    gated = entry.gated and entry.hub == next(iter(entry.repositories.values()))
    return _sized(replace(offer, artefact=(str(model),), gated=gated), model)


def _at(file: Path | HubFile, hub: str) -> Path | HubFile:
    return at(file, hub) if isinstance(file, HubFile) else file


def _sized(offer: Availability, model: GgufModel | HfModel) -> Availability:
    """With the size of its files, where they are here."""
    if not model.present():
        return offer
    return replace(offer, bytes=sum(file.stat().st_size for file in model.local_files()), exact=True, here=True)


def _of_gguf(model: HubFile | HubRepo) -> tuple[Availability, ...]:
    found = _sized(Availability("llamacpp"), GgufModel(model))
    lacks = "it needs a repository in Hugging Face form, not GGUF files"
    return _gguf((str(model),), found.bytes, here=found.here, vllm=lacks)


def _of_path(path: Path) -> tuple[Availability, ...]:
    if not path.exists():
        raise ModelNotFound(f"there is no `{path}`", "give a GGUF file, or a folder with a `config.json`")
    if path.is_dir():
        none = "it needs a GGUF file, not a folder"
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        offer = Availability("vllm", (str(path),), bytes=size, exact=True, here=True)
        if not (path / "config.json").is_file():
            offer = Availability("vllm", lacks="the folder holds no `config.json`")
        return Availability("llamacpp", lacks=none), Availability("ollama", lacks=none), offer
    files = [file for file in (path, find_mmproj(path)) if file]
    size = sum(file.stat().st_size for file in files)
    return _gguf(tuple(map(str, files)), size, here=True, vllm="it needs a folder in Hugging Face form")


def _of_tag(tag: OllamaTag) -> tuple[Availability, ...]:
    own = Availability("ollama", (str(tag),), here=ollama.has(tag.name))
    vllm = Availability("vllm", lacks="it needs a repository in Hugging Face form")
    if tag.name.startswith(HUB_HOSTS):
        repo, _, quant = tag.name.partition("/")[2].partition(":")
        llamacpp, _, _ = _of_gguf(HubRepo(repo, quant=quant))
        return llamacpp, own, vllm
    return Availability("llamacpp", lacks="a model of Ollama's registry, which is served there"), own, vllm


def _gguf(files: tuple[str, ...], size: int = 0, *, here: bool = False, vllm: str) -> tuple[Availability, ...]:
    """Of GGUF files: Ollama imports them, which makes a copy in its own store."""
    offer = Availability("llamacpp", files, bytes=size, exact=size > 0, here=here)
    return offer, replace(offer, engine="ollama", here=False), Availability("vllm", lacks=vllm)
