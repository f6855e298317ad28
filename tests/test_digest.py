"""Digests of files: right, and computed once for each state of a file."""

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
    """The digest, and whether the file was read for it."""
    told: Progress = []
    found = digest.sha256(path, lambda *now: told.append(now))
    return found, bool(told)


def test_it_is_computed_once(file: Path) -> None:
    assert digest.known(file) is None
    assert computed(file) == (sha(b"one"), True)
    assert computed(file) == (sha(b"one"), False)
    assert digest.known(file) == sha(b"one")


def test_progress_is_told_in_pieces_and_reaches_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "CHUNK_BYTES", 4)
    file = tmp_path / "x.gguf"
    file.write_bytes(b"0123456789")
    told: Progress = []
    assert digest.sha256(file, lambda *now: told.append(now)) == sha(b"0123456789")
    assert told == [("checking x.gguf", done, 10) for done in (4, 8, 10)]


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert digest.sha256(tmp_path / "empty", ignore) == sha(b"")


@pytest.mark.parametrize("change", ["longer", "same length", "same content, other time"])
def test_a_changed_file_is_read_again(file: Path, change: str) -> None:
    computed(file)
    if change != "same content, other time":
        file.write_bytes(b"longer" if change == "longer" else b"two")
    os.utime(file, ns=(1, 1))
    assert digest.known(file) is None
    assert digest.earlier(file) == sha(b"one")
    assert computed(file) == (sha(file.read_bytes()), True)
    assert digest.earlier(file) == sha(file.read_bytes())


def test_a_file_whose_time_another_program_has_set(file: Path) -> None:
    found, _ = computed(file)
    os.utime(file, ns=(1, 1))
    digest.save(file, found)
    assert computed(file) == (found, False)
    digest.save(file.with_name("gone"), found)  # it went away meanwhile: nothing to remember
    assert digest.known(file.with_name("gone")) is None


def test_a_link_and_a_copy(file: Path) -> None:
    """A link is the file; a copy is another one."""
    link, copy = file.with_name("link.gguf"), file.with_name("copy.gguf")
    link.symlink_to(file)
    computed(link)
    assert digest.known(file) == sha(b"one")
    copy.write_bytes(file.read_bytes())
    assert digest.known(copy) is None


def test_the_hubs_cache_names_files_by_their_digest(tmp_path: Path) -> None:
    """Then nothing is read: the name is believed, as the Hub's library believes it."""
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


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
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
def test_a_memory_that_makes_no_sense_is_forgotten(file: Path, content: str) -> None:
    memory = Path(os.environ["LLMDEPLOY_STATE_DIR"]) / "digests.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(content.replace("FILE", str(file)))
    assert computed(file) == (sha(b"one"), True)
    assert computed(file) == (sha(b"one"), False)


def test_a_broken_entry_does_not_take_the_others_along(file: Path) -> None:
    other = file.with_name("other.gguf")
    other.write_bytes(b"other")
    computed(other)
    memory = Path(os.environ["LLMDEPLOY_STATE_DIR"]) / "digests.json"
    content = json.loads(memory.read_text())
    memory.write_text(json.dumps(content | {str(file): [3, 0, "x"]}))
    assert digest.known(file) is None
    assert digest.known(other) == sha(b"other")


def test_a_memory_that_cannot_be_written_costs_time_only(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
