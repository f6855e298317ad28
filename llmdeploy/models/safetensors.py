"""The header of a safetensors file: the bytes of its tensors, and how many numbers of each type they hold.

Layout: 8 bytes, the length of the header (little-endian); the header, a JSON object; the tensors, without a hole.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmdeploy.models import gguf_header

INDEX = "model.safetensors.index.json"
"""Name of the file that lists, for weights in several files, which tensor is in which of them."""
LONGEST = 100_000_000
"""The most bytes of a header: the limit of the format."""


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of one safetensors file."""

    tensor_bytes: int
    elements: Mapping[str, int]
    """Count of numbers of each type, by the format's names: `BF16`, `F8_E4M3`, `I32` (may hold eight of 4 bits)."""


def read(name: str, file: BinaryIO) -> SafetensorsHeader:
    """Read the header of the file `name`, on this machine or at its source. Raises ModelInvalid if it is not whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(LONGEST, size - 8):
        raise gguf_header.damaged(name, f"its header does not end within the {size:,} bytes that are there")
    try:
        header = _parse(json.loads(file.read(length)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        raise gguf_header.damaged(name, "its header is not one of safetensors") from None
    if (needed := 8 + length + header.tensor_bytes) > size:
        raise gguf_header.damaged(name, f"{size:,} bytes are there and {needed:,} are needed")
    return header


def indexed(index: Path | None) -> frozenset[str]:
    """Return the files that an index names; empty if it is missing or cannot be read."""
    try:
        return frozenset(json.loads(index.read_bytes())["weight_map"].values()) if index else frozenset()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return frozenset()


def _parse(tensors: dict[str, Any]) -> SafetensorsHeader:
    elements: Counter[str] = Counter()
    end = 0
    for name, tensor in tensors.items():
        if name != "__metadata__":
            elements[str(tensor["dtype"])] += math.prod(int(length) for length in tensor["shape"])
            end = max(end, int(tensor["data_offsets"][1]))
    return SafetensorsHeader(end, elements)
