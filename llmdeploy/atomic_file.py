"""Files that are replaced in one step: a reader finds the old content or the new, never a mixture."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmdeploy import bounded_file
from llmdeploy.ownership import stranger

T = TypeVar("T")


@dataclass(frozen=True)
class JsonFile:
    """A small JSON document that llmdeploy keeps for itself, such as a state file."""

    path: Path
    indent: int | None = None
    """Spaces of each level; None: the whole document on one line."""

    def read(self, default: T) -> T:
        """Return the document, or `default` if the file is missing, unreadable, damaged, or of another JSON type.

        The same if a stranger can change what is in its folder: the document is believed.
        """
        if stranger(self.path.parent):
            return default
        try:
            content = bounded_file.read_json(self.path, bounded_file.STATE)
        except (OSError, ValueError):
            return default
        return content if isinstance(content, type(default)) else default

    def write(self, value: Any) -> None:
        """Replace the file. A new one, and a new folder for it, only this user may read. Raises OSError."""
        import json

        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if problem := stranger(self.path.parent):
            raise PermissionError(errno.EPERM, problem, str(self.path))
        replace(self.path, json.dumps(value, indent=self.indent).encode())


def replace(file: Path, content: bytes, *, private: bool = False) -> None:
    """Replace the content of a file in one step that a crash does not undo. A new file is private. Raises OSError.

    `private`: whether the file is private in any case, and takes the place of a link.
    """
    import stat
    import tempfile

    target = os.path.abspath(file) if private else os.path.realpath(file)  # a link stays a link
    folder = os.path.dirname(target)
    mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) and not private else 0o600
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
    """Write the folder's entry to the disk, on systems where a folder can be opened as a file."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
