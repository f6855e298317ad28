"""Digests of files: SHA-256 of a file on the disk, kept until the file changes, and the digest of a download."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from llmdeploy import bounded_file
from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import ModelInvalid
from llmdeploy.paths import state_dir

if TYPE_CHECKING:
    from io import FileIO

    from llmdeploy.models.source import RemoteFile

CHUNK_BYTES = 2**22
BLOCK_BYTES = 2**20
LARGE_BYTES = 2**24
"""Size in bytes from which on a separate thread computes the digest of a download while its bytes arrive."""
WAITING_BLOCKS = 2
"""The most blocks that may wait for that thread; a block of a Xet stream has 64 MB."""
KEPT = 2000
"""Number of digests that are kept; the oldest is dropped."""
SHA1_DIGITS = 40
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_saving = threading.Lock()
OnProgress = Callable[[str, int, int], None]


def sha256(path: Path, on_progress: OnProgress) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits. Raises ModelInvalid if it cannot be read."""
    return known(path) or now(path, "", on_progress)


def now(path: Path, stated: str, on_progress: OnProgress) -> str:
    """Return the digest of what a file holds now. Raises ModelInvalid if it cannot be read.

    It is read unless nothing about it changed since its digest was computed: a name is not believed. `stated`: the
    digest that it should have, or empty; another one is not remembered, so that the difference is found again. If it
    has 40 digits, it is Git's SHA-1, and so is the result.
    """
    try:
        file = path.resolve(strict=True)
        if len(stated) == SHA1_DIGITS:
            return _of_git(file)
        if digest := verified(file):
            return digest
        digest = _computed(file, on_progress)
    except OSError as error:
        raise ModelInvalid(
            f"`{path}` cannot be read: {error.strerror}", f"check it: `{shlex.join(['ls', '-l', str(path)])}`"
        ) from error
    if stated in {"", digest}:
        save(file, digest)
    return digest


def known(path: Path) -> str | None:
    """Return the SHA-256 if it is known without reading the file, else None."""
    try:
        file = path.resolve(strict=True)
        status = file.stat()
    except OSError:
        return None
    if (entry := _known().get(str(file))) is None:
        return _by_name(file)
    return entry.digest if entry.mark[:2] == _mark(status)[:2] else None


def verified(path: Path) -> str | None:
    """Return the SHA-256 if it was computed of exactly this file, and nothing about the file changed since; else None.

    The system sets the time of the last change of its status, which no program can set back.
    """
    try:
        file = path.resolve(strict=True)
        status = file.stat()
    except OSError:
        return None
    entry = _known().get(str(file))
    return entry.digest if entry and entry.mark == _mark(status) else None


def stated(path: Path) -> str:
    """Return the digest that a file of a cache had when it was downloaded; empty if that is not known."""
    file = path.resolve()
    if file.parent.name == "blobs" and _DIGEST.fullmatch(file.name):
        return file.name
    return earlier(path) or ""


def earlier(path: Path) -> str | None:
    """Return the digest that was computed last, even if the file has changed since; None if there was none."""
    entry = _known().get(str(path.resolve()))
    return entry.digest if entry else None


def save(path: Path, digest: str) -> None:
    """Save the digest of a file as it is now, for example after another program has set its time."""
    with suppress(OSError):
        file = path.resolve(strict=True)
        entry = _Entry(_mark(file.stat()), digest)
        with _saving:
            others = {name: it for name, it in _known().items() if name != str(file)}
            _write({**others, str(file): entry})


def _by_name(file: Path) -> str | None:
    """Return the digest in the name of a file of the Hub's cache or of Ollama's store.

    The store that repositories of the Hub's cache share, two folders deep, names files by Xet's hash, which is not a
    SHA-256.
    """
    name = file.name.removeprefix("sha256-")
    return name if file.parent.name == "blobs" and _SHA256.fullmatch(name) else None


def _computed(file: Path, on_progress: OnProgress) -> str:
    digest = hashlib.sha256()
    with bounded_file.opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            on_progress(f"checking {file.name}", stream.tell(), size)
    return digest.hexdigest()


def _of_git(file: Path) -> str:
    from llmdeploy.models.source import RemoteFile

    return of_file(RemoteFile(file.name, file.stat().st_size), file)


# --- Digests that were computed before


@dataclass(frozen=True)
class _Entry:
    """The SHA-256 of a file, and the file's marks when it was computed."""

    mark: tuple[int, ...]
    """Size in bytes, and the times of the last changes of content and status in nanoseconds."""
    digest: str


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _known() -> dict[str, _Entry]:
    """Return what was computed before, by the path of the file; a damaged entry is left out."""
    content: dict[str, Any] = _state_file().read({})
    found = {}
    for name, value in content.items():
        with suppress(TypeError, ValueError):
            size, changed, digest, *status = value
            if _SHA256.fullmatch(digest):
                found[name] = _Entry((size, changed, *status), digest)
    return found


def _write(entries: dict[str, _Entry]) -> None:
    """Write the state file. A failure is ignored: it costs only the time to compute the digests again."""
    newest = list(entries.items())[-KEPT:]
    with suppress(OSError):
        _state_file().write({name: [*it.mark[:2], it.digest, *it.mark[2:]] for name, it in newest})


def _state_file() -> JsonFile:
    return JsonFile(state_dir() / "digests.json")


# --- Digests of downloads


class Checksum:
    """The digest of a download, fed with its bytes from the first one on."""

    def __init__(self, file: RemoteFile) -> None:
        """Use SHA-256 for an LFS object; else SHA-1 over Git's header of a blob and the content."""
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
        self._is_large = file.size >= LARGE_BYTES
        self._thread: _HashThread | None = None
        self._block = memoryview(bytearray(min(BLOCK_BYTES, file.size)))

    def feed(self, data: bytes) -> None:
        """Hash the next bytes."""
        if self._is_large and not self._thread:
            self._thread = _HashThread(self._hash)
        if self._thread and data:  # an empty block ends the thread
            self._thread.feed(data)
        elif not self._thread:
            self._hash.update(data)

    def feed_from(self, stream: FileIO) -> int:
        """Hash the next block of `stream`; return its size in bytes, 0 at the end. Not after `feed()`."""
        assert not self._thread
        count = stream.readinto(self._block)
        self._hash.update(self._block[:count])
        return count

    def digest(self) -> str:
        """Return the digest in hexadecimal; nothing can be fed after it."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread, after it has hashed what it was given."""
        if self._thread:
            self._thread.close()


def of_file(file: RemoteFile, path: Path) -> str:
    """Return the digest of the file at `path`, by the algorithm that the source uses for `file`."""
    checksum = Checksum(file)
    with path.open("rb", buffering=0) as stream:
        while checksum.feed_from(stream):
            pass
    return checksum.digest()


class _HashThread:
    def __init__(self, into: Any) -> None:
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._room = threading.Semaphore(WAITING_BLOCKS)
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
