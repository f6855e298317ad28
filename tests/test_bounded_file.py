"""Small files of strangers: only regular ones, only up to a limit, and links only to such files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llmdeploy import bounded_file
from llmdeploy.config import toml_file

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of POSIX")


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345")
    assert bounded_file.read(file, 5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        bounded_file.read(file, 4)


def test_large_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="it has more than 1,048,576 bytes"):
        bounded_file.read(tmp_path / "x")


def test_link_is_followed_to_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("x")
    assert bounded_file.read(tmp_path / "link") == b"1"


@needs_posix
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "link to a pipe"])
def test_pipe_and_device_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "x"
    os.mkfifo(tmp_path / "pipe")
    places = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero")}
    place = places[kind.split()[-1]]
    if "link" in kind:
        file.symlink_to(place)
        place = file
    with pytest.raises(OSError, match="it is not a regular file"):
        bounded_file.read(place)


@needs_posix
def test_file_that_becomes_a_pipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    with pytest.raises(OSError, match="it is not a regular file"):
        bounded_file.read(tmp_path / "pipe")


def test_folder_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        bounded_file.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        bounded_file.read(tmp_path / "no")


def test_json_is_read_with_bounds(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"limit": [0.0, Infinity]}')
    assert bounded_file.read_json(file) == {"limit": [0.0, float("inf")]}
    for text, reason in [
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[" + b"[]," * 400_000 + b"[]]", "it has more than 500,000 values"),
        (b"{", "Expecting property name"),
        (b"9" * 5000, "Exceeds the limit"),
        (b'"\xff"', "decode"),
    ]:
        with pytest.raises(ValueError, match=reason):
            bounded_file.json_value(text)


@pytest.mark.parametrize(
    "text",
    [
        "a." * 5000 + "a = 1",
        "[" + "a." * 5000 + "a]",
        "\n".join(f"[a.b{number}.c.d.e.f.g.h]" for number in range(20_000)),
        "a = [" + "1," * 200_000 + "]",
        "a = [" + "{a=1}," * 50_000 + "]",
        'a = "' + '\\"' * 200_000 + "." * 700,
    ],
)
def test_toml_that_would_take_long_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too many values, or keys with too many dots"):
        toml_file.loads(text)


def test_long_toml_is_read() -> None:
    text = "".join(f'a{number} = "model.language.{number}.gguf"\n' for number in range(5_000))
    assert len(toml_file.loads(text)) == 5_000
