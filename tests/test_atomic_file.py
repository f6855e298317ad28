import os
import stat
from pathlib import Path

import pytest

from llmdeploy.atomic_file import JsonFile, replace


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b"[1]"], ids=["empty", "cut off", "not UTF-8", "too deep", "a list"]
)
def test_damaged_json_file_gives_the_default(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "it.json").write_bytes(content)
    assert JsonFile(tmp_path / "it.json").read({"a": 1}) == {"a": 1}


def test_missing_or_unreadable_json_file_gives_the_default(tmp_path: Path) -> None:
    assert JsonFile(tmp_path / "it.json").read([]) == []
    assert JsonFile(tmp_path).read({}) == {}


def test_json_file_reads_what_it_has_written(tmp_path: Path) -> None:
    file = JsonFile(tmp_path / "new" / "it.json")
    for value in ({"a": [1, None]}, {"b": "ü"}):
        file.write(value)
        assert file.read({}) == value
    assert [it.name for it in file.path.parent.iterdir()] == ["it.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_json_file_and_its_folder_are_private(tmp_path: Path) -> None:
    file = JsonFile(tmp_path / "new" / "it.json")
    file.write({})
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_json_file_has_the_indentation_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    JsonFile(file).write({"a": 1})
    assert file.read_text() == '{"a": 1}'
    JsonFile(file, indent=2).write({"a": 1})
    assert file.read_text() == '{\n  "a": 1\n}'


def test_json_file_that_cannot_be_written_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        JsonFile(tmp_path / "file" / "it.json").write({})


def test_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)):
        replace(tmp_path / "folder", b"")
    assert [it.name for it in tmp_path.iterdir()] == ["folder"]
