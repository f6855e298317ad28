"""What exactly serves: which engine, which files, with which flags, in how much memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import LlmdeployError
from llmdeploy.models import digest
from llmdeploy.service import placement

if TYPE_CHECKING:
    from llmdeploy.service.launch import Launch
    from llmdeploy.service.supervisor import Supervisor


def provenance(keeper: Supervisor, candidate: Launch) -> dict[str, Any]:
    """The receipt of what a keeper serves. Reads each file of its weights that has no known digest yet."""
    files = candidate.engine.files(candidate.artefact)
    held = placement.held_memory(candidate.server, keeper.gpus)
    return {
        "engine": keeper.engine.name,
        "engine_version": candidate.version,
        "artefact": str(candidate.artefact),
        "revision": _revision(candidate),
        "files": [_file(file) for file in files],
        "argv": list(candidate.spec.argv),
        "memory": {"ram_bytes": held.memory, "gpu_bytes": {str(index): size for index, size in held.gpus}},
        "ready_seconds": round(keeper.seconds, 1),
    }


def _revision(candidate: Launch) -> str | None:
    try:
        return candidate.engine.revision(candidate.artefact)
    except LlmdeployError:  # the daemon that knows it has gone meanwhile
        return None


def _file(file: Path) -> dict[str, Any]:
    try:
        return {"path": str(file), "bytes": file.stat().st_size, "sha256": digest.sha256(file, lambda *_: None)}
    except (OSError, LlmdeployError):  # it went meanwhile; what serves has it in memory
        return {"path": str(file), "bytes": None, "sha256": None}
