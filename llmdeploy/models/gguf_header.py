"""The header of a GGUF file: its fields, and the sizes of its tensors.

This module reads it without `gguf.GGUFReader`, which builds an array for every token and takes 7 s for a vocabulary of
150,000 tokens; this takes 0.1 s. The block sizes of the tensor types are taken from the package `gguf`.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import difflib
import math
import os
import shlex
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from llmdeploy import bounded_file
from llmdeploy.errors import LlmdeployError, ModelInvalid, ModelNotFound
from llmdeploy.models.gguf_cursor import MOST_FIELDS, MOST_TENSORS, SCALARS, Cursor, Damaged
from llmdeploy.text import listed, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedReader

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_LEAST_FIELD, _LEAST_TENSOR = 13, 24
"""The fewest bytes of a field (name, type and a byte) and of a tensor (name, lengths, type and offset)."""
AT_ITS_SOURCE = "take another file: this one is damaged at its source"


@dataclass(frozen=True)
class Header:
    """The header of one GGUF file."""

    name: str
    """The path of the file, or its address at the source."""
    fields: Mapping[str, Any]
    """Numbers, texts and tuples of numbers. Instead of an array of texts, its length; instead of a long array of
    numbers, an empty tuple: nobody needs the values."""
    tensor_bytes: int
    """Bytes of all tensors."""
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name -> shape; the dimension whose elements are adjacent comes first."""

    @property
    def is_projector(self) -> bool:
        return self.fields.get("general.type") == "mmproj" or self.fields.get("general.architecture") == "clip"


def read(path: Path) -> Header:
    """Read the header of a file. Raises ModelNotFound if it is missing, ModelInvalid if it is not a whole GGUF file."""
    try:
        with bounded_file.opened(path, 1 << 18) as file:
            return _read_header(str(path), file, os.fstat(file.fileno()).st_size)
    except LlmdeployError:
        raise
    except IsADirectoryError:
        raise _is_a_folder(path) from None
    except bounded_file.NotRegular:
        raise ModelInvalid(f"`{path}` is a device or a pipe, not a GGUF file", "give a `.gguf` file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise _not_there(path) from None
    except PermissionError:
        raise ModelInvalid(
            f"`{path}` cannot be read: permission denied",
            f"`{shlex.join(['ls', '-ld', str(path.parent), str(path)])}` shows who may read it",
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelInvalid(f"`{path}` cannot be read: {reason}", "check the path and the disk it is on") from error


def read_remote(name: str, file: BinaryIO) -> Header:
    """Read the header of a file at its source, whose address is `name`. Raises ModelInvalid, and what `file` raises."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return _read_header(name, file, size)
    except ModelInvalid as error:
        raise ModelInvalid(error.message, AT_ITS_SOURCE) from None
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"`{name}` cannot be read: {error}", AT_ITS_SOURCE) from error


def _read_header(name: str, file: BinaryIO, size: int) -> Header:
    magic = file.read(len(_MAGIC))
    if not magic:
        raise ModelInvalid(f"`{name}` is empty", "the download did not finish: fetch it again")
    if magic != _MAGIC:
        raise ModelInvalid(
            f"`{name}` is not a GGUF file, whatever its name says",
            f"`{shlex.join(['head', '-c', '200', name])}` shows what it is; "
            "a web page or a Git LFS pointer is a failed download",
        )
    try:
        fields, tensors, needed = _parse(Cursor(cast("BufferedReader", file), size))
    except Damaged as damage:
        raise damaged(name, str(damage)) from None
    if needed > size:
        raise damaged(name, f"{size:,} bytes are there and {needed:,} are needed")
    sizes = sum(tensor.size for tensor in tensors)
    return Header(name, fields, sizes, {tensor.name: tensor.shape for tensor in tensors})


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the first tensor."""
    size: int
    """Bytes."""


def _parse(cursor: Cursor) -> tuple[dict[str, Any], list[_Tensor], int]:
    """Return the fields, the tensors, and the number of bytes that the file needs; the magic has been read."""
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise Damaged(f"it has GGUF version {version}, and only versions 2 and 3 can be read")
    tensor_count = cursor.count("tensors", _LEAST_TENSOR, MOST_TENSORS)
    field_count = cursor.count("fields", _LEAST_FIELD, MOST_FIELDS)
    fields = {}
    for _ in range(field_count):
        key = cursor.name()
        fields[key] = _value(cursor, cursor.number("I"))
    tensors = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise Damaged(f"its alignment is `{plain(str(alignment))}`")
    start = -(-cursor.tell() // alignment) * alignment
    end = max((start + tensor.offset + tensor.size for tensor in tensors), default=0)
    return fields, tensors, max(end, cursor.tell() + sum(tensor.size for tensor in tensors))


def _value(cursor: Cursor, kind: int) -> Any:
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise Damaged(f"it has a field of the unknown type {kind}")
    item = cursor.number("I")
    if item in SCALARS:
        return cursor.numbers(SCALARS[item])
    if item != _STRING:
        raise Damaged(f"it has an array of the unknown type {item}")
    return cursor.skip_texts()


def _tensor(cursor: Cursor) -> _Tensor:
    types = _types()
    name, shape = cursor.name(), cursor.shape()
    kind, offset = cursor.number("I"), cursor.number("Q")
    try:
        block_elements, block_bytes = types.GGML_QUANT_SIZES[types.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise Damaged(f"it has a tensor of the unknown type {kind}, perhaps newer than the installed `gguf`") from None
    return _Tensor(name, shape, offset, math.prod(shape) // block_elements * block_bytes)


def quantization(header: Header) -> str:
    """Return the quantization as in names of files, such as `Q4_K_M` or `F16`; empty if the header has none."""
    try:
        name: str = _types().LlamaFileType(header.fields.get("general.file_type")).name
    except ValueError:
        return ""
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


@cache
def _types() -> Any:
    """Load the constants of the package `gguf` alone: the package imports NumPy, 16 MB for the life of a service."""
    package = find_spec("gguf")
    assert package is not None
    assert package.submodule_search_locations
    spec = spec_from_file_location("_gguf_constants", Path(package.submodule_search_locations[0]) / "constants.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Errors of files that are not GGUF files


def damaged(name: str, detail: str) -> ModelInvalid:
    return ModelInvalid(f"`{name}` is truncated or damaged: {detail}", "fetch the file again")


def _not_there(path: Path) -> ModelNotFound:
    if not path.parent.is_dir():
        return ModelNotFound(f"there is no file `{path}`", f"there is no folder `{path.parent}` either")
    names = [name.name for name in path.parent.glob("*.gguf") if name.is_file()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or sorted(names)[:3]
    hint = f"`{path.parent}` has {listed(near)}" if near else "`llmdeploy models` lists names that need no file"
    return ModelNotFound(f"there is no file `{path}`", hint)


def _is_a_folder(path: Path) -> ModelInvalid:
    names = sorted(name.name for name in path.glob("*.gguf"))
    hint = f"give one of its files: {listed(names[:5])}" if names else "give a `.gguf` file"
    return ModelInvalid(f"`{path}` is a folder, not a GGUF file", hint)
