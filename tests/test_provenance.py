"""The receipt: its checksums are those of the files as they are, and a commit is claimed only for unchanged files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from llmdeploy.models import digest
from llmdeploy.service.provenance import provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT, FORGED = b"GGUF" * 1000, b"GGUF" * 999 + b"evil"


@dataclass
class Weights:
    """Weights of a commit in a cache."""

    path: Path

    def local_files(self) -> tuple[Path, ...]:
        return (self.path,)

    def revision(self) -> str:
        return COMMIT

    def __str__(self) -> str:
        return "weights"


def receipt(path: Path) -> dict[str, Any]:
    """Return the receipt of a server that serves this file."""
    from types import SimpleNamespace as Any_

    ready = Any_(
        prepared=Any_(weights=Weights(path), version="1"),
        server=Any_(process=None),
        gpus=(),
        engine=Any_(name="llamacpp"),
        spec=Any_(argv=()),
        seconds=1.0,
    )
    return provenance(cast("Any", ready))


def cached(root: Path, name: str) -> Path:
    """Put a file into a cache as the Hub's library does, under the name of that digest."""
    blob = root / "blobs" / name
    link = root / "snapshots" / COMMIT / "x.gguf"
    blob.parent.mkdir(parents=True)
    link.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    link.symlink_to(blob)
    return link


@pytest.mark.parametrize("name", ["sha256", "git"])
def test_change_in_the_cache_is_noticed(tmp_path: Path, name: str) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    path = cached(tmp_path, git if name == "git" else hashlib.sha256(CONTENT).hexdigest())
    found = receipt(path)
    assert (found["revision"], found["changed"]) == (COMMIT, [])
    assert found["files"] == [{"path": str(path), "bytes": 4000, "sha256": hashlib.sha256(CONTENT).hexdigest()}]
    status = path.stat()
    path.write_bytes(FORGED)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        found = receipt(path)
        assert (found["revision"], found["changed"]) == (None, [str(path)])
        assert found["files"][0]["sha256"] == hashlib.sha256(FORGED).hexdigest()


def test_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached(tmp_path, hashlib.sha256(CONTENT).hexdigest())
    before = receipt(path)
    monkeypatch.setattr(digest, "_computed", None)
    assert receipt(path) == before


def test_file_of_the_user_may_change(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(CONTENT)
    receipt(path)
    path.write_bytes(FORGED)
    assert receipt(path)["changed"] == []
