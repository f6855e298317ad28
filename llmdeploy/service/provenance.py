"""The receipt of what serves: the engine, the files with their checksums, the flags, the memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import LlmdeployError
from llmdeploy.models import digest
from llmdeploy.models.source import commit_of
from llmdeploy.service import placement

if TYPE_CHECKING:
    from llmdeploy.service.stages import Ready


class _File:
    """One file of the weights, as it is now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size: int | None = None
        self.sha256: str | None = None
        self.has_changed = False
        """Whether it is a file of a repository, and no longer what was downloaded."""
        with suppress(OSError, LlmdeployError):  # it went meanwhile; what serves has it in memory
            size, stated = path.stat().st_size, digest.stated(path) if commit_of([path]) else ""
            self.has_changed = bool(stated) and digest.now(path, stated, _say_nothing) != stated
            sha256 = digest.now(path, stated if len(stated) != digest.SHA1_DIGITS else "", _say_nothing)
            self.size, self.sha256 = size, sha256

    def document(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.size, "sha256": self.sha256}


def _say_nothing(*_: object) -> None: ...


def provenance(ready: Ready) -> dict[str, Any]:
    """Return the receipt of what serves. Reads each file of its weights whose checksum is not known yet."""
    weights = ready.prepared.weights
    files = [_File(path) for path in weights.local_files()]
    held = placement.held_memory(ready.server.process, ready.gpus)
    return {
        "engine": ready.engine.name,
        "engine_version": ready.prepared.version,
        "artefact": str(weights),
        # A commit is claimed only for files that are still what was downloaded.
        "revision": None if any(file.has_changed for file in files) else _revision(ready),
        "files": [file.document() for file in files],
        "changed": [str(file.path) for file in files if file.has_changed],
        "argv": list(ready.spec.argv),
        "memory": {"ram_bytes": held.memory, "gpu_bytes": {str(index): size for index, size in held.gpus}},
        "ready_seconds": round(ready.seconds, 1),
    }


def _revision(ready: Ready) -> str | None:
    try:
        return ready.prepared.weights.revision()
    except LlmdeployError:  # the daemon that knows it has gone meanwhile
        return None
