"""Places with models, in the layout of the programs that fill them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import FOREIGN, SELFTEST

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
Q4_K_M = 15
"""The `general.file_type` of that quantization."""

FETCH = """
import sys
from huggingface_hub import hf_hub_download
repo, revision, *files = sys.argv[1:]
for file in files:
    hf_hub_download(repo, file, revision=revision)
"""


def fetch(endpoint: str, hf_home: Path, repo: str, *files: str, revision: str = "main") -> None:
    """Put files into the Hub's cache with the real huggingface_hub."""
    inherited = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, repo, revision, *files],
        env=inherited | {"HF_HOME": str(hf_home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def pack(store: Path, name: str, *layers: tuple[str, Path | bytes], **config: Any) -> Path:
    """Put a model into a store as Ollama does; return the manifest. `name`: [host/namespace/]model/tag."""
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"model_format": "gguf", "model_family": "qwen2vl", "file_type": "F16"} | config).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **_blob(store, settings)},
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", **_blob(store, content)} for kind, content in layers
        ],
    }
    parts = name.split("/")
    file = store.joinpath("manifests", *["registry.ollama.ai", "library"][: 4 - len(parts)], *parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def _blob(store: Path, content: Path | bytes) -> dict[str, Any]:
    data = content.read_bytes() if isinstance(content, Path) else content
    digest = hashlib.sha256(data).hexdigest()
    (store / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def selftest_layers() -> tuple[tuple[str, Path | bytes], ...]:
    """Return the layers of the self-test model, whose architecture upstream llama.cpp has."""
    return ("model", WEIGHTS), ("projector", MMPROJ), ("params", b'{"stop":["<|im_end|>"],"temperature":0.6}')


def blob_of(content: Path | bytes) -> str:
    """Return the name of the content's file in a store."""
    data = content.read_bytes() if isinstance(content, Path) else content
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


def as_quantized(file_type: int = Q4_K_M) -> bytes:
    """Return the self-test model's weights with another quantization in their header."""
    key, content = b"general.file_type", bytearray(WEIGHTS.read_bytes())
    at = content.index(key) + len(key) + 4
    content[at : at + 4] = struct.pack("<I", file_type)
    return bytes(content)


def lmstudio(home: Path, repo: str, **files: Path | bytes) -> Path:
    """Put a repository into LM Studio's folder."""
    folder = home / ".lmstudio" / "models" / repo
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        put(folder / f"{name.replace('_', '-')}.gguf", content)
    return folder


def put(file: Path, content: Path | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copy(content, file)
    else:
        file.write_bytes(content)
    return file
