"""The files of one repository, as the models that they are: one for each quantization of GGUF files, or one in all."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from llmdeploy.models.mmproj import choose_mmproj
from llmdeploy.models.reference import QUANTIZATION, HubFile, HubRepo

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".npz")
"""How files end that hold a model; a repository without one is a tokenizer or a set of settings."""
GGUF_ENGINES = ("llamacpp", "ollama")
HF_ENGINES = ("vllm",)
INDEX = "model.safetensors.index.json"

_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(?=\.gguf$)")
_QUANT = re.compile(rf"(?:^|[-._/])(?P<quant>{QUANTIZATION})(?=[-._/]|$)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """One model of a repository."""

    reference: HubRepo | HubFile
    files: tuple[str, ...]
    """Paths within the repository."""
    engines: tuple[str, ...]
    detail: str = ""


def groups(repo: HubRepo, paths: Sequence[str], sharded: Mapping[str, Sequence[str]] | None = None) -> list[Group]:
    """The models among the files of a repository; its small files belong to each of them.

    `sharded`: the files that an index says are needed, by the index's path.
    """
    if not any(path.endswith(WEIGHTS) for path in paths):
        return []
    models = _gguf_groups(repo, [path for path in paths if path.endswith(".gguf")])
    taken = {path for model in models for path in model.files}
    rest = [path for path in paths if path not in taken]
    beside = tuple(path for path in rest if path.endswith(".gguf") or not path.endswith(WEIGHTS))
    models = [replace(model, files=(*model.files, *beside)) for model in models]
    if not models or any(path.endswith(".safetensors") for path in rest):
        models.append(_whole(repo, rest, (sharded or {}).get(INDEX, ())))
    return models


def quantization_of(path: str) -> str:
    """What the name of a GGUF file, or of its folder, says of its quantization; empty where it says nothing."""
    found = [match["quant"] for match in _QUANT.finditer(_PART.sub("", path).removesuffix(".gguf"))]
    return found[-1] if found else ""


def _gguf_groups(repo: HubRepo, paths: Sequence[str]) -> list[Group]:
    """One for each model file, its other parts and its projector with it."""
    models: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        if not _is_beside(path):
            models[_PART.sub("", path)].append(path)
    named = Counter(quantization_of(path).upper() for path in models)
    found = []
    for path, files in models.items():
        quant = quantization_of(path)
        reference = replace(repo, quant=quant) if quant and named[quant.upper()] == 1 else _file(repo, files[0])
        mmproj = _mmproj(files[0], paths)
        whole = len(files) == _count(files[0])
        found.append(
            Group(
                reference,
                (*files, *mmproj),
                GGUF_ENGINES if whole else (),
                "" if whole else "not all its parts are here",
            )
        )
    return found


def _whole(repo: HubRepo, paths: Sequence[str], needed: Sequence[str]) -> Group:
    """The repository in Hugging Face form."""
    weights = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if not weights or "config.json" not in paths:
        return Group(repo, tuple(paths), (), "no engine here runs its form")
    if any(path not in paths for path in needed):
        return Group(repo, tuple(paths), (), "not all its files are here")
    return Group(repo, tuple(paths), HF_ENGINES)


def _file(repo: HubRepo, path: str) -> HubFile:
    return HubFile(repo.repo, path, repo.revision, repo.source)


def _is_beside(path: str) -> bool:
    """Whether it is no model: a projector, or the data that a quantization was made with."""
    name = PurePosixPath(path).name.lower()
    return "mmproj" in name or "imatrix" in name


def _mmproj(path: str, paths: Sequence[str]) -> list[str]:
    """Its projector: in its folder, or in the top one."""
    for folder in dict.fromkeys((PurePosixPath(path).parent, PurePosixPath())):
        beside = {PurePosixPath(one).name: one for one in paths if PurePosixPath(one).parent == folder}
        if name := choose_mmproj(PurePosixPath(path).name, list(beside)):
            return [beside[name]]
    return []


def _count(path: str) -> int:
    match = _PART.search(path)
    return int(match["count"]) if match else 1
