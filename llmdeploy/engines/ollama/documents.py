"""Ollama's JSON documents: the models that it has, the models in memory, and one model in detail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from llmdeploy.models.facts import LARGEST, MOST_LAYERS
from llmdeploy.models.stores.ollama import full_name


@dataclass(frozen=True)
class Installed:
    """A model that the daemon has."""

    name: str
    size: int
    capabilities: tuple[str, ...]
    """Empty before Ollama 0.30."""
    context_length: int | None
    """The longest context that the model was trained for, in tokens; None before Ollama 0.30."""
    remote_host: str | None = None
    """The host of a model of Ollama's cloud; None for a model of this machine."""
    parent: str = ""
    """The name that it was created from, if it was created from another model."""
    digest: str = ""


@dataclass(frozen=True)
class Running:
    """A model in memory. `size_vram` is the part of `size` that is on GPUs, in bytes."""

    name: str
    size: int
    size_vram: int
    context_length: int | None
    """Tokens that one request may use; None before Ollama 0.10."""
    expires_at: datetime | None

    @property
    def expires_soon(self) -> bool:
        """Whether Ollama will unload it: for a model that is kept, Ollama shows a time centuries ahead."""
        return self.expires_at is not None and self.expires_at - datetime.now(UTC) < timedelta(days=365)


@dataclass(frozen=True)
class Shown:
    """The details of one model. A field is None if the daemon does not know it."""

    capabilities: tuple[str, ...]
    architecture: str | None
    context_length: int | None
    """The longest context that the model was trained for, in tokens."""
    heads: tuple[int, ...]
    """The attention heads of each layer; empty if they are not known. The same holds for `kv_heads`."""
    kv_heads: tuple[int, ...]
    layers: int | None
    key_length: int | None
    value_length: int | None
    embedding_length: int | None
    vocabulary_size: int | None
    size: int | None
    """The size of all its files in bytes."""
    blobs: tuple[str, ...]
    """The paths on the daemon's machine: the model, then the vision projector."""
    projector: bool
    """Whether it has a vision projector in a file of its own."""
    remote_host: str | None
    license: str = ""
    """All its licenses in one text."""


def same_name(one: str, other: str) -> bool:
    """Return whether two names mean the same model: `X` is `x:latest`."""
    return full_name(one) == full_name(other)


def installed(model: Mapping[str, Any]) -> Installed:
    """Read one model of `/api/tags`."""
    return Installed(
        name=model["name"],
        size=model["size"],
        capabilities=tuple(model.get("capabilities") or ()),
        context_length=(model.get("details") or {}).get("context_length"),
        remote_host=model.get("remote_host"),
        parent=(model.get("details") or {}).get("parent_model") or "",
        digest=model.get("digest") or "",
    )


def running(model: Mapping[str, Any]) -> Running:
    """Read one model of `/api/ps`."""
    return Running(
        name=model["name"],
        size=model["size"],
        size_vram=model.get("size_vram") or 0,
        context_length=model.get("context_length"),
        expires_at=_time(model.get("expires_at")),
    )


def _time(text: Any) -> datetime | None:
    """Read a time as Go writes it: with nine digits of a second, or Z."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def has_hidden_heads(document: Mapping[str, Any]) -> bool:
    """Return whether the layers have different numbers of heads: Ollama sends such arrays only on request."""
    info = document.get("model_info") or {}
    return any(value is None for key, value in info.items() if ".attention.head_count" in key)


def shown(document: Mapping[str, Any], size: int | None) -> Shown:
    """Read the document of `/api/show`; `size` is the size of all files in bytes."""
    info = document.get("model_info") or {}
    architecture = info.get("general.architecture")
    return Shown(
        capabilities=tuple(document.get("capabilities") or ()),
        architecture=architecture,
        size=size,
        blobs=tuple(
            re.findall(r"^FROM \"?(.*[/\\]sha256-[0-9a-f]{64})\b", document.get("modelfile", ""), re.MULTILINE)
        ),
        projector=bool(document.get("projector_info")),
        remote_host=document.get("remote_host"),
        license=document.get("license") or "",
        **_shape(info, architecture, document.get("tensors") or ()),
    )


def _shape(info: Mapping[str, Any], architecture: str | None, tensors: Any) -> dict[str, Any]:
    """Return the dimensions of a model, from its GGUF fields."""

    def number(key: str) -> int | None:
        value = info.get(f"{architecture}.{key}")
        return value if _is_count(value) else None

    layers, embedding = number("block_count"), number("embedding_length")
    heads = _per_layer(info.get(f"{architecture}.attention.head_count"), layers)
    key_value = f"{architecture}.attention.head_count_kv"
    head = next((count for count in heads if count > 0), None)
    head_size = embedding // head if embedding and head else None
    table = next((tensor["shape"] for tensor in tensors if tensor["name"] == "token_embd.weight"), None)
    rows = table[-1] if table else None
    return {
        "context_length": number("context_length"),
        "layers": layers,
        "heads": heads,
        "kv_heads": _per_layer(info[key_value], layers) if key_value in info else heads,
        "key_length": number("attention.key_length") or head_size,
        "value_length": number("attention.value_length") or head_size,
        "embedding_length": embedding,
        "vocabulary_size": number("vocab_size") or (rows if _is_count(rows) else None),
    }


def _per_layer(value: Any, layers: int | None) -> tuple[int, ...]:
    """Return the numbers of each layer; nothing for numbers that no model has: they come from the model's file."""
    if _is_count(value) and layers is not None and layers <= MOST_LAYERS:
        return (value,) * layers
    if isinstance(value, list) and len(value) <= MOST_LAYERS and all(map(_is_count, value)):
        return tuple(value)
    return ()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST
