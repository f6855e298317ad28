"""SHA-256 of large files, computed once for each state of a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import ModelInvalid
from llmdeploy.models.gguf_header import command
from llmdeploy.paths import state_dir

CHUNK = 2**22
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(path: Path, on_progress: Callable[[str, int, int], None]) -> str:
    """The digest of a file, 64 hexadecimal digits. Raises ModelInvalid where it cannot be read."""
    if digest := known(path):
        return digest
    try:
        file = path.resolve(strict=True)
        status = file.stat()
        digest = _computed(file, status.st_size, on_progress)
    except OSError as error:
        raise ModelInvalid(
            f"`{path}` cannot be read: {error.strerror}", f"check it: `{command('ls -l', path)}`"
        ) from error
    _save({**_known(), str(file): [status.st_size, status.st_mtime_ns, digest]})
    return digest


def known(path: Path) -> str | None:
    """The digest, where it is there without reading the file."""
    try:
        file = path.resolve(strict=True)
        status = file.stat()
    except OSError:
        return None
    if digest := _by_name(file):
        return digest
    size, time, digest = _known().get(str(file), (None, None, None))
    return digest if (size, time) == (status.st_size, status.st_mtime_ns) else None


def _by_name(file: Path) -> str | None:
    """The Hub's cache and Ollama's store name a file by its digest.

    So does the store that repositories of the Hub's cache share, two folders deep, but by Xet's hash: another one.
    """
    name = file.name.removeprefix("sha256-")
    return name if file.parent.name == "blobs" and _SHA256.fullmatch(name) else None


def earlier(path: Path) -> str | None:
    """The digest that it had when it was last computed, in whatever state the file is now."""
    digest: str | None = _known().get(str(path.resolve()), (None, None, None))[2]
    return digest


def save(path: Path, digest: str) -> None:
    """The file has that digest as it is now: another program has set its time."""
    with suppress(OSError):
        file = path.resolve(strict=True)
        status = file.stat()
        _save({**_known(), str(file): [status.st_size, status.st_mtime_ns, digest]})


def _computed(file: Path, size: int, on_progress: Callable[[str, int, int], None]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            on_progress(f"checking {file.name}", stream.tell(), size)
    return digest.hexdigest()


def _known() -> dict[str, Any]:
    """Return what was computed before: path -> size in bytes, time of the last change in nanoseconds, digest."""
    content: dict[str, Any] = _state_file().read({})
    try:
        return {name: value for name, value in content.items() if len(value) == 3 and _SHA256.fullmatch(value[2])}
    except (TypeError, LookupError):
        return {}


def _save(digests: dict[str, Any]) -> None:
    """Write the state file. A failure is ignored: it costs only the time to compute the digests again."""
    with suppress(OSError):
        _state_file().write(digests)


def _state_file() -> JsonFile:
    return JsonFile(state_dir() / "digests.json")
