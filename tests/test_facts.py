"""GGUF headers: of the shipped model, of files made by gguf's own writer, and of files that are not GGUF."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdeploy.errors import LlmdeployError, ModelInvalid, ModelNotFound
from llmdeploy.models.facts import ModelFacts, read_gguf
from llmdeploy.models.quantization import choose_mmproj, find_mmproj
from llmdeploy.paths import selftest_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = selftest_dir() / "selftest-f16.gguf"
MMPROJ = selftest_dir() / "mmproj-selftest-f16.gguf"


def write(path: Path, fields: dict[str, Any], architecture: str = "test", tensors: int = 1) -> Path:
    """Write a GGUF file with gguf's writer; `fields` of the architecture have no prefix."""
    writer = gguf.GGUFWriter(path, architecture)
    shapes = {"block_count": 2, "embedding_length": 64, "attention.head_count": 4, "context_length": 512}
    for key, value in {**shapes, "vocab_size": 10, **fields}.items():
        name = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
        match value:
            case None:
                pass
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
            case _:
                writer.add_uint32(name, value)
    for number in range(tensors):
        writer.add_tensor(f"t{number}", np.zeros((64, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(weights: Path, mmproj: Path | None = None) -> tuple[str, str]:
    with pytest.raises(ModelInvalid) as failure:
        read_gguf(weights, mmproj)
    assert failure.value.hint
    return failure.value.message, failure.value.hint


# --- What a good header says


def test_facts_of_the_shipped_model() -> None:
    facts = read_gguf(WEIGHTS, MMPROJ)
    assert facts == ModelFacts(
        architecture="qwen2vl",
        weights_bytes=1_711_616,
        kv_heads=(2, 2, 2, 2),
        key_length=32,
        value_length=32,
        embedding_length=128,
        vocabulary_size=508,
        context_length=8192,
        mmproj_bytes=603_136,
        capabilities=("text", "image"),
        source="header of selftest-f16.gguf",
    )
    assert facts.layers == 4
    assert facts.sees_images
    # 4 layers x 2 KV heads x (32 + 32) x 2 bytes; llama.cpp prints 8 MiB for its 8192 tokens.
    assert facts.kv_bytes_per_token() == 1024
    assert facts.kv_bytes_per_token(4) == 2048
    assert not read_gguf(WEIGHTS).sees_images


@pytest.mark.parametrize(
    ("template", "calls"),
    [("{% if tools %}{% endif %}", True), ("{{ message.toolset }}", False), ("", False), (None, False)],
)
def test_chat_template_shows_whether_a_model_calls_tools(tmp_path: Path, template: str | None, calls: bool) -> None:
    facts = read_gguf(write(tmp_path / "x.gguf", {"tokenizer.chat_template": template}))
    assert facts.capabilities == (("text", "tools") if calls else ("text",))


@pytest.mark.parametrize("path", [WEIGHTS, MMPROJ], ids=lambda path: path.name)
def test_tensor_bytes_are_those_of_the_gguf_library(path: Path) -> None:
    expected = sum(tensor.n_bytes for tensor in gguf.GGUFReader(str(path)).tensors)
    facts = read_gguf(WEIGHTS, MMPROJ)
    assert (facts.mmproj_bytes if path == MMPROJ else facts.weights_bytes) == expected


def test_quantized_tensors_are_counted_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "test")
    for key, value in {"block_count": 1, "embedding_length": 8, "context_length": 1, "vocab_size": 1}.items():
        writer.add_uint32(f"test.{key}", value)
    writer.add_head_count(1)
    q8_0 = gguf.quants.quantize(np.ones((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", q8_0, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf(path).weights_bytes == 4 * 64 * 34 // 32


@pytest.mark.parametrize(
    ("fields", "kv_heads", "lengths"),
    [
        ({}, (4, 4), (16, 16)),
        ({"attention.head_count_kv": 1}, (1, 1), (16, 16)),
        ({"attention.head_count_kv": [2, 0]}, (2, 0), (16, 16)),
        ({"attention.head_count": [0, 8]}, (0, 8), (8, 8)),
        ({"attention.head_count": 0}, (0, 0), (0, 0)),
        ({"attention.key_length": 24, "attention.value_length": 8}, (4, 4), (24, 8)),
    ],
)
def test_heads_are_one_number_or_one_for_each_layer(
    tmp_path: Path, fields: dict[str, Any], kv_heads: tuple[int, ...], lengths: tuple[int, int]
) -> None:
    facts = read_gguf(write(tmp_path / "x.gguf", fields))
    assert facts.kv_heads == kv_heads
    assert (facts.key_length, facts.value_length) == lengths
    assert facts.kv_bytes_per_token() == sum(kv_heads) * sum(lengths) * 2


def test_the_vocabulary_is_a_number_or_the_length_of_the_list(tmp_path: Path) -> None:
    tokens = {"tokenizer.ggml.tokens": ["a", "b", "ü"]}
    assert read_gguf(write(tmp_path / "a.gguf", tokens | {"vocab_size": None})).vocabulary_size == 3
    assert read_gguf(write(tmp_path / "b.gguf", tokens | {"vocab_size": 7})).vocabulary_size == 7


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    tokens = [f"token{number}" for number in range(150_000)]
    path = write(
        tmp_path / "x.gguf",
        {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [1.0] * 150_000, "vocab_size": None},
    )
    start = time.perf_counter()
    assert read_gguf(path).vocabulary_size == 150_000
    # 0.1 s here; gguf.GGUFReader takes 5 s.
    assert time.perf_counter() - start < 1.5


def test_all_parts_of_a_split_model_are_counted(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    write(first, {"split.count": 2, "split.no": 0})
    assert refusal(first) == (
        f"`{first}` is one of 2 parts of a model, and `{second.name}` is not beside it",
        f"put all parts into `{tmp_path}`",
    )
    write(second, {"split.count": 2, "split.no": 1}, tensors=3)
    assert read_gguf(first).weights_bytes == 4 * 64 * 32 * 2
    message, hint = refusal(second)
    assert message == f"`{second}` is part 2 of 2 of a split model"
    assert str(first) in hint


def test_files_are_closed(tmp_path: Path) -> None:
    # On Windows a file that is open or mapped cannot be removed; elsewhere /proc tells.
    path = tmp_path / "x.gguf"
    shutil.copy(WEIGHTS, path)
    read_gguf(path)
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert str(path) not in maps.read()
        assert str(path) not in {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    path.unlink()


# --- What cannot be a model


def test_missing_file_is_reported_with_similar_names(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS, tmp_path / "model-q4.gguf")
    with pytest.raises(ModelNotFound) as failure:
        read_gguf(tmp_path / "model-q5.gguf")
    assert failure.value.message == f"there is no file `{tmp_path / 'model-q5.gguf'}`"
    assert failure.value.hint == f"`{tmp_path}` has `model-q4.gguf`"


def test_missing_file_in_an_empty_and_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no file") as failure:
        read_gguf(tmp_path / "x.gguf")
    assert failure.value.hint == "`llmdeploy models` lists names that need no file"
    with pytest.raises(ModelNotFound, match="there is no file") as failure:
        read_gguf(tmp_path / "no" / "x.gguf")
    assert failure.value.hint == f"there is no folder `{tmp_path / 'no'}` either"


def test_broken_link_is_reported(tmp_path: Path) -> None:
    link = tmp_path / "x.gguf"
    link.symlink_to(tmp_path / "gone.gguf")
    with pytest.raises(ModelNotFound):
        read_gguf(link)


def test_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (f"`{tmp_path}` is a folder, not a GGUF file", "give a `.gguf` file")
    shutil.copy(WEIGHTS, tmp_path / "x.gguf")
    assert refusal(tmp_path)[1] == "give one of its files: `x.gguf`"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    assert refusal(tmp_path / "x.gguf")[0].endswith(" is a device or a pipe, not a GGUF file")


def test_empty_file_and_text_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x y.gguf"
    path.touch()
    assert refusal(path)[0] == f"`{path}` is empty"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    message, hint = refusal(path)
    assert message == f"`{path}` is not a GGUF file, whatever its name says"
    assert hint.startswith(f"`head -c 200 '{path}'` shows what it is")


@contextlib.contextmanager
def as_a_plain_user() -> Iterator[None]:
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_file_without_permission_is_reported(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "folder" / "x.gguf"
    path.parent.mkdir()
    shutil.copy(WEIGHTS, path)
    (path if closed == "file" else path.parent).chmod(0)
    try:
        with as_a_plain_user():
            message, hint = refusal(path)
    finally:
        path.parent.chmod(0o700)
    assert message == f"`{path}` cannot be read: permission denied"
    assert hint == f"`ls -ld {path.parent} {path}` shows who may read it"


def test_impossible_path_is_reported(tmp_path: Path) -> None:
    for name in ("x" * 5000 + ".gguf", "\0.gguf"):
        with pytest.raises((ModelInvalid, ModelNotFound)):
            read_gguf(tmp_path / name)


def test_truncated_file_is_reported_with_both_sizes(tmp_path: Path) -> None:
    path, content = tmp_path / "x.gguf", WEIGHTS.read_bytes()
    path.write_bytes(content[:1_000_000])
    assert refusal(path) == (
        f"`{path}` is truncated or damaged: 1,000,000 bytes are there and 1,726,752 are needed",
        "fetch the file again",
    )
    path.write_bytes(content[:-1])
    assert "1,726,751 bytes are there" in refusal(path)[0]
    path.write_bytes(content + b"more")
    assert read_gguf(path).weights_bytes == 1_711_616


def test_a_header_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    path, content = tmp_path / "x.gguf", WEIGHTS.read_bytes()
    for length in [*range(4, 200), *range(200, 12_000, 97)]:
        path.write_bytes(content[:length])
        assert refusal(path)[0].startswith(f"`{path}` is truncated or damaged: ")


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_any_damage_gives_facts_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(WEIGHTS.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, 14_000))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with contextlib.suppress(LlmdeployError):
        read_gguf(path)


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (struct.pack("<IQQ", 1, 0, 0), "it has GGUF version 1, and only versions 2 and 3 can be read"),
        (struct.pack("<IQQ", 3, 2**63, 2**63), "its header does not end within the 24 bytes that are there"),
        (struct.pack("<IQQQ", 3, 0, 1, 2**62), "its header does not end within the 32 bytes that are there"),
        (struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99), "it has a field of the unknown type 99"),
        (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "it has an array of the unknown type 9"),
        (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**60), "its header does not end within the 49 bytes"),
    ],
)
def test_damaged_header_is_reported(tmp_path: Path, header: bytes, detail: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + header)
    assert refusal(path)[0].startswith(f"`{path}` is truncated or damaged: {detail}")


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"block_count": None}, "test.block_count"),
        ({"embedding_length": None}, "test.embedding_length"),
        ({"context_length": None}, "test.context_length"),
        ({"context_length": "long"}, "test.context_length"),
        ({"attention.head_count": None}, "test.attention.head_count"),
        ({"attention.head_count_kv": [1, 2, 3]}, "test.attention.head_count_kv"),
        ({"vocab_size": None}, "test.vocab_size"),
    ],
)
def test_header_without_a_required_field_is_reported(tmp_path: Path, fields: dict[str, Any], key: str) -> None:
    path = write(tmp_path / "x.gguf", fields)
    assert refusal(path)[0] == f"the header of `{path}` has no valid `{key}`, which every model needs"


def test_header_without_an_architecture_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert refusal(path)[0] == f"the header of `{path}` has no valid `general.architecture`, which every model needs"


def test_a_wrong_number_of_layers_does_not_fill_the_memory(tmp_path: Path) -> None:
    assert "it claims 4294967295 layers" in refusal(write(tmp_path / "x.gguf", {"block_count": 2**32 - 1}))[0]


def test_model_and_projector_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    assert refusal(MMPROJ) == (
        f"`{MMPROJ}` is a vision projector, not a model",
        f"give the model's own file first and this one with `--mmproj {shlex.quote(str(MMPROJ))}`",
    )
    assert refusal(WEIGHTS, WEIGHTS)[0] == f"`{WEIGHTS}` is not a vision projector"
    old = write(tmp_path / "old.gguf", {}, architecture="clip")
    assert refusal(old)[0] == f"`{old}` is a vision projector, not a model"
    adapter = write(tmp_path / "adapter.gguf", {"general.type": "adapter"})
    assert refusal(adapter)[0] == f"`{adapter}` is of type `adapter`, not a model"
    with pytest.raises(ModelNotFound):
        read_gguf(WEIGHTS, tmp_path / "gone.gguf")


# --- Which projector belongs to which model

QWEN_7B, QWEN_3B = "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "Qwen2.5-VL-3B-Instruct-Q4_K_M.gguf"
QWEN_7B_MMPROJ = "mmproj-Qwen2.5-VL-7B-Instruct-Q8_0.gguf"
QWEN_7B_MMPROJ_F16 = "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf"


@pytest.mark.parametrize(
    ("weights", "beside", "chosen"),
    [
        (QWEN_7B, [], None),
        (QWEN_7B, [QWEN_7B_MMPROJ], QWEN_7B_MMPROJ),
        (QWEN_7B, [QWEN_3B, QWEN_7B_MMPROJ], QWEN_7B_MMPROJ),
        (QWEN_3B, [QWEN_7B, QWEN_7B_MMPROJ], None),
        (QWEN_3B, [QWEN_7B_MMPROJ], None),
        ("Qwen3-8B-Q4_K_M.gguf", [QWEN_7B, QWEN_7B_MMPROJ], None),
        (QWEN_7B, [QWEN_7B_MMPROJ, QWEN_7B_MMPROJ_F16], QWEN_7B_MMPROJ_F16),
        (QWEN_7B, ["mmproj-F16.gguf", "mmproj-BF16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (QWEN_7B, ["mmproj-F16.gguf", QWEN_7B_MMPROJ], QWEN_7B_MMPROJ),
        (QWEN_7B, ["mmproj.gguf"], "mmproj.gguf"),
        (QWEN_7B, ["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        (QWEN_7B, ["Qwen2.5-VL-7B-Instruct-Q8_0.gguf", "mmproj-F16.gguf"], "mmproj-F16.gguf"),
        (QWEN_7B, [QWEN_3B, "mmproj-F16.gguf"], None),
        (QWEN_7B, ["Qwen2.5-VL-7B-Instruct.mmproj-f16.gguf"], "Qwen2.5-VL-7B-Instruct.mmproj-f16.gguf"),
        ("gemma-3-4b-it-qat-Q4_0.gguf", ["mmproj-gemma-3-4b-it-f16.gguf"], "mmproj-gemma-3-4b-it-f16.gguf"),
        ("m-Q4_0-00001-of-00002.gguf", ["m-Q4_0-00002-of-00002.gguf", "mmproj.gguf"], "mmproj.gguf"),
        ("selftest-f16.gguf", ["mmproj-selftest-f16.gguf"], "mmproj-selftest-f16.gguf"),
    ],
)
def test_projector_that_belongs_to_a_model_is_chosen(weights: str, beside: list[str], chosen: str | None) -> None:
    assert choose_mmproj(weights, [weights, *beside]) == chosen
    assert choose_mmproj(weights, [*reversed(beside), weights]) == chosen


def test_projector_in_the_folder_of_a_file_is_found(tmp_path: Path) -> None:
    assert find_mmproj(WEIGHTS) == MMPROJ
    assert find_mmproj(MMPROJ) is None
    assert find_mmproj(tmp_path / "x.gguf") is None
    assert find_mmproj(tmp_path / "no" / "x.gguf") is None
