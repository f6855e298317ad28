"""Small files that a stranger may have placed: only a regular file is read, and only up to a limit.

A pipe would wait for its writer, a device may have no end, and a large file would take all memory. Links are followed,
because the caches of models consist of them: what counts is the file that is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

SMALL = 2**20
"""Bytes of a small file, such as a configuration or a record."""
STATE = 2**24
"""Bytes of a file that llmdeploy keeps for itself."""
MOST_VALUES = 500_000
"""The most values of a JSON document: each takes about 100 bytes of memory, whatever it takes in the file."""


class NotRegular(OSError):
    """The file is a pipe, a device or a socket."""


def opened(file: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, NotRegular for a pipe or a device, without waiting for it."""
    _require_regular(os.stat(file), file)  # to open a device may have effects
    stream = open(file, "rb", buffering=buffering, opener=_without_waiting)  # noqa: SIM115
    try:
        _require_regular(os.fstat(stream.fileno()), file)  # it may have been replaced meanwhile
    except BaseException:
        stream.close()
        raise
    return stream


def read(file: str | Path, most: int = SMALL) -> bytes:
    """Return the content of a regular file with at most `most` bytes. Raises OSError for anything else."""
    with opened(file, buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = b"" if size > most else _whole(stream, most)
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(file))
    return content


def read_json(file: str | Path, most: int = SMALL) -> Any:
    """Return the content of a JSON file. Raises OSError as `read`, and ValueError as `json_value`."""
    return json_value(read(file, most))


def json_value(content: bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError if it is not one, has too many values, or is nested deeply."""
    import json

    # Each value but the first of its list comes after a comma, and the first after a bracket.
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _require_regular(status: os.stat_result, file: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular(errno.EINVAL, "it is not a regular file", str(file))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _whole(stream: BinaryIO, most: int) -> bytes:
    """Return all bytes, or one more than `most` if there are more: a file may grow while it is read."""
    content = bytearray()
    while piece := stream.read(most + 1 - len(content)):
        content += piece
    return bytes(content)
