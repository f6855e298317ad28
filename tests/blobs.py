"""Contents of a repository's files, in memory or on the disk: their hashes in Git and LFS, and ranges."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Content = bytes | Path
PIECE = 1 << 20
"""Bytes that are read and sent at once."""
LFS_SUFFIXES = (".gguf", ".safetensors", ".bin", ".model", ".pt", ".pth", ".h5", ".onnx", ".zip")
"""Suffixes in the .gitattributes that the Hub writes into a new repository."""
LFS_FROM = 10_000_000
"""Size in bytes from which on every file is an LFS object."""


@dataclass(frozen=True)
class Blob:
    size: int
    sha256: str
    oid: str
    """Return the SHA-1 of Git's blob of the content."""

    @property
    def pointer(self) -> bytes:
        """The text that Git has in place of an LFS object."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def pointer_oid(self) -> str:
        return git_oid(self.pointer)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@lru_cache(maxsize=1000)
def blob(content: Content) -> Blob:
    size = size_of(content)
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for piece in pieces(content, 0, size):
        sha256.update(piece)
        if size < LFS_FROM:
            sha1.update(piece)
    return Blob(size, sha256.hexdigest(), sha1.hexdigest())


def in_lfs(name: str, content: Content) -> bool:
    return name.endswith(LFS_SUFFIXES) or size_of(content) >= LFS_FROM


def size_of(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def pieces(content: Content, start: int, stop: int) -> Iterator[bytes | memoryview]:
    if isinstance(content, bytes):
        for begin in range(start, stop, PIECE):
            yield memoryview(content)[begin : min(begin + PIECE, stop)]
        return
    with content.open("rb") as file:
        file.seek(start)
        for begin in range(start, stop, PIECE):
            yield file.read(min(PIECE, stop - begin))


def wanted(header: str | None, size: int) -> tuple[int, int] | None:
    """Return start and end of the bytes that a `Range` header names; all without one; None if outside the file."""
    if header is None or not (match := re.fullmatch(r"bytes=(\d*)-(\d*)", header)) or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    return (start, stop) if start < stop else None
