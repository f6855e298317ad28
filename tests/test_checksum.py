"""Digests of files on their way, as the Hub tells them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llmdeploy.models.checksum import LARGE, Checksum, checksum
from llmdeploy.models.source import RemoteFile


@pytest.mark.parametrize("size", [0, 5, LARGE + 3])
def test_a_digest_is_that_of_all_that_was_fed_in_pieces_and_of_what_lies_there(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    (tmp_path / "x").write_bytes(content)
    lfs = RemoteFile("x", size, sha256=hashlib.sha256(content).hexdigest())
    git = RemoteFile("x", size, git_oid=hashlib.sha1(f"blob {size}\0".encode() + content).hexdigest())
    for file in (lfs, git):
        fed = Checksum(file)
        for piece in (content[: size // 2], b"", content[size // 2 :]):
            fed.feed(piece)
        assert fed.digest() == file.digest == checksum(file, tmp_path / "x")
