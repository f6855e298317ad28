"""Sizes and shapes of a model (`ModelFacts`), read from the headers of its GGUF files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from llmdeploy.errors import ModelInvalid
from llmdeploy.models import gguf_header, source
from llmdeploy.models.gguf_header import Header
from llmdeploy.models.reference import HubFile
from llmdeploy.text import listed, plain

UNKNOWN_LENGTH = 2**31
"""The context length, in tokens, of a model whose files do not state one: larger than any that a user sets."""

LARGEST = 2**32 - 1
"""The largest number that is believed: GGUF's numbers of layers, heads and tokens have 32 bits."""
MOST_LAYERS = 10_000
"""The most layers: their number comes from the file, and a wrong one must not fill the memory."""
LONGEST_NAME = 100
"""The most letters of an architecture's name."""
MOST_PARTS = 512
"""The most files of a split model."""

Place = Path | HubFile
"""A file on this machine, or one at its source."""

_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that planning needs. Sizes of files are in bytes, lengths in elements or tokens."""

    architecture: str
    weights_bytes: int
    """Bytes of all tensors: the file without its header."""
    kv_heads: tuple[int, ...]
    """Number of KV heads of each layer."""
    key_length: int
    value_length: int
    embedding_length: int
    vocabulary_size: int
    context_length: int
    """The longest context that the model was trained for, in tokens."""
    mmproj_bytes: int = 0
    """Bytes of the tensors of a vision projector in a separate file; 0 if there is none."""
    capabilities: tuple[str, ...] = ("text",)
    """Capabilities: `text`, `image`, and those that only an engine knows: `tools`, `thinking`."""
    source: str = ""
    """The files that the facts were read from, for people."""

    @property
    def layers(self) -> int:
        return len(self.kv_heads)

    @property
    def sees_images(self) -> bool:
        return "image" in self.capabilities

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Return the bytes of KV cache for one token: the sum over layers of kv_heads x (key + value length) x bytes.

        This is llama.cpp's `KV self size`: right within 0.1 % on 44 of 45 start-up logs of real models. Layers with a
        sliding window or a recurrent state are counted in full, so it is an upper bound for models that have them.
        """
        return sum(self.kv_heads) * (self.key_length + self.value_length) * bytes_per_element


def parts(weights: Path) -> list[Path]:
    """Return all files of a model: more than one if it is split. Raises what `read_gguf` raises."""
    others = _other_parts(gguf_header.read(weights), weights)
    return [weights, *(part for part in others if isinstance(part, Path))]


def read_gguf(weights: Place, mmproj: Place | None = None) -> ModelFacts:
    """Return the facts of a model, with all parts of a split one, and its vision projector, here or at the source.

    Raises ModelNotFound if a file is missing, ModelInvalid if one cannot be a model or a projector, and DownloadFailed
    if the source cannot be reached.
    """
    first = _header(weights)
    _check_kind(first, weights)
    parts = [first, *(_header(part) for part in _other_parts(first, weights))]
    return of_headers(parts, _header(mmproj) if mmproj else None, f"header of {_path(weights).name}")


def of_headers(parts: Sequence[Header], projector: Header | None, source: str) -> ModelFacts:
    """Return the facts of a model from the headers of all parts and of its vision projector. Raises ModelInvalid."""
    if projector is not None and not projector.is_projector:
        raise ModelInvalid(
            f"`{projector.name}` is not a vision projector",
            "a projector is a file such as `mmproj-F16.gguf`; without one: leave `--mmproj` out",
        )
    facts = _facts(parts[0], sum(part.tensor_bytes for part in parts), projector.tensor_bytes if projector else 0)
    return replace(facts, source=source)


def _header(place: Place) -> Header:
    if isinstance(place, Path):
        return gguf_header.read(place)
    with source.origin(place.source).open_remote(place) as file:
        return gguf_header.read_remote(str(place), file)


def _path(place: Place) -> PurePath:
    return place if isinstance(place, Path) else PurePosixPath(place.file)


def _facts(header: Header, weights_bytes: int, mmproj_bytes: int) -> ModelFacts:
    architecture = header.fields.get("general.architecture")
    if not isinstance(architecture, str) or len(architecture) > LONGEST_NAME:
        raise _missing(header, "general.architecture")

    def number(key: str, default: int | None = None, least: int = 0) -> int:
        value = header.fields.get(f"{architecture}.{key}", default)
        if not isinstance(value, int) or not least <= value <= LARGEST:
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
        context_length=number("context_length", least=1),
        mmproj_bytes=mmproj_bytes,
        capabilities=("text", *(["image"] if mmproj_bytes else []), *(["tools"] if _calls_tools(header) else [])),
    )


def _calls_tools(header: Header) -> bool:
    """Return whether the chat template, which the people who trained the model wrote, mentions tools."""
    template = header.fields.get("tokenizer.chat_template")
    return isinstance(template, str) and re.search(r"\btools\b", template) is not None


def _per_layer(header: Header, key: str, layers: int) -> tuple[int, ...]:
    """Return the values of a field that is one number for all layers, or an array with a number for each layer."""
    value = header.fields.get(key)
    if not 0 < layers <= MOST_LAYERS:
        raise gguf_header.damaged(header.name, f"it claims {layers} layers")
    if isinstance(value, int) and _is_count(value):
        return (value,) * layers
    if isinstance(value, tuple) and len(value) == layers and all(map(_is_count, value)):
        return value
    raise _missing(header, key)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST


def _missing(header: Header, key: str) -> ModelInvalid:
    return ModelInvalid(
        f"the header of `{header.name}` has no valid `{plain(key)}`, which every model needs",
        "it was converted by an old or broken tool: convert it again with llama.cpp, or download another file",
    )


def _check_kind(header: Header, place: Place) -> None:
    kind = header.fields.get("general.type", "model")
    if header.is_projector:
        option = f" and this one with `{shlex.join(['--mmproj', str(place)])}`" if isinstance(place, Path) else ""
        raise ModelInvalid(
            f"`{header.name}` is a vision projector, not a model", f"give the model's own file first{option}"
        )
    if kind != "model":
        raise ModelInvalid(
            f"`{header.name}` is of type `{plain(str(kind))}`, not a model", "give the file of the model itself"
        )


def _other_parts(header: Header, place: Place) -> list[Place]:
    """Return the other files of a split model, in order."""
    count, number = header.fields.get("split.count", 1), header.fields.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or count <= 1:
        return []
    if count > MOST_PARTS or not 0 <= number < count:
        raise gguf_header.damaged(header.name, f"it claims to be part {number + 1} of {count} of a model")
    match = _PART.fullmatch(_path(place).name)
    stem = match["stem"] if match else _path(place).stem
    parts = [_beside(place, f"{stem}-{part + 1:05}-of-{count:05}.gguf") for part in range(count)]
    if number != 0 or parts[0] != place:
        raise ModelInvalid(
            f"`{header.name}` is part {number + 1} of {count} of a split model",
            f"give the first part, under its own name: `{parts[0]}`",
        )
    here = [part for part in parts if isinstance(part, Path)]
    if missing := [part.name for part in here if not part.is_file()]:
        raise ModelInvalid(
            f"`{header.name}` is one of {count} parts of a model, and {listed(missing)} is not beside it",
            f"put all parts into `{_path(place).parent}`",
        )
    return parts[1:]


def _beside(place: Place, name: str) -> Place:
    if isinstance(place, Path):
        return place.with_name(name)
    return replace(place, file=str(PurePosixPath(place.file).with_name(name)))
