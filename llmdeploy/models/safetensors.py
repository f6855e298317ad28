"""The header of a safetensors file: what its tensors take, and how many numbers of which type they hold.

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
"""Beside weights in several files: which tensor is in which."""
LONGEST = 100_000_000
"""Bytes of a header: the format's own limit."""


@dataclass(frozen=True)
class SafetensorsHeader:
    tensor_bytes: int
    elements: Mapping[str, int]
    """Numbers of each type, by the format's names: `BF16`, `F8_E4M3`, `I32` (which may hold eight of 4 bits)."""


def read(name: str, file: BinaryIO) -> SafetensorsHeader:
    """Of a file, here or elsewhere, which is called `name`. Raises ModelInvalid where it is no whole one."""
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
    """The files that an index names; none where there is no index, or none that can be read."""
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
