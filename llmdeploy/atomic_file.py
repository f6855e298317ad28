"""A file replaced whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def replace(file: Path, content: bytes) -> None:
    """Give a file its content in one step, which a crash does not undo; a new one is private. Raises OSError."""
    import stat
    import tempfile

    target = os.path.realpath(file)  # a link stays a link
    folder = os.path.dirname(target)
    mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o600
    descriptor, temporary = tempfile.mkstemp(prefix=".llmdeploy-", dir=folder)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync(folder)


def _sync(folder: str) -> None:
    """Have the disk know the new name, on systems where a folder is a file."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
