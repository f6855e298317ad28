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
"""Of a weight, in the order in which they are taken where no quantization is named."""
FIRST = ("Q4_K_M", "Q4_K_S", "Q4_0", "MXFP4", "Q5_K_M", "Q6_K", "Q8_0", "Q3_K_M", "BF16", "F16", "Q2_K")
"""Before others of as many bits."""

_NAMES = r"I?Q\d(?:_[A-Z0-9]+)*|TQ\d(?:_\d)?|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32|FP8"
_NAME = re.compile(rf"(?:^|[-._/ ])((?:UD-)?(?:{_NAMES}))(?=[-./ ]|$)", re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_NO_MODEL = ("mmproj", "imatrix")
_GGUF = ".gguf"


@dataclass(frozen=True)
class Choice:
    """Paths within a repository."""

    weights: tuple[str, ...]
    """The first part, then the others."""
    mmproj: str | None
    """The vision projector; None where there is none that belongs to it."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.weights, self.mmproj) if self.mmproj else self.weights


def choose(paths: Iterable[str], quant: str = "", where: str = "the repository") -> Choice:
    """The files of a quantization, upper and lower case alike.

    Where none is named: Q4_K_M, as Ollama and llama.cpp take it; else another of four bits, then more bits up to eight,
    then fewer. Raises ModelNotFound, with those there are.
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
    """A file with the other parts of its model, and with its projector: of its own folder or of one above."""
    name = PurePosixPath(weights).name
    for folder in PurePosixPath(weights).parents:
        if mmproj := choose_mmproj(name, _ggufs(folder, paths)):
            return Choice(_parts(weights), str(folder / mmproj))
    return Choice(_parts(weights), None)


def quant_of(path: str) -> str:
    """The quantization that the name of a file or of its folder tells, in capitals; empty where none does."""
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(_stem(path)).name
    found = _NAME.findall(name) or _NAME.findall(folder)
    return str(found[-1]).upper() if found else ""


def models(paths: Iterable[str]) -> list[str]:
    """Those that are models, of one in parts the first."""
    return [
        path
        for path in paths
        if path.lower().endswith(_GGUF)
        and not any(word in PurePosixPath(path).name.lower() for word in _NO_MODEL)
        and ((part := _PART.search(path[: -len(_GGUF)])) is None or int(part[1]) == 1)
    ]


def find_mmproj(weights: Path) -> Path | None:
    """The vision projector that lies beside a model file, or None."""
    try:
        names = sorted(path.name for path in weights.parent.glob("*.gguf"))
    except OSError:
        return None
    name = choose_mmproj(weights.name, names)
    return None if name is None else weights.with_name(name)


def choose_mmproj(weights: str, names: list[str]) -> str | None:
    """The projector among the GGUF files of a folder that belongs to `weights`: none is better than a wrong one.

    One named after the model belongs to it. One named after no model belongs to the only model of the folder.
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
    """Of a dynamic one of Unsloth's the `UD-` need not be named, and F16 is FP16."""
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
        len(path),  # the model's own name, before that of a variant
        path,
    )


def _parts(weights: str) -> tuple[str, ...]:
    part = _PART.search(weights[: -len(_GGUF)])
    if part is None:
        return (weights,)
    head, tail = weights[: part.start()], weights[-len(_GGUF) :]
    return tuple(f"{head}-{number:05}-of-{part[2]}{tail}" for number in range(1, int(part[2]) + 1))


def _ggufs(folder: PurePosixPath, paths: Iterable[str]) -> list[str]:
    """The models and projectors of a folder."""
    found = (PurePosixPath(path) for path in paths if path.lower().endswith(_GGUF))
    return [path.name for path in found if path.parent == folder and "imatrix" not in path.name.lower()]


def _stem(path: str) -> str:
    """Without `.gguf` and the number of a part."""
    return _PART.sub("", path[: -len(_GGUF)])


def _model_words(name: str) -> list[str]:
    """The words of a file name that tell which model it is: no format, no quantization, no part number."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", name.lower().removesuffix(".gguf"))
    stem = stem.replace("mmproj", "").strip("-._ ")
    stem = re.sub(rf"(^|[-._])(i1-)?{QUANT}$", "", stem, flags=re.IGNORECASE)
    return [word for word in re.split(r"[-._ ]+", stem) if word not in {"", "model", "vision", "ggml"}]
