"""Whether a model is on this machine already, by its files alone: no network, no daemon, no library.

huggingface_hub takes 0.2 s to load, which a list of many models must not wait for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from llmdeploy.models.reference import HubFile, HubRepo

OLLAMA_SERVICE = Path("/usr/share/ollama/.ollama/models")
"""The store of Ollama where its installer made a service of it."""
INDEX = "model.safetensors.index.json"


def file_is_here(file: HubFile) -> bool:
    """Whether the Hub's cache has that file."""
    return any((snapshot / file.file).is_file() for snapshot in _snapshots(file.home))


def model_is_here(repo: HubRepo) -> bool:
    """Whether the Hub's cache has a model in Hugging Face form, its weights complete."""
    return any((snapshot / "config.json").is_file() and _has_weights(snapshot) for snapshot in _snapshots(repo))


def tag_is_here(tag: str) -> bool:
    """Whether a store of Ollama's on this machine has that tag, as far as it can be read."""
    *path, name = tag.split("/")
    model, _, version = name.partition(":")
    host, user = (path if len(path) == 2 else ["registry.ollama.ai", *(path or ["library"])])[-2:]
    place = Path("manifests", host, user, model, version or "latest")
    return any(_is_file(store / place) for store in _stores())


def _snapshots(repo: HubRepo) -> Iterable[Path]:
    """The folder of that revision in the cache, where there is one."""
    if repo.source != "hf":
        return
    folder = _cache() / f"models--{repo.repo.replace('/', '--')}"
    try:
        commit = (folder / "refs" / repo.revision).read_text().strip()
    except (OSError, ValueError):
        commit = repo.revision
    yield folder / "snapshots" / commit


def _cache() -> Path:
    """Where huggingface_hub keeps its cache, by its own variables."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if path := os.environ.get(name):
            return Path(os.path.expanduser(path))
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home), "hub")


def _has_weights(snapshot: Path) -> bool:
    try:
        index = json.loads((snapshot / INDEX).read_text(encoding="utf-8"))
        parts = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return any(snapshot.glob("*.safetensors"))
    return all((snapshot / str(part)).is_file() for part in parts)


def _stores() -> Iterable[Path]:
    named = os.environ.get("OLLAMA_MODELS")
    yield Path(os.path.expanduser(named or "~/.ollama/models"))
    yield OLLAMA_SERVICE


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # another user's
        return False
