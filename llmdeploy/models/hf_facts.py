"""Sizes and shapes of a model in Hugging Face form, from its config.json and the headers of its safetensors files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from llmdeploy import bounded_file
from llmdeploy.errors import ModelInvalid, ModelNotFound
from llmdeploy.models import safetensors, source
from llmdeploy.models.facts import LARGEST, LONGEST_NAME, MOST_LAYERS, UNKNOWN_LENGTH, ModelFacts
from llmdeploy.models.gguf_header import AT_ITS_SOURCE
from llmdeploy.models.reference import HubFile
from llmdeploy.models.source import Listing

CONFIG = "config.json"
STATEFUL = ("linear_attention", "mamba", "conv")
LAYERS_HEADS_HIDDEN = ("num_hidden_layers", "num_attention_heads", "hidden_size")
LARGEST_CONFIG = 4 * 1024**2
"""The most bytes of a config.json: one with the names of 20,000 classes has 1 MB."""
MOST_FILES = 1000
"""The most safetensors files of one model: the largest models have some hundred."""
FEW = 8
"""The most files at a source whose headers are read: each takes two requests."""


class Files(Protocol):
    """The files of one model, on this machine or at their source."""

    @property
    def place(self) -> str:
        """The path or the address of config.json, for people."""
        ...

    def names(self) -> Sequence[str]: ...

    def config(self) -> dict[str, Any]:
        """Return the content of config.json. Raises ModelNotFound, ModelInvalid."""
        ...

    def tensor_bytes(self, names: Sequence[str]) -> int:
        """Return the bytes of the tensors of these safetensors files. Raises ModelInvalid."""
        ...


@dataclass(frozen=True)
class Folder:
    """A model in a folder on this machine."""

    path: Path

    @property
    def place(self) -> str:
        return str(self.path / CONFIG)

    def names(self) -> Sequence[str]:
        return [file.name for file in self.path.iterdir()] if self.path.is_dir() else []

    def config(self) -> dict[str, Any]:
        return json_object(self.path / CONFIG)

    def tensor_bytes(self, names: Sequence[str]) -> int:
        return sum(self._tensor_bytes(self.path / name) for name in names)

    def _tensor_bytes(self, file: Path) -> int:
        try:
            with bounded_file.opened(file) as stream:
                return safetensors.read(str(file), stream).tensor_bytes
        except OSError as error:
            raise _unreadable(str(file), error) from error


@dataclass(frozen=True)
class Repository:
    """A model at its source. All methods may raise DownloadFailed."""

    listing: Listing

    @property
    def place(self) -> str:
        return self._name(CONFIG)

    def names(self) -> Sequence[str]:
        return [file.path for file in self.listing.files]

    def config(self) -> dict[str, Any]:
        if CONFIG not in self.names():
            raise _no_config(str(self.listing.repo), CONFIG)
        with self._open(CONFIG) as file:
            if file.seek(0, os.SEEK_END) > LARGEST_CONFIG:
                raise ModelInvalid(f"`{self.place}` has more than {LARGEST_CONFIG:,} bytes", AT_ITS_SOURCE)
            file.seek(0)
            return _object(self.place, file.read(LARGEST_CONFIG), AT_ITS_SOURCE)

    def tensor_bytes(self, names: Sequence[str]) -> int:
        """Return the bytes of the tensors: exact, unless there are many files and no total in an index.

        Then the sizes of the files are used, which count their headers too.
        """
        size = sum(file.size for file in self.listing.files if file.path in names)
        if len(names) > 1 and (total := self._total(names[0])) and 0.99 * size <= total <= size:
            return total
        return size if len(names) > FEW else sum(self._tensor_bytes(name) for name in names)

    def _tensor_bytes(self, name: str) -> int:
        try:
            with self._open(name) as file:
                return safetensors.read(self._name(name), file).tensor_bytes
        except ModelInvalid as error:
            raise ModelInvalid(error.message, AT_ITS_SOURCE) from None

    def _total(self, name: str) -> int:
        """Return the total size at the beginning of the index that goes with this file; 0 if there is none."""
        index = re.sub(r"(-\d+-of-\d+)?\.safetensors$", ".safetensors.index.json", name)
        if index not in self.names():
            return 0
        with self._open(index) as file:
            found = re.search(rb'"total_size"\s*:\s*(\d+)', file.read(4096))
        return int(found[1]) if found else 0

    def _open(self, name: str) -> BinaryIO:
        """Open a file at the commit of the listing, because the repository may change meanwhile."""
        repo = self.listing.repo
        file = HubFile(repo.repo, name, self.listing.commit or repo.revision, repo.source)
        return source.origin(repo.source).open_remote(file)

    def _name(self, name: str) -> str:
        repo = self.listing.repo
        return str(HubFile(repo.repo, name, repo.revision, repo.source))


def weights(names: Sequence[str]) -> list[str]:
    """Return the safetensors files that vLLM loads: the consolidated ones in Mistral's repositories, with both."""
    files = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    return [name for name in files if name.startswith("consolidated")] or files


def read(files: Files) -> ModelFacts:
    """Read the facts of a model. Raises ModelNotFound, ModelInvalid, and DownloadFailed if the files are remote."""
    config = files.config()
    text = config.get("text_config")
    numbers = _Numbers(files.place, text if isinstance(text, dict) else config)
    layers, heads, hidden = map(numbers.get, LAYERS_HEADS_HIDDEN)
    if layers > MOST_LAYERS:
        raise ModelInvalid(f"`{files.place}` claims {layers} layers", "take another model: this one cannot be right")
    key_value, key, value = _cached_heads(numbers, heads, hidden)
    names = weights(files.names())
    if len(names) > MOST_FILES:
        hint = "take another model: this one cannot be right"
        raise ModelInvalid(f"`{files.place}` comes with {len(names)} safetensors files", hint)
    return ModelFacts(
        architecture=_architecture(config),
        weights_bytes=files.tensor_bytes(names),
        kv_heads=_per_layer(numbers.table, key_value, layers),
        key_length=key,
        value_length=value,
        embedding_length=hidden,
        vocabulary_size=numbers.get("vocab_size"),
        context_length=numbers.get("max_position_embeddings") or UNKNOWN_LENGTH,
        capabilities=("text", "image") if "vision_config" in config else ("text",),
        source="config.json and the safetensors files",
    )


@dataclass(frozen=True)
class _Numbers:
    """The numbers in a config.json."""

    place: str
    table: dict[str, Any]

    def get(self, name: str, default: int = 0) -> int:
        """Return the number of that name, or `default` if there is none: some models have a list of numbers there.

        Raises ModelInvalid for a number that is impossible.
        """
        value = self.table.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return default
        if not 0 <= value <= LARGEST or int(value) != value:  # some tools write 4096.0
            raise ModelInvalid(
                f"`{self.place}` has `{name}` = `{_shown(value)}`, which no model has",
                "fetch the file again, or take another model",
            )
        return int(value)


def _shown(value: float) -> str:
    """Return a number in short: Python refuses to write an integer of thousands of digits."""
    return "a very large number" if isinstance(value, int) and abs(value) > LARGEST**2 else str(value)


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    return first if isinstance(first, str) and len(first) <= LONGEST_NAME else "unknown"


def _cached_heads(numbers: _Numbers, heads: int, hidden: int) -> tuple[int, int, int]:
    """Return the number of heads that the KV cache has in a layer, and the lengths of a key and a value."""
    if latent := numbers.get("kv_lora_rank"):  # DeepSeek has one latent vector for all heads
        return 1, latent + numbers.get("qk_rope_head_dim"), 0
    length = numbers.get("head_dim", hidden // heads if heads else 0)
    return numbers.get("num_key_value_heads", heads), length, length


def _per_layer(text: dict[str, Any], heads: int, layers: int) -> tuple[int, ...]:
    """Return the KV heads of each layer: 0 for a layer that keeps a state of fixed size instead."""
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        return (heads,) * layers
    return tuple(0 if kind in STATEFUL else heads for kind in kinds)


def is_mlx(config: Path) -> bool:
    """Return whether a config.json is of a model that was quantized for MLX, which other engines cannot load.

    MLX writes the size of its groups and the number of bits, and unlike all others no method.
    """
    try:
        content = bounded_file.read(config, LARGEST_CONFIG)
        if b'"quantization"' not in content:  # most configurations need not be parsed
            return False
        document = _object(str(config), content, "")
    except (OSError, ModelInvalid):
        return False
    quantization, other = document.get("quantization"), document.get("quantization_config") or {}
    is_own = isinstance(quantization, dict) and {"group_size", "bits"} <= quantization.keys()
    return is_own and not (isinstance(other, dict) and "quant_method" in other)


def json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model. Raises ModelNotFound, ModelInvalid."""
    try:
        content = bounded_file.read(file, LARGEST_CONFIG)
    except FileNotFoundError:
        raise _no_config(str(file.parent), file.name) from None
    except OSError as error:
        raise _unreadable(str(file), error) from error
    return _object(str(file), content, "fetch the file again")


def _object(name: str, content: bytes, hint: str) -> dict[str, Any]:
    try:
        document = bounded_file.json_value(content)
    except ValueError as error:
        raise ModelInvalid(f"`{name}` cannot be read: {error}", hint) from error
    if not isinstance(document, dict):
        raise ModelInvalid(f"`{name}` is not a JSON object", hint)
    return document


def _no_config(where: str, name: str) -> ModelNotFound:
    return ModelNotFound(f"`{where}` holds no `{name}`", "a model in Hugging Face form is a folder with one")


def _unreadable(name: str, error: OSError) -> ModelInvalid:
    return ModelInvalid(f"`{name}` cannot be read: {error}", "fetch the file again")
