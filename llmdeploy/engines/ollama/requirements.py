"""What of a model is in Ollama's store, where that is this machine's: a need, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmdeploy.engines.ollama.documents import Installed
from llmdeploy.engines.ollama.registry import Layer, Manifest
from llmdeploy.models.reference import OllamaTag
from llmdeploy.models.requirements import RequiredFile, Requirements, existing

REMEDY = "free some space there; another folder: set `OLLAMA_MODELS`, here and where Ollama is started"


def of_manifest(manifest: Manifest, store: Path | None) -> Requirements:
    """The layers of a manifest against the store; None: it is another machine's."""
    files = [
        RequiredFile(layer.digest[:12], layer.size, stored_bytes(layer, store), layer.digest)
        for layer in manifest.layers
    ]
    return Requirements(str(OllamaTag(manifest.name)), store, tuple(files), manifest.digest, remedy=REMEDY)


def of_installed(model: Installed, store: Path | None) -> Requirements:
    """Of a model that the daemon has."""
    file = RequiredFile(model.name, model.size, model.size, model.digest)
    return Requirements(str(OllamaTag(model.name)), store, (file,), revision=model.digest, remedy=REMEDY)


def of_import(source: str, size: int, store: Path | None) -> Requirements:
    """Of GGUF files that Ollama is given: they are copied into its store, and there written once more."""
    return Requirements(source, store, (RequiredFile("its copy in Ollama's store", size),), copies=size, remedy=REMEDY)


def with_copies(files: Requirements, store: Requirements | None) -> Requirements:
    """What is fetched, with what the store takes of it, where that is on the same disk."""
    if store is None or not files.missing or not _on_one_disk(files.folder, store.folder):
        return files
    return replace(files, copies=files.copies + store.missing + store.copies)


def of_unknown(name: str, store: Path | None, why: str) -> Requirements:
    return Requirements(str(OllamaTag(name)), store, (), unknown=why, remedy=REMEDY)


def stored_bytes(layer: Layer, store: Path | None) -> int:
    """Bytes of a layer that the store has. A part has its full length from the beginning, and holes."""
    if store is None:
        return 0
    blob = store / "blobs" / f"sha256-{layer.digest}"
    try:
        if blob.exists():
            return layer.size
        return min(layer.size, getattr(blob.with_name(f"{blob.name}-partial").stat(), "st_blocks", 0) * 512)
    except OSError:  # not there, or another user's
        return 0


def _on_one_disk(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return False
    return existing(one).stat().st_dev == existing(other).stat().st_dev
