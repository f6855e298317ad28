"""What Ollama's documents mean: the models it has, those in memory, and one shown in full."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from llmdeploy.models.stores.ollama import full_name


@dataclass(frozen=True)
class Installed:
    """A model that the daemon has."""

    name: str
    size: int
    capabilities: tuple[str, ...]
    """Empty before Ollama 0.30."""
    context_length: int | None
    """The longest the model was trained for; None before Ollama 0.30."""
    remote_host: str | None = None
    """Where it really runs, for a model of Ollama's cloud."""
    parent: str = ""
    """What it was created from, where that was another name."""
    digest: str = ""


@dataclass(frozen=True)
class Running:
    """A model in memory. `size_vram` is what of `size` is on GPUs."""

    name: str
    size: int
    size_vram: int
    context_length: int | None
    """Tokens one request may use; None before Ollama 0.10."""
    expires_at: datetime | None

    @property
    def expires_soon(self) -> bool:
        """Whether it is not kept for good: Ollama shows that as a time in centuries."""
        return self.expires_at is not None and self.expires_at - datetime.now(UTC) < timedelta(days=365)


@dataclass(frozen=True)
class Shown:
    """What the daemon tells of one model; None where it does not know."""

    capabilities: tuple[str, ...]
    architecture: str | None
    context_length: int | None
    """The longest the model was trained for."""
    heads: tuple[int, ...]
    """One per layer, as `kv_heads`; empty where they are not known."""
    kv_heads: tuple[int, ...]
    layers: int | None
    key_length: int | None
    value_length: int | None
    embedding_length: int | None
    vocabulary_size: int | None
    size: int | None
    """Bytes of all its files."""
    blobs: tuple[str, ...]
    """Paths on the daemon's machine: the model, and a projector behind it."""
    projector: bool
    """A vision projector in a file of its own."""
    remote_host: str | None
    license: str = ""
    """All its licenses, one behind the other."""


def same_name(one: str, other: str) -> bool:
    """Whether two names are one model's: `X` is `x:latest`."""
    return full_name(one) == full_name(other)


def installed(model: Mapping[str, Any]) -> Installed:
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
    return Running(
        name=model["name"],
        size=model["size"],
        size_vram=model.get("size_vram") or 0,
        context_length=model.get("context_length"),
        expires_at=_time(model.get("expires_at")),
    )


def _time(text: Any) -> datetime | None:
    """A time as Go writes it: with nine digits of a second, or Z."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def has_hidden_heads(document: Mapping[str, Any]) -> bool:
    """Whether layers differ in their heads: such arrays are told on request only."""
    info = document.get("model_info") or {}
    return any(value is None for key, value in info.items() if ".attention.head_count" in key)


def shown(document: Mapping[str, Any], size: int | None) -> Shown:
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
    """Sizes of a model's parts, by the rules of GGUF."""

    def number(key: str) -> int | None:
        value = info.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else None

    layers, embedding = number("block_count"), number("embedding_length")
    heads = _per_layer(info.get(f"{architecture}.attention.head_count"), layers)
    key_value = f"{architecture}.attention.head_count_kv"
    head = next((count for count in heads if count > 0), None)
    head_size = embedding // head if embedding and head else None
    table = next((tensor["shape"] for tensor in tensors if tensor["name"] == "token_embd.weight"), None)
    return {
        "context_length": number("context_length"),
        "layers": layers,
        "heads": heads,
        "kv_heads": _per_layer(info[key_value], layers) if key_value in info else heads,
        "key_length": number("attention.key_length") or head_size,
        "value_length": number("attention.value_length") or head_size,
        "embedding_length": embedding,
        "vocabulary_size": number("vocab_size") or (table[-1] if table else None),
    }


def _per_layer(value: Any, layers: int | None) -> tuple[int, ...]:
    if isinstance(value, int) and layers is not None and layers <= 100_000:
        return (value,) * layers
    return tuple(value) if isinstance(value, list) else ()
