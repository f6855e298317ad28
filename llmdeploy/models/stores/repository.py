"""The files of one repository, as the models that they are: one for each quantization of GGUF files, or one in all."""

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
"""How files end that hold a model; a repository without one is a tokenizer or a set of settings."""


@dataclass(frozen=True)
class Group:
    """One model of a repository."""

    reference: HubRepo | HubFile
    files: tuple[str, ...]
    """Paths within the repository."""
    formats: tuple[Format, ...]
    detail: str = ""


def groups(
    repo: HubRepo, paths: Sequence[str], needed: Collection[str] = (), config: Path | None = None
) -> list[Group]:
    """The models among the files of a repository; its small files belong to each of them.

    `needed`: the weights that its index names; `config`: its config.json on this machine.
    """
    if not any(path.endswith(WEIGHTS) for path in paths):
        return []
    models = _gguf_groups(repo, [path for path in paths if path.endswith(".gguf")])
    taken = {path for model in models for path in model.files}
    rest = [path for path in paths if path not in taken]
    beside = tuple(path for path in rest if path.endswith(".gguf") or not path.endswith(WEIGHTS))
    models = [replace(model, files=(*model.files, *beside)) for model in models]
    if not models or any(path.endswith(".safetensors") for path in rest):
        models.append(_whole(repo, rest, needed, config))
    return models


def _gguf_groups(repo: HubRepo, paths: Sequence[str]) -> list[Group]:
    """One for each model file, its other parts and its projector with it."""
    firsts = sorted(quantization.models(paths))
    named = Counter(map(quantization.quant_of, firsts))
    found = []
    for first in firsts:
        quant, choice = quantization.quant_of(first), quantization.belonging(first, paths)
        missing = set(choice.weights) - set(paths)
        found.append(
            Group(
                replace(repo, quant=quant) if named[quant] == 1 and quant else _file(repo, first),
                tuple(path for path in choice.paths if path in paths),
                () if missing else (GGUF,),
                "not all its parts are here" if missing else "",
            )
        )
    return found


def _whole(repo: HubRepo, paths: Sequence[str], needed: Collection[str], config: Path | None) -> Group:
    """The repository in Hugging Face form."""
    weights = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if not weights or "config.json" not in paths:
        return Group(repo, tuple(paths), (), "no engine here runs its form")
    if any(path not in paths for path in needed):
        return Group(repo, tuple(paths), (), "not all its files are here")
    if config and is_mlx(config):
        return Group(repo, tuple(paths), (MLX,), "it is quantized for MLX")
    return Group(repo, tuple(paths), (HF,))


def _file(repo: HubRepo, path: str) -> HubFile:
    return HubFile(repo.repo, path, repo.revision, repo.source)
