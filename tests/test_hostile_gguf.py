"""GGUF headers that a stranger made to take time or memory: each ends in a sentence, at once."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from llmdeploy.errors import ModelInvalid
from llmdeploy.models import gguf_cursor, gguf_header
from llmdeploy.models.facts import read_gguf
from tests.test_facts import refusal, write


def q(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def i(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def text(content: bytes) -> bytes:
    return q(len(content)) + content


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + i(kind) + value


SHAPE = (b"block_count", b"context_length", b"embedding_length", b"attention.head_count", b"vocab_size")
FIELDS = [field(b"general.architecture", 8, text(b"x")), *(field(b"x." + key, 4, i(2)) for key in SHAPE)]


def make(path: Path, tensors: bytes = b"", count: int = 0, fields: Any = (), size: int = 0) -> Path:
    """Write a header, and after it holes up to `size` bytes."""
    every = [*FIELDS, *fields]
    with path.open("wb") as file:
        file.write(b"GGUF" + i(3) + q(count, len(every)) + b"".join(every) + tensors)
        if size:
            file.truncate(size)
    return path


@pytest.mark.parametrize("count", [5, 300_000, 2**32 - 1])
def test_tensor_of_many_dimensions_is_refused(tmp_path: Path, count: int) -> None:
    tensors = text(b"t") + i(count) + b"\xff" * (8 * min(count, 300_000)) + i(0) + q(0)
    before = time.process_time()
    message = refusal(make(tmp_path / "x.gguf", tensors, 1))[0]
    assert time.process_time() - before < 0.5
    assert message.endswith(f"it has a tensor of {count:,} dimensions, and 4 are the most")


@pytest.mark.parametrize("shape", [(2**63,), (2**32, 2**31), (2**62, 2**62, 2**62, 2**62), (2**62, 4, 0)])
def test_tensor_with_more_elements_than_can_be_counted_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = text(b"t") + i(len(shape)) + q(*shape) + i(0) + q(0)
    assert "more elements than can be counted" in refusal(make(tmp_path / "x.gguf", tensors, 1))[0]


def test_tensors_that_lie_over_each_other_are_more_than_the_file_has(tmp_path: Path) -> None:
    tensors = b"".join(text(b"t%d" % number) + i(1) + q(1000) + i(0) + q(0) for number in range(100))
    assert "bytes are there and 40" in refusal(make(tmp_path / "x.gguf", tensors, 100, size=100_000))[0]


@pytest.mark.parametrize(
    ("count", "told"),
    [(2**24, "it states 16,777,216 tensors, and no model has more than 65,536"), (2**63, "does not end within")],
)
def test_sparse_file_with_many_tensors_is_refused(tmp_path: Path, count: int, told: str) -> None:
    assert told in refusal(make(tmp_path / "x.gguf", count=count, size=2**30))[0]


@pytest.mark.parametrize("count", [2**23, 2**62])
def test_sparse_file_with_many_texts_is_refused(tmp_path: Path, count: int) -> None:
    path = make(tmp_path / "x.gguf", fields=[field(b"a", 9, i(8) + q(count))], size=2**30)
    assert refusal(path)[0].endswith(("and no model has more than 4,194,304", "bytes that are there"))


def test_texts_of_several_arrays_are_counted_together(tmp_path: Path) -> None:
    few = [field(b"a%d" % number, 9, i(8) + q(3) + q(0, 0, 0)) for number in range(5)]
    path = make(tmp_path / "x.gguf", fields=few)
    assert gguf_header.read(path).fields["a4"] == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_cursor, "MOST_TEXTS", 14)
        assert "it states 15 texts" in refusal(path)[0]


@pytest.mark.parametrize("lengths", [[300_000, 0, 5], [2**18 - 8] * 3, [2**18 - 9, 1, 2**18 + 1], [0] * 70_000])
def test_texts_of_all_lengths_are_skipped_exactly(tmp_path: Path, lengths: list[int]) -> None:
    texts = b"".join(text(bytes(length)) for length in lengths)
    fields = [field(b"a", 9, i(8) + q(len(lengths)) + texts), field(b"after", 8, text(b"found"))]
    header = gguf_header.read(make(tmp_path / "x.gguf", fields=fields))
    assert (header.fields["a"], header.fields["after"]) == (len(lengths), "found")


def test_long_array_of_numbers_is_skipped_and_not_built(tmp_path: Path) -> None:
    count = 2**26
    path = tmp_path / "x.gguf"
    make(path, fields=[field(b"a", 9, i(7) + q(count)), field(b"b", 8, text(b""))])
    end = path.stat().st_size - len(field(b"b", 8, text(b"")))
    with path.open("r+b") as file:  # a hole in place of the numbers
        after = field(b"after", 8, text(b"found"))
        file.seek(end + count)
        file.write(after)
    header = gguf_header.read(path)
    assert (header.fields["a"], header.fields["after"]) == ((), "found")


def test_long_text_is_cut_and_all_texts_are_bounded(tmp_path: Path) -> None:
    long = text(b"x" * (gguf_cursor.LONGEST_TEXT + 5))
    header = gguf_header.read(make(tmp_path / "x.gguf", fields=[field(b"a", 8, long), field(b"b", 8, text(b"y"))]))
    assert len(header.fields["a"]) == gguf_cursor.LONGEST_TEXT
    assert header.fields["b"] == "y"
    every = [field(b"%d" % number, 8, long) for number in range(17)]
    assert "take more than 16,777,216 bytes" in refusal(make(tmp_path / "y.gguf", fields=every))[0]


@pytest.mark.parametrize(
    ("count", "told"),
    [(2**25, "its header states a field of 268,435,456 bytes"), (2**24, "its header has more than 134,217,728 bytes")],
)
def test_header_of_hundreds_of_megabytes_is_refused(tmp_path: Path, count: int, told: str) -> None:
    path = make(tmp_path / "x.gguf", fields=[field(b"a", 9, i(10) + q(count))], size=2**34)
    assert told in refusal(path)[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"attention.head_count": [4, -4]}, "no valid `test.attention.head_count`"),
        ({"attention.head_count": [4.0, 4.0]}, "no valid `test.attention.head_count`"),
        ({"attention.head_count_kv": [1, -(2**31)]}, "no valid `test.attention.head_count_kv`"),
        ({"context_length": 0}, "no valid `test.context_length`"),
        ({"block_count": 0}, "it claims 0 layers"),
        ({"block_count": 10_001}, "it claims 10001 layers"),
        ({"split.count": 65_535, "split.no": 0}, "it claims to be part 1 of 65535 of a model"),
        ({"split.count": 2, "split.no": 7}, "it claims to be part 8 of 2 of a model"),
    ],
)
def test_impossible_number_ends_in_a_sentence(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    assert told in refusal(write(tmp_path / "x.gguf", fields))[0]


def test_long_values_do_not_fill_a_message(tmp_path: Path) -> None:
    for key in (b"general.type", b"general.architecture"):
        path = make(tmp_path / "x.gguf", fields=[field(key, 8, text(b"long" * 100_000))])
        assert len(refusal(path)[0]) < 400 + len(str(path))


@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_device_and_pipe_behind_a_link_are_refused(tmp_path: Path, place: str) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("pipes of POSIX")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.gguf").symlink_to(place)
    with pytest.raises(ModelInvalid, match="is a device or a pipe, not a GGUF file"):
        read_gguf(tmp_path / "x.gguf")
