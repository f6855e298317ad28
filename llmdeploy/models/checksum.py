"""The digest of a file that is on its way."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmdeploy.models.source import RemoteFile

BLOCK = 2**22
LARGE = 2**24
"""Bytes from which on a file's digest is computed in a thread of its own, beside the bytes that come."""
WAITING = 2
"""Blocks that may wait for it: those of Xet have 64 MB."""


class Checksum:
    """Of what is fed to it, from the first byte on."""

    def __init__(self, file: RemoteFile) -> None:
        """SHA-256; or SHA-1 over Git's head of a blob and the content, where the file is no LFS object."""
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
        self._thread = _Thread(self._hash) if file.size >= LARGE else None

    def feed(self, data: bytes) -> None:
        if self._thread:
            self._thread.feed(data)
        else:
            self._hash.update(data)

    def feed_from(self, path: Path) -> None:
        with path.open("rb") as stream:
            while data := stream.read(BLOCK):
                self.feed(data)

    def digest(self) -> str:
        """Hexadecimal; nothing can be fed after it."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._thread:
            self._thread.close()


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
