"""The header of a safetensors file: the bytes of its tensors, and how many numbers of each type they hold.

Layout: 8 bytes, the length of the header (little-endian); the header, a JSON object; the tensors, without a hole.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from llmdeploy import bounded_file
from llmdeploy.models import gguf_header

INDEX = "model.safetensors.index.json"
"""Name of the file that lists, for weights in several files, which tensor is in which of them."""
LONGEST = 32 * 1024**2
"""The most bytes of a header. The format allows 100 MB; a file of 50,000 tensors has 8 MB."""
LARGEST_INDEX = 48 * 1024**2
"""The most bytes of an index: one of 200,000 tensors has 20 MB."""
MOST_KEYS = 400_000
"""The most keys in a header or an index: a header has four for each tensor."""
LONGEST_TENSOR = 4096
"""The most bytes of the description of one tensor."""
LIMIT = 2**63
"""The limit of a tensor's lengths, its offsets and the number of its elements."""


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
    if not 2 <= length <= size - 8:
        raise gguf_header.damaged(name, f"its header does not end within the {size:,} bytes that are there")
    if length > LONGEST:
        raise gguf_header.damaged(name, f"its header has {length:,} bytes, and no model has more than {LONGEST:,}")
    try:
        header = _parse(file.read(length))
    except (ValueError, RecursionError):
        raise gguf_header.damaged(name, "its header is not one of safetensors") from None
    if (needed := 8 + length + header.tensor_bytes) > size:
        raise gguf_header.damaged(name, f"{size:,} bytes are there and {needed:,} are needed")
    return header


def indexed(index: Path | None) -> frozenset[str]:
    """Return the files that an index names; empty if it is missing or cannot be read."""
    if index is None:
        return frozenset()
    from msgspec import Struct, json

    class Index(Struct):
        weight_map: dict[str, str]

    try:
        content = bounded_file.read(index, LARGEST_INDEX)
        _require_few_keys(content)
        return frozenset(json.decode(content, type=Index).weight_map.values())
    except (OSError, ValueError, RecursionError):
        return frozenset()


def _parse(content: bytes) -> SafetensorsHeader:
    """Return the header in these bytes. Raises ValueError and RecursionError."""
    from msgspec import Raw, json

    _require_few_keys(content)
    decoder = _tensor_decoder()
    elements: Counter[str] = Counter()
    end = 0
    for name, raw in json.decode(content, type=dict[str, Raw]).items():
        if name == "__metadata__":
            continue
        if memoryview(raw).nbytes > LONGEST_TENSOR:
            raise ValueError(f"`{name}` is described in too many bytes")
        dtype, count, stop = _tensor(decoder.decode(raw))
        elements[dtype] += count
        end = max(end, stop)
    return SafetensorsHeader(end, elements)


@cache
def _tensor_decoder() -> Any:
    """Return the decoder of a tensor's description."""
    from msgspec import Struct, json

    class Tensor(Struct):
        dtype: str
        shape: list[int]
        data_offsets: tuple[int, int]

    return json.Decoder(Tensor)


def _tensor(tensor: Any) -> tuple[str, int, int]:
    """Return the type, the number of elements and the last offset of a tensor. Raises ValueError."""
    start, stop = tensor.data_offsets
    elements = 1
    for length in tensor.shape:
        elements *= length
        if not (0 <= length < LIMIT and 0 <= elements < LIMIT):
            raise ValueError("a tensor has more elements than can be counted")
    if not 0 <= start <= stop < LIMIT:
        raise ValueError("a tensor ends before it starts")
    return tensor.dtype, elements, stop


def _require_few_keys(content: bytes) -> None:
    """Raise ValueError for a JSON text that may have more keys than are read: each has a colon."""
    if content.count(b":") > MOST_KEYS:
        raise ValueError(f"it has more than {MOST_KEYS:,} keys")
