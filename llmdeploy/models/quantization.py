"""The files of a GGUF repository that make one model: the parts of one quantization, and its vision projector."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from llmdeploy.errors import ModelNotFound
from llmdeploy.models.reference import QUANT

if TYPE_CHECKING:
    from pathlib import Path

BITS = (4, 5, 6, 8, 3, 16, 2, 32, 1)
"""Bits of a weight, in the order of preference if no quantization is named."""
FIRST = ("Q4_K_M", "Q4_K_S", "Q4_0", "MXFP4", "Q5_K_M", "Q6_K", "Q8_0", "Q3_K_M", "BF16", "F16", "Q2_K")
"""Quantizations that are preferred to others of the same number of bits."""

_NAMES = r"I?Q\d(?:_[A-Z0-9]+)*|TQ\d(?:_\d)?|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32|FP8"
_NAME = re.compile(rf"(?:^|[-._/ ])((?:UD-)?(?:{_NAMES}))(?=[-./ ]|$)", re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_NO_MODEL = ("mmproj", "imatrix")
_GGUF = ".gguf"


@dataclass(frozen=True)
class Choice:
    """The files of one model, as paths within a repository."""

    weights: tuple[str, ...]
    """The file of the weights; if they are split, the first part and then the others."""
    mmproj: str | None
    """The vision projector; None if there is none for this model."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.weights, self.mmproj) if self.mmproj else self.weights


def choose(paths: Iterable[str], quant: str = "", where: str = "the repository") -> Choice:
    """Return the files of a quantization; upper and lower case are the same.

    If none is named, it is Q4_K_M, as for Ollama and llama.cpp; else another of four bits, then more bits up to eight,
    then fewer. Raises ModelNotFound, which lists the quantizations of the repository.
    """
    paths = tuple(paths)
    every = models(paths)
    found = [path for path in every if _holds(path, quant)] if quant else every
    if not found:
        names = ", ".join(f"`{name}`" for name in sorted({*map(quant_of, every)} - {""}))
        hint = f"it has {names}" if names else "name a repository with GGUF files"
        what = f"GGUF file of the quantization `{quant}`" if quant else "GGUF file"
        raise ModelNotFound(f"{where} has no {what}", hint)
    return belonging(min(found, key=_rank), paths)


def belonging(weights: str, paths: Sequence[str]) -> Choice:
    """Return a file with the other parts of its model, and its projector from the same folder or one above."""
    name = PurePosixPath(weights).name
    for folder in PurePosixPath(weights).parents:
        if mmproj := choose_mmproj(name, _ggufs(folder, paths)):
            return Choice(_parts(weights), str(folder / mmproj))
    return Choice(_parts(weights), None)


def quant_of(path: str) -> str:
    """Return the quantization in the name of a file or of its folder, in capitals; empty if there is none."""
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(_stem(path)).name
    found = _NAME.findall(name) or _NAME.findall(folder)
    return str(found[-1]).upper() if found else ""


def models(paths: Iterable[str]) -> list[str]:
    """Return the paths that are models; of a split model, the first part."""
    return [
        path
        for path in paths
        if path.lower().endswith(_GGUF)
        and not any(word in PurePosixPath(path).name.lower() for word in _NO_MODEL)
        and ((part := _PART.search(path[: -len(_GGUF)])) is None or int(part[1]) == 1)
    ]


def find_mmproj(weights: Path) -> Path | None:
    """Return the vision projector in the folder of a model file, or None."""
    try:
        names = sorted(path.name for path in weights.parent.glob("*.gguf"))
    except OSError:
        return None
    name = choose_mmproj(weights.name, names)
    return None if name is None else weights.with_name(name)


def choose_mmproj(weights: str, names: list[str]) -> str | None:
    """Return the projector, among the GGUF files of a folder, that belongs to `weights`; None rather than a wrong one.

    A projector with the name of a model belongs to that model. A projector without the name of a model belongs to the
    only model of the folder.
    """
    projectors = [name for name in names if "mmproj" in name.lower() and name != weights]
    models = {tuple(_model_words(name)) for name in [*names, weights] if "mmproj" not in name.lower()}

    def rank(name: str) -> tuple[int, bool, str]:
        is_f16 = re.search(r"(?<!b)f16", name.lower()) is not None
        return (-len(_model_words(name)), not is_f16, name)

    def belongs(name: str) -> bool:
        mine, its = _model_words(weights), _model_words(name)
        shared = min(len(mine), len(its))
        return mine[:shared] == its[:shared] if its else len(models) == 1

    return min(filter(belongs, projectors), key=rank, default=None)


def _holds(path: str, quant: str) -> bool:
    """Return whether a file has a quantization. Unsloth's `UD-` may be left out, and F16 is the same as FP16."""
    name, wanted = quant_of(path), re.sub(r"^FP(?=16|32)", "F", quant.upper())
    return re.sub(r"^FP(?=16|32)", "F", name) in {wanted, f"UD-{wanted}"}


def _rank(path: str) -> tuple[int, int, bool, int, str]:
    name = quant_of(path)
    plain = name.removeprefix("UD-")
    bits = int(digits[0]) if (digits := re.search(r"\d+", plain)) else 0
    return (
        BITS.index(bits) if bits in BITS else len(BITS),
        FIRST.index(plain) if plain in FIRST else len(FIRST),
        plain != name,
        len(path),  # the name of the model itself is shorter than that of a variant
        path,
    )


def _parts(weights: str) -> tuple[str, ...]:
    part = _PART.search(weights[: -len(_GGUF)])
    if part is None:
        return (weights,)
    head, tail = weights[: part.start()], weights[-len(_GGUF) :]
    return tuple(f"{head}-{number:05}-of-{part[2]}{tail}" for number in range(1, int(part[2]) + 1))


def _ggufs(folder: PurePosixPath, paths: Iterable[str]) -> list[str]:
    """Return the names of the models and projectors in a folder."""
    found = (PurePosixPath(path) for path in paths if path.lower().endswith(_GGUF))
    return [path.name for path in found if path.parent == folder and "imatrix" not in path.name.lower()]


def _stem(path: str) -> str:
    """Return the path without `.gguf` and the number of a part."""
    return _PART.sub("", path[: -len(_GGUF)])


def _model_words(name: str) -> list[str]:
    """Return the words of a file name that identify the model, without format, quantization and part number."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", name.lower().removesuffix(".gguf"))
    stem = stem.replace("mmproj", "").strip("-._ ")
    stem = re.sub(rf"(^|[-._])(i1-)?{QUANT}$", "", stem, flags=re.IGNORECASE)
    return [word for word in re.split(r"[-._ ]+", stem) if word not in {"", "model", "vision", "ggml"}]
