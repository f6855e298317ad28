"""Digests of files: correct, and computed once until the file changes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from llmdeploy.errors import ModelInvalid
from llmdeploy.models import digest
from llmdeploy.models.source import RemoteFile

Progress = list[tuple[str, int, int]]


def ignore(*_: object) -> None: ...


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"one")
    return file


def computed(path: Path) -> tuple[str, bool]:
    """Return the digest, and whether the file was read for it."""
    told: Progress = []
    found = digest.sha256(path, lambda *now: told.append(now))
    return found, bool(told)


def test_digest_is_computed_once(file: Path) -> None:
    assert digest.known(file) is None
    assert computed(file) == (sha(b"one"), True)
    assert computed(file) == (sha(b"one"), False)
    assert digest.known(file) == sha(b"one")


def test_progress_is_reported_up_to_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "CHUNK_BYTES", 4)
    file = tmp_path / "x.gguf"
    file.write_bytes(b"0123456789")
    told: Progress = []
    assert digest.sha256(file, lambda *now: told.append(now)) == sha(b"0123456789")
    assert told == [("checking x.gguf", done, 10) for done in (4, 8, 10)]


def test_digest_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert digest.sha256(tmp_path / "empty", ignore) == sha(b"")


@pytest.mark.parametrize("change", ["longer", "same length", "same content, other time"])
def test_changed_file_is_read_again(file: Path, change: str) -> None:
    computed(file)
    if change != "same content, other time":
        file.write_bytes(b"longer" if change == "longer" else b"two")
    os.utime(file, ns=(1, 1))
    assert digest.known(file) is None
    assert digest.earlier(file) == sha(b"one")
    assert computed(file) == (sha(file.read_bytes()), True)
    assert digest.earlier(file) == sha(file.read_bytes())


def test_saved_digest_holds_after_another_program_set_the_time(file: Path) -> None:
    found, _ = computed(file)
    os.utime(file, ns=(1, 1))
    digest.save(file, found)
    assert computed(file) == (found, False)
    digest.save(file.with_name("gone"), found)  # it went away meanwhile: nothing to remember
    assert digest.known(file.with_name("gone")) is None


def test_link_shares_the_digest_and_a_copy_does_not(file: Path) -> None:
    """Check that a link is the same file, and a copy is not."""
    link, copy = file.with_name("link.gguf"), file.with_name("copy.gguf")
    link.symlink_to(file)
    computed(link)
    assert digest.known(file) == sha(b"one")
    copy.write_bytes(file.read_bytes())
    assert digest.known(copy) is None


def test_digest_in_the_name_of_a_blob_is_used(tmp_path: Path) -> None:
    """Check that the name is trusted without reading the file, as the Hub's library does."""
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    link = tmp_path / "model.gguf"
    link.symlink_to(blob)
    assert digest.known(link) == "ab" * 32
    assert computed(link) == ("ab" * 32, False)
    short = tmp_path / "blobs" / ("cd" * 20)  # of a small file: a digest of git's
    short.write_bytes(b"small")
    assert digest.known(short) is None


def test_missing_file_is_reported(tmp_path: Path) -> None:
    gone = tmp_path / "gone of old.gguf"
    assert digest.known(gone) is None
    assert digest.earlier(gone) is None
    with pytest.raises(ModelInvalid) as caught:
        digest.sha256(gone, ignore)
    assert caught.value.message == f"`{gone}` cannot be read: No such file or directory"
    assert caught.value.hint == f"check it: `ls -l '{gone}'`"
    with pytest.raises(ModelInvalid, match="cannot be read: Is a directory"):
        digest.sha256(tmp_path, ignore)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"FILE": 3}', '{"FILE": [1, 2]}', '{"FILE": [3, 0, "x"]}'])
def test_damaged_state_file_is_ignored(file: Path, content: str) -> None:
    memory = Path(os.environ["LLMDEPLOY_STATE_DIR"]) / "digests.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(content.replace("FILE", str(file)))
    assert computed(file) == (sha(b"one"), True)
    assert computed(file) == (sha(b"one"), False)


def test_damaged_entry_does_not_affect_others(file: Path) -> None:
    other = file.with_name("other.gguf")
    other.write_bytes(b"other")
    computed(other)
    memory = Path(os.environ["LLMDEPLOY_STATE_DIR"]) / "digests.json"
    content = json.loads(memory.read_text())
    memory.write_text(json.dumps(content | {str(file): [3, 0, "x"]}))
    assert digest.known(file) is None
    assert digest.known(other) == sha(b"other")


def test_state_file_that_cannot_be_written_is_ignored(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = file.with_name("blocked")
    blocked.touch()
    monkeypatch.setenv("LLMDEPLOY_STATE_DIR", str(blocked / "state"))
    assert computed(file) == (sha(b"one"), True)
    assert computed(file) == (sha(b"one"), True)


@pytest.mark.parametrize("size", [0, 5, digest.LARGE_BYTES + 3])
def test_digest_of_a_download_is_that_of_all_pieces_and_of_the_file(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    (tmp_path / "x").write_bytes(content)
    lfs = RemoteFile("x", size, sha256=hashlib.sha256(content).hexdigest())
    git = RemoteFile("x", size, git_oid=hashlib.sha1(f"blob {size}\0".encode() + content).hexdigest())
    for file in (lfs, git):
        fed = digest.Checksum(file)
        for piece in (content[: size // 2], b"", content[size // 2 :]):
            fed.feed(piece)
        assert fed.digest() == file.digest == digest.of_file(file, tmp_path / "x")
