"""The files that a model needs in Ollama's store, and which of them are there if the store is on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmdeploy.engines.ollama.documents import Installed
from llmdeploy.engines.ollama.registry import Layer, Manifest
from llmdeploy.models.reference import OllamaTag
from llmdeploy.models.requirements import RequiredFile, Requirements, existing

REMEDY = "free some space there; another folder: set `OLLAMA_MODELS`, here and where Ollama is started"


def of_manifest(manifest: Manifest, store: Path | None) -> Requirements:
    """Return the requirements of a model of the registry. `store` is None if it is on another machine."""
    files = [
        RequiredFile(layer.digest[:12], layer.size, stored_bytes(layer, store), layer.digest)
        for layer in manifest.layers
    ]
    return Requirements(str(OllamaTag(manifest.name)), store, tuple(files), manifest.digest, remedy=REMEDY)


def of_installed(model: Installed, store: Path | None) -> Requirements:
    """Return the requirements of a model that the daemon has: nothing is missing."""
    file = RequiredFile(model.name, model.size, model.size, model.digest)
    return Requirements(str(OllamaTag(model.name)), store, (file,), revision=model.digest, remedy=REMEDY)


def of_import(source: str, size: int, store: Path | None) -> Requirements:
    """Return the requirements of GGUF files for an import: Ollama copies them into its store, then rewrites them."""
    return Requirements(source, store, (RequiredFile("its copy in Ollama's store", size),), copies=size, remedy=REMEDY)


def with_copies(files: Requirements, store: Requirements | None) -> Requirements:
    """Return the requirements of a download, plus what the store takes if it is on the same disk."""
    if store is None or not files.missing or not _on_one_disk(files.folder, store.folder):
        return files
    return replace(files, copies=files.copies + store.missing + store.copies)


def of_unknown(name: str, store: Path | None, why: str) -> Requirements:
    """Return the requirements of a model whose size is unknown, with the reason."""
    return Requirements(str(OllamaTag(name)), store, (), unknown=why, remedy=REMEDY)


def stored_bytes(layer: Layer, store: Path | None) -> int:
    """Return the bytes of a layer that the store has. A partial file is sparse and as long as the whole file."""
    if store is None:
        return 0
    blob = store / "blobs" / f"sha256-{layer.digest}"
    try:
        if blob.exists():
            return layer.size
        return min(layer.size, getattr(blob.with_name(f"{blob.name}-partial").stat(), "st_blocks", 0) * 512)
    except OSError:  # it does not exist, or belongs to another user
        return 0


def _on_one_disk(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return False
    return existing(one).stat().st_dev == existing(other).stat().st_dev
