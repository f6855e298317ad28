"""The receipt of what serves: the engine, the files with their checksums, the flags, the memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import LlmdeployError
from llmdeploy.models import digest
from llmdeploy.service import placement

if TYPE_CHECKING:
    from llmdeploy.service.stages import Ready


def provenance(ready: Ready) -> dict[str, Any]:
    """Return the receipt of what serves. Reads each file of its weights whose checksum is not known yet."""
    weights = ready.prepared.weights
    files = weights.local_files()
    held = placement.held_memory(ready.server.process, ready.gpus)
    return {
        "engine": ready.engine.name,
        "engine_version": ready.prepared.version,
        "artefact": str(weights),
        "revision": _revision(ready),
        "files": [_file(file) for file in files],
        "argv": list(ready.spec.argv),
        "memory": {"ram_bytes": held.memory, "gpu_bytes": {str(index): size for index, size in held.gpus}},
        "ready_seconds": round(ready.seconds, 1),
    }


def _revision(ready: Ready) -> str | None:
    try:
        return ready.prepared.weights.revision()
    except LlmdeployError:  # the daemon that knows it has gone meanwhile
        return None


def _file(file: Path) -> dict[str, Any]:
    try:
        return {"path": str(file), "bytes": file.stat().st_size, "sha256": digest.sha256(file, lambda *_: None)}
    except (OSError, LlmdeployError):  # it went meanwhile; what serves has it in memory
        return {"path": str(file), "bytes": None, "sha256": None}
