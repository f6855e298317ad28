"""ModelFacts: sizes and shapes of a model, read from the headers of its GGUF files.

The header is read here and not with `gguf.GGUFReader`, which builds an array for every token and takes 7 s for a
vocabulary of 150,000; this takes 0.1 s. What the numbers in a header mean (block sizes of tensor types) is gguf's.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from llmdeploy.errors import LlmdeployError, ModelInvalid, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True)
class ModelFacts:
    """What planning needs to know of a model. Bytes are bytes; lengths are in elements or tokens."""

    architecture: str
    weights_bytes: int
    """Sum of the tensors' bytes: the file without its header."""
    kv_heads: tuple[int, ...]
    """One per layer."""
    key_length: int
    value_length: int
    embedding_length: int
    vocabulary_size: int
    context_length: int
    """The longest context the model was trained for."""
    mmproj_bytes: int = 0
    """0: sees no images."""
    source: str = ""

    @property
    def layers(self) -> int:
        return len(self.kv_heads)

    @property
    def sees_images(self) -> bool:
        return self.mmproj_bytes > 0

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Bytes of KV cache for one token of context: the sum over layers of kv_heads x (key + value length) x bytes.

        This is llama.cpp's `KV self size`: right within 0.1 % on 44 of 45 start-up logs of real models. Layers with a
        sliding window or a recurrent state are counted in full, so for models that have them it is an upper bound.
        """
        return sum(self.kv_heads) * (self.key_length + self.value_length) * bytes_per_element


def read_gguf(weights: Path, mmproj: Path | None = None) -> ModelFacts:
    """The facts of a model file, all parts of a split one counted, and of its vision projector.

    Raises ModelNotFound when a file is missing, and ModelInvalid when one cannot be a model or a projector.
    """
    header = _read_file(weights)
    _check_kind(header)
    parts = [header, *(_read_file(part) for part in _other_parts(header))]
    projector = None if mmproj is None else _read_file(mmproj)
    if projector is not None and not projector.is_projector:
        raise ModelInvalid(
            f"`{projector.path}` is not a vision projector",
            "a projector is a file such as `mmproj-F16.gguf`; without one: leave `--mmproj` out",
        )
    return _facts(header, sum(part.tensor_bytes for part in parts), projector.tensor_bytes if projector else 0)


# --- Which projector belongs to which model


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
    stem = re.sub(r"(^|[-._])(ud-|i1-)?(i?q\d\w*|tq\d\w*|bf16|f16|f32|fp16|fp32|fp8|mxfp4\w*)$", "", stem)
    return [word for word in re.split(r"[-._ ]+", stem) if word not in {"", "model", "vision", "ggml"}]


# --- From a header to facts


@dataclass(frozen=True)
class _Header:
    path: Path
    fields: Mapping[str, Any]
    """Numbers, texts and tuples of numbers; an array of texts is there as its length."""
    tensor_bytes: int

    @property
    def is_projector(self) -> bool:
        return self.fields.get("general.type") == "mmproj" or self.fields.get("general.architecture") == "clip"


def _facts(header: _Header, weights_bytes: int, mmproj_bytes: int) -> ModelFacts:
    architecture = header.fields.get("general.architecture")
    if not isinstance(architecture, str):
        raise _missing(header, "general.architecture")

    def number(key: str, default: int | None = None) -> int:
        value = header.fields.get(f"{architecture}.{key}", default)
        if not isinstance(value, int) or value < 0:
            raise _missing(header, f"{architecture}.{key}")
        return value

    layers, embedding = number("block_count"), number("embedding_length")
    heads = _per_layer(header, f"{architecture}.attention.head_count", layers)
    key_value = f"{architecture}.attention.head_count_kv"
    # A layer without attention has no heads; a model of only such layers has no head size either.
    head_size = embedding // next((count for count in heads if count > 0), embedding + 1)
    return ModelFacts(
        architecture=architecture,
        weights_bytes=weights_bytes,
        kv_heads=_per_layer(header, key_value, layers) if key_value in header.fields else heads,
        key_length=number("attention.key_length", head_size),
        value_length=number("attention.value_length", head_size),
        embedding_length=embedding,
        vocabulary_size=number("vocab_size", header.fields.get("tokenizer.ggml.tokens")),
        context_length=number("context_length"),
        mmproj_bytes=mmproj_bytes,
        source=f"header of {header.path.name}",
    )


def _per_layer(header: _Header, key: str, layers: int) -> tuple[int, ...]:
    """A field that is one number for all layers, or an array with one for each."""
    value = header.fields.get(key)
    if isinstance(value, int):
        # The file says how many layers it has: a wrong number must not fill the memory.
        if not 0 < layers <= 100_000:
            raise _damaged(header.path, f"it claims {layers} layers")
        return (value,) * layers
    if isinstance(value, tuple) and len(value) == layers and all(isinstance(item, int) for item in value):
        return value
    raise _missing(header, key)


def _missing(header: _Header, key: str) -> ModelInvalid:
    return ModelInvalid(
        f"`{header.path}` does not say its `{key}`, which a model must",
        "it was converted by an old or broken tool: convert it again with llama.cpp, or download another file",
    )


def _check_kind(header: _Header) -> None:
    kind = header.fields.get("general.type", "model")
    if header.is_projector:
        raise ModelInvalid(
            f"`{header.path}` is a vision projector, not a model",
            f"give the model's own file first and this one with `{_command('--mmproj', header.path)}`",
        )
    if kind != "model":
        raise ModelInvalid(f"`{header.path}` is of type `{kind}`, not a model", "give the file of the model itself")


def _other_parts(header: _Header) -> list[Path]:
    """The other files of a split model, in order."""
    count, number = header.fields.get("split.count", 1), header.fields.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or count <= 1:
        return []
    match = _PART.fullmatch(header.path.name)
    stem = match["stem"] if match else header.path.stem
    parts = [header.path.with_name(f"{stem}-{part + 1:05}-of-{count:05}.gguf") for part in range(count)]
    if number != 0 or parts[0] != header.path:
        raise ModelInvalid(
            f"`{header.path}` is part {number + 1} of {count} of a split model",
            f"give the first part, under its own name: `{parts[0]}`",
        )
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ModelInvalid(
            f"`{header.path}` is one of {count} parts of a model, and {_listed(missing)} is not beside it",
            f"put all parts into `{header.path.parent}`",
        )
    return parts[1:]


# --- From a file to a header


def _read_file(path: Path) -> _Header:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _is_a_folder(path)
        if not stat.S_ISREG(status.st_mode):
            raise ModelInvalid(f"`{path}` is a device or a pipe, not a GGUF file", "give a `.gguf` file")
        with path.open("rb", buffering=1 << 18) as file:
            return _read_header(path, file, status.st_size)
    except LlmdeployError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise _not_there(path) from None
    except PermissionError:
        raise ModelInvalid(
            f"`{path}` cannot be read: permission denied",
            f"`{_command('ls -ld', path.parent, path)}` shows who may read it",
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelInvalid(f"`{path}` cannot be read: {reason}", "check the path and the disk it is on") from error


def _read_header(path: Path, file: BinaryIO, size: int) -> _Header:
    magic = file.read(len(_MAGIC))
    if not magic:
        raise ModelInvalid(f"`{path}` is empty", "the download did not finish: fetch it again")
    if magic != _MAGIC:
        raise ModelInvalid(
            f"`{path}` is not a GGUF file, whatever its name says",
            f"`{_command('head -c 200', path)}` shows what it is; a web page or a Git LFS pointer is a failed download",
        )
    try:
        fields, tensor_bytes, needed = _parse(_Cursor(file, size))
    except _Damaged as damage:
        raise _damaged(path, str(damage)) from None
    if needed > size:
        raise _damaged(path, f"{size:,} bytes are there and {needed:,} are needed")
    return _Header(path, fields, tensor_bytes)


class _Damaged(Exception):
    """The bytes are no GGUF header."""


@dataclass(frozen=True)
class _Cursor:
    file: BinaryIO
    size: int

    def numbers(self, form: str, count: int = 1) -> tuple[Any, ...]:
        """The next `count` little-endian numbers."""
        self.check(count * struct.calcsize(form))
        layout = struct.Struct(f"<{count}{form}")
        return layout.unpack(self.file.read(layout.size))

    def number(self, form: str) -> Any:
        return self.numbers(form)[0]

    def text(self) -> str:
        length = self.number("Q")
        self.check(length)
        return self.file.read(length).decode("utf-8", errors="replace")

    def skip_texts(self, count: int) -> None:
        """Texts are skipped without being made: a vocabulary has 150,000."""
        read, seek, length = self.file.read, self.file.seek, struct.Struct("<Q")
        try:
            for _ in range(count):
                seek(length.unpack(read(8))[0], 1)
        except (struct.error, OSError, OverflowError):
            self.check(self.size)
        self.check(0)

    def check(self, count: int) -> None:
        """Refuse to go on when fewer than `count` bytes are left: a damaged length must not fill the memory."""
        if self.file.tell() + count > self.size:
            raise _Damaged(f"its header does not end within the {self.size:,} bytes that are there")


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], int, int]:
    """The fields, the sum of the tensors' bytes, and where the last tensor ends; the magic has been read."""
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise _Damaged(f"it says GGUF version {version}, and versions 2 and 3 can be read")
    tensor_count, field_count = cursor.numbers("Q", 2)
    fields = {}
    for _ in range(field_count):
        key = cursor.text()
        fields[key] = _value(cursor, cursor.number("I"))
    tensors = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise _Damaged(f"its alignment is `{alignment}`")
    start = math.ceil(cursor.file.tell() / alignment) * alignment
    end = max((start + offset + size for offset, size in tensors), default=0)
    return fields, sum(size for _, size in tensors), end


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise _Damaged(f"it has a field of the unknown type {kind}")
    item, count = cursor.number("I"), cursor.number("Q")
    if item in _SCALARS:
        return cursor.numbers(_SCALARS[item], count)
    if item != _STRING:
        raise _Damaged(f"it has an array of the unknown type {item}")
    cursor.skip_texts(count)
    return count


def _tensor(cursor: _Cursor) -> tuple[int, int]:
    """Offset and size of the next tensor, both in bytes."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor.text()
    elements = math.prod(cursor.numbers("Q", cursor.number("I")))
    kind, offset = cursor.number("I"), cursor.number("Q")
    try:
        block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _Damaged(f"it has a tensor of the unknown type {kind}, perhaps newer than the installed `gguf`") from None
    return offset, elements // block_elements * block_bytes


# --- What is told of a file that is none


def _damaged(path: Path, detail: str) -> ModelInvalid:
    return ModelInvalid(f"`{path}` is truncated or damaged: {detail}", "fetch the file again")


def _not_there(path: Path) -> ModelNotFound:
    if not path.parent.is_dir():
        return ModelNotFound(f"there is no file `{path}`", f"there is no folder `{path.parent}` either")
    names = [name.name for name in path.parent.glob("*.gguf") if name.is_file()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or sorted(names)[:3]
    hint = f"`{path.parent}` has {_listed(near)}" if near else "`llmdeploy models` lists names that need no file"
    return ModelNotFound(f"there is no file `{path}`", hint)


def _is_a_folder(path: Path) -> ModelInvalid:
    names = sorted(name.name for name in path.glob("*.gguf"))
    hint = f"give one of its files: {_listed(names[:5])}" if names else "give a `.gguf` file"
    return ModelInvalid(f"`{path}` is a folder, not a GGUF file", hint)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _command(words: str, *paths: Path) -> str:
    return " ".join([words, *(shlex.quote(str(path)) for path in paths)])
