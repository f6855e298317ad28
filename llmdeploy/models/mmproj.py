"""Which vision projector belongs to which model file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llmdeploy.models.reference import QUANT

if TYPE_CHECKING:
    from pathlib import Path


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
    models = {tuple(_words(name)) for name in [*names, weights] if "mmproj" not in name.lower()}

    def rank(name: str) -> tuple[int, bool, str]:
        is_f16 = re.search(r"(?<!b)f16", name.lower()) is not None
        return (-len(_words(name)), not is_f16, name)

    def belongs(name: str) -> bool:
        mine, its = _words(weights), _words(name)
        shared = min(len(mine), len(its))
        return mine[:shared] == its[:shared] if its else len(models) == 1

    return min(filter(belongs, projectors), key=rank, default=None)


def _words(name: str) -> list[str]:
    """The words of a file name that tell which model it is: no format, no quantization, no part number."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", name.lower().removesuffix(".gguf"))
    stem = stem.replace("mmproj", "").strip("-._ ")
    stem = re.sub(rf"(^|[-._])(i1-)?{QUANT}$", "", stem, flags=re.IGNORECASE)
    return [word for word in re.split(r"[-._ ]+", stem) if word not in {"", "model", "vision", "ggml"}]
