"""The digest of a file that is on its way."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import FileIO

    from llmdeploy.models.source import RemoteFile

BLOCK = 2**20
LARGE = 2**24
"""Bytes from which on the digest of what is fed is computed in a thread of its own, beside the bytes that come."""
WAITING = 2
"""Blocks that may wait for it: those of a Xet stream have 64 MB."""


class Checksum:
    """Of what is fed to it, from the first byte on."""

    def __init__(self, file: RemoteFile) -> None:
        """SHA-256; or SHA-1 over Git's head of a blob and the content, where the file is no LFS object."""
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
        self._is_large = file.size >= LARGE
        self._thread: _Thread | None = None
        self._block = memoryview(bytearray(min(BLOCK, file.size)))

    def feed(self, data: bytes) -> None:
        if self._is_large and not self._thread:
            self._thread = _Thread(self._hash)
        if self._thread and data:  # an empty block ends the thread
            self._thread.feed(data)
        elif not self._thread:
            self._hash.update(data)

    def feed_from(self, stream: FileIO) -> int:
        """A block that is read there, before anything was fed otherwise; its bytes: 0 at the end."""
        assert not self._thread
        count = stream.readinto(self._block)
        self._hash.update(self._block[:count])
        return count

    def digest(self) -> str:
        """Hexadecimal; nothing can be fed after it."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._thread:
            self._thread.close()


def checksum(file: RemoteFile, path: Path) -> str:
    """The digest of what lies there, as that file's is computed."""
    it = Checksum(file)
    with path.open("rb", buffering=0) as stream:
        while it.feed_from(stream):
            pass
    return it.digest()


class _Thread:
    def __init__(self, into: Any) -> None:
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._room = threading.Semaphore(WAITING)
        self._thread = threading.Thread(target=self._run, args=(into,), daemon=True)
        self._thread.start()

    def feed(self, data: bytes) -> None:
        self._room.acquire()
        self._queue.put(data)

    def close(self) -> None:
        self._queue.put(b"")
        self._thread.join()

    def _run(self, into: Any) -> None:
        while data := self._queue.get():
            into.update(data)
            self._room.release()
