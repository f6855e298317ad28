"""A model as GGUF files: what llama.cpp runs, and what Ollama can import."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from llmdeploy.errors import ModelNotFound
from llmdeploy.models import catalog, facts, hub
from llmdeploy.models.hub import OnProgress
from llmdeploy.models.mmproj import find_mmproj
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, ModelRef, OllamaTag


@dataclass(frozen=True)
class GgufModel:
    """The files of one model, here or still at the Hub."""

    weights: Path | HubFile
    mmproj: Path | HubFile | None = None
    """The vision projector; None for a model that sees no images."""

    def __str__(self) -> str:
        return " + ".join(str(file) for file in self.files)

    @property
    def files(self) -> tuple[Path | HubFile, ...]:
        return (self.weights, self.mmproj) if self.mmproj else (self.weights,)

    def present(self) -> bool:
        """Whether all of it is on this machine. Touches no network."""
        return all(_here(file) for file in self.files)

    def pull(self, on_progress: OnProgress) -> None:
        """Fetch what is missing. Raises DownloadFailed."""
        for file in self.files:
            if isinstance(file, HubFile) and not hub.cached(file):
                hub.download(file, on_progress)

    def paths(self) -> tuple[Path, Path | None]:
        """The weights and the projector on this machine. Raises ModelNotFound."""
        return _path(self.weights), _path(self.mmproj) if self.mmproj else None

    def local_files(self) -> tuple[Path, ...]:
        """Those on this machine."""
        return tuple(path for file in self.files if (path := _here(file)))

    def facts(self) -> facts.ModelFacts:
        """Raises ModelNotFound, ModelInvalid."""
        return facts.read_gguf(*self.paths())


def find(model: ModelRef, mmproj: Path | None = None) -> GgufModel:
    """The files of a model; `mmproj` names another projector. Raises ModelNotFound."""
    found = _files(model)
    if mmproj is None:
        return found
    if not mmproj.is_file():
        raise ModelNotFound(f"there is no file `{mmproj}`", "give the vision projector's path with `--mmproj`")
    return replace(found, mmproj=mmproj)


def _files(model: ModelRef) -> GgufModel:
    match model:
        case Path():
            if (model / "config.json").is_file():
                raise ModelNotFound(
                    f"`{model}` is a folder: a model in Hugging Face form, which runs on vLLM",
                    f"`llmdeploy serve {shlex.quote(str(model))} --engine vllm`, or give a GGUF file",
                )
            return GgufModel(model, find_mmproj(model))
        case HubRepo():
            raise ModelNotFound(
                f"`{model}` names a whole repository, which runs on vLLM",
                f"`llmdeploy serve {model} --engine vllm`, or name a GGUF file of it: `{model}/model-Q4_K_M.gguf`",
            )
        case HubFile():
            return GgufModel(model)
        case CatalogName():
            entry = catalog.find(model.name)
            return GgufModel(entry.weights, entry.mmproj)
        case OllamaTag():
            raise ModelNotFound(
                f"`{model}` is a model of Ollama's", f"serve it there: `llmdeploy serve {model} --engine ollama`"
            )


def _here(file: Path | HubFile) -> Path | None:
    return hub.cached(file) if isinstance(file, HubFile) else file


def _path(file: Path | HubFile) -> Path:
    path = _here(file)
    if path is None:
        raise ModelNotFound(f"`{file}` is not on this machine", "`llmdeploy serve` fetches it")
    return path
