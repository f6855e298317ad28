"""The models in the files of one repository: one for each quantization of GGUF files, or one for all files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmdeploy.models import quantization
from llmdeploy.models.hf_facts import is_mlx
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.weights import GGUF, HF, MLX, Format

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".npz")
"""Suffixes of weights; a repository without such a file has a tokenizer or settings alone."""


@dataclass(frozen=True)
class RepositoryModel:
    """One model of a repository."""

    reference: HubRepo | HubFile
    files: tuple[str, ...]
    """Paths within the repository."""
    formats: tuple[Format, ...]
    detail: str = ""


def models_in(
    repo: HubRepo, paths: Sequence[str], needed: Collection[str] = (), config: Path | None = None
) -> list[RepositoryModel]:
    """Return the models among the files of a repository; its small files belong to each of them.

    `needed`: the weights that its index names; `config`: its config.json on this machine.
    """
    if not any(path.endswith(WEIGHTS) for path in paths):
        return []
    models = _gguf_models(repo, [path for path in paths if path.endswith(".gguf")])
    taken = {path for model in models for path in model.files}
    rest = [path for path in paths if path not in taken]
    beside = tuple(path for path in rest if path.endswith(".gguf") or not path.endswith(WEIGHTS))
    models = [replace(model, files=(*model.files, *beside)) for model in models]
    if not models or any(path.endswith(".safetensors") for path in rest):
        models.append(_whole(repo, rest, needed, config))
    return models


def _gguf_models(repo: HubRepo, paths: Sequence[str]) -> list[RepositoryModel]:
    """Return a model for each GGUF file, with its other parts and its projector."""
    firsts = sorted(quantization.models(paths))
    named = Counter(map(quantization.quant_of, firsts))
    found = []
    for first in firsts:
        quant, choice = quantization.quant_of(first), quantization.belonging(first, paths)
        missing = set(choice.weights) - set(paths)
        found.append(
            RepositoryModel(
                replace(repo, quant=quant) if named[quant] == 1 and quant else _file(repo, first),
                tuple(path for path in choice.paths if path in paths),
                () if missing else (GGUF,),
                "not all its parts are here" if missing else "",
            )
        )
    return found


def _whole(repo: HubRepo, paths: Sequence[str], needed: Collection[str], config: Path | None) -> RepositoryModel:
    """Return the repository as one model in Hugging Face form."""
    weights = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if not weights or "config.json" not in paths:
        return RepositoryModel(repo, tuple(paths), (), "no engine of llmdeploy can load it")
    if any(path not in paths for path in needed):
        return RepositoryModel(repo, tuple(paths), (), "not all its files are here")
    if config and is_mlx(config):
        return RepositoryModel(repo, tuple(paths), (MLX,), "it is quantized for MLX")
    return RepositoryModel(repo, tuple(paths), (HF,))


def _file(repo: HubRepo, path: str) -> HubFile:
    return HubFile(repo.repo, path, repo.revision, repo.source)
