"""Sizes and shapes of a model in Hugging Face form, from its config.json and the headers of its safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from llmdeploy.errors import ModelInvalid, ModelNotFound
from llmdeploy.models import safetensors, source
from llmdeploy.models.facts import UNKNOWN_LENGTH, ModelFacts
from llmdeploy.models.gguf_header import AT_ITS_SOURCE
from llmdeploy.models.reference import HubFile
from llmdeploy.models.source import Listing

CONFIG = "config.json"
STATEFUL = ("linear_attention", "mamba", "conv")
LAYERS_HEADS_HIDDEN = ("num_hidden_layers", "num_attention_heads", "hidden_size")
LARGEST = 2**63 - 1
LARGEST_CONFIG = 16 * 1024**2
FEW = 8
"""The most files at a source whose headers are read: each takes two requests."""


class Files(Protocol):
    """The files of one model, on this machine or at their source."""

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

    def names(self) -> Sequence[str]:
        return [file.name for file in self.path.iterdir()] if self.path.is_dir() else []

    def config(self) -> dict[str, Any]:
        return json_object(self.path / CONFIG)

    def tensor_bytes(self, names: Sequence[str]) -> int:
        return sum(self._tensor_bytes(self.path / name) for name in names)

    def _tensor_bytes(self, file: Path) -> int:
        try:
            with file.open("rb") as stream:
                return safetensors.read(str(file), stream).tensor_bytes
        except OSError as error:
            raise _unreadable(str(file), error) from error


@dataclass(frozen=True)
class Repository:
    """A model at its source. All methods may raise DownloadFailed."""

    listing: Listing

    def names(self) -> Sequence[str]:
        return [file.path for file in self.listing.files]

    def config(self) -> dict[str, Any]:
        if CONFIG not in self.names():
            raise _no_config(str(self.listing.repo), CONFIG)
        with self._open(CONFIG) as file:
            return _object(self._name(CONFIG), file.read(LARGEST_CONFIG), AT_ITS_SOURCE)

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
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    layers, heads, hidden = (_number(text, name) for name in LAYERS_HEADS_HIDDEN)
    key_value, key, value = _cached_heads(text, heads, hidden)
    architectures = config.get("architectures")
    return ModelFacts(
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown",
        weights_bytes=files.tensor_bytes(weights(files.names())),
        kv_heads=_per_layer(text, key_value, min(layers, 100_000)),
        key_length=key,
        value_length=value,
        embedding_length=hidden,
        vocabulary_size=_number(text, "vocab_size", 0),
        context_length=_number(text, "max_position_embeddings", 0) or UNKNOWN_LENGTH,
        capabilities=("text", "image") if "vision_config" in config else ("text",),
        source="config.json and the safetensors files",
    )


def _cached_heads(text: dict[str, Any], heads: int, hidden: int) -> tuple[int, int, int]:
    """Return the number of heads that the KV cache has in a layer, and the lengths of a key and a value."""
    if latent := _number(text, "kv_lora_rank"):  # DeepSeek has one latent vector for all heads
        return 1, latent + _number(text, "qk_rope_head_dim"), 0
    length = _number(text, "head_dim", hidden // heads if heads else 0)
    return _number(text, "num_key_value_heads", heads), length, length


def _per_layer(text: dict[str, Any], heads: int, layers: int) -> tuple[int, ...]:
    """Return the KV heads of each layer: 0 for a layer that keeps a state of fixed size instead."""
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        return (heads,) * layers
    return tuple(0 if kind in STATEFUL else heads for kind in kinds)


def _number(table: dict[str, Any], name: str, default: int = 0) -> int:
    value = table.get(name)
    return value if isinstance(value, int) and 0 <= value <= LARGEST else default


def is_mlx(config: Path) -> bool:
    """Return whether a config.json is of a model that was quantized for MLX, which other engines cannot load.

    MLX writes the size of its groups and the number of bits, and unlike all others no method.
    """
    try:
        if b'"quantization"' not in config.read_bytes():  # most configurations need not be parsed
            return False
        document = json_object(config)
    except (OSError, ModelInvalid, ModelNotFound):
        return False
    quantization, other = document.get("quantization"), document.get("quantization_config") or {}
    is_own = isinstance(quantization, dict) and {"group_size", "bits"} <= quantization.keys()
    return is_own and not (isinstance(other, dict) and "quant_method" in other)


def json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model. Raises ModelNotFound, ModelInvalid."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise _no_config(str(file.parent), file.name) from None
    except OSError as error:
        raise _unreadable(str(file), error) from error
    return _object(str(file), content, "fetch the file again")


def _object(name: str, content: bytes, hint: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"`{name}` cannot be read: {error}", hint) from error
    if not isinstance(document, dict):
        raise ModelInvalid(f"`{name}` is not a JSON object", hint)
    return document


def _no_config(where: str, name: str) -> ModelNotFound:
    return ModelNotFound(f"`{where}` holds no `{name}`", "a model in Hugging Face form is a folder with one")


def _unreadable(name: str, error: OSError) -> ModelInvalid:
    return ModelInvalid(f"`{name}` cannot be read: {error}", "fetch the file again")
