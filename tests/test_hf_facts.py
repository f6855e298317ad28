"""Facts of models in Hugging Face form, and facts read at a source: the same, with few requests and few bytes."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmdeploy.errors import ModelInvalid
from llmdeploy.models import hf_facts, safetensors
from llmdeploy.models.facts import read_gguf
from llmdeploy.models.hf_model import HfModel
from tests.conftest import SELFTEST
from tests.hub_server import COMMIT, Hub, serve
from tests.test_facts import write

BITS = {"F4": 4, "F8_E4M3": 8, "BF16": 16, "F16": 16, "F32": 32, "I32": 32}


def write_safetensors(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> Path:
    """Write a file with tensors of these types and shapes, all zero."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return file


# --- The header of a safetensors file


def test_header_of_the_shipped_model() -> None:
    with (SELFTEST / "hf" / "model.safetensors").open("rb") as file:
        header = safetensors.read("x", file)
    assert header.elements == {"BF16": header.tensor_bytes // 2}


def test_quantized_model_has_the_bytes_of_its_tensors(tmp_path: Path) -> None:
    """AWQ and GPTQ put eight numbers into one of 32 bits; FP8 has separate scales."""
    awq = {"qweight": ("I32", [64, 16]), "qzeros": ("I32", [1, 16]), "scales": ("F16", [1, 128])}
    fp8 = {"w": ("F8_E4M3", [64, 64]), "w_scale": ("F32", [1])}
    with write_safetensors(tmp_path / "awq", awq).open("rb") as file:
        expected = safetensors.SafetensorsHeader(64 * 16 * 4 + 16 * 4 + 256, {"I32": 1040, "F16": 128})
        assert safetensors.read("x", file) == expected
    with write_safetensors(tmp_path / "fp8", fp8).open("rb") as file:
        assert safetensors.read("x", file) == safetensors.SafetensorsHeader(4096 + 4, {"F8_E4M3": 4096, "F32": 1})


def test_file_without_tensors_is_read(tmp_path: Path) -> None:
    with write_safetensors(tmp_path / "x", {}).open("rb") as file:
        assert safetensors.read("x", file).tensor_bytes == 0


@pytest.mark.parametrize("size", [0, 7, 8, 100, 300_000])
def test_a_file_that_is_cut_is_damaged(size: int) -> None:
    content = (SELFTEST / "hf" / "model.safetensors").read_bytes()[:size]
    with pytest.raises(ModelInvalid, match=r"`x\.safetensors` is truncated or damaged: ") as caught:
        safetensors.read("x.safetensors", io.BytesIO(content))
    if size == 300_000:
        assert "300,000 bytes are there and 2,314,712 are needed" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b'{"w": 1}',
        b'{"w": {}}',
        b'{"w": {"dtype": "F16", "shape": 5, "data_offsets": [0, 2]}}',
        b'{"w": {"dtype": "F16", "shape": [1], "data_offsets": [0]}}',
        b"[" * 100_000,
        b"\xff" * 50,
    ],
)
def test_text_that_is_not_a_header_is_refused(text: bytes) -> None:
    with pytest.raises(ModelInvalid, match="is truncated or damaged"):
        safetensors.read("x", io.BytesIO(len(text).to_bytes(8, "little") + text + bytes(100)))


def test_huge_length_does_not_fill_the_memory() -> None:
    with pytest.raises(ModelInvalid, match="does not end within"):
        safetensors.read("x", io.BytesIO((2**62).to_bytes(8, "little") + bytes(1000)))


def test_a_damaged_file_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelInvalid) as caught:
        HfModel(tmp_path).facts()
    assert caught.value.message.startswith(f"`{tmp_path / 'model.safetensors'}` is truncated or damaged")
    assert caught.value.hint == "fetch the file again"


def test_files_that_are_the_weights() -> None:
    names = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "a/b.safetensors", "x.bin"]
    assert hf_facts.weights(names) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert hf_facts.weights([*names, "consolidated.safetensors"]) == ["consolidated.safetensors"]


# --- At the source

REPO = "owner/model"
SCRIPT = """
import json, sys
from dataclasses import asdict
from llmdeploy.errors import LlmdeployError
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.hf_model import HfModel
from llmdeploy.models.reference import HubFile, HubRepo

kind, *names = sys.argv[1:]
try:
    if kind == "gguf":
        model = GgufModel(*(HubFile("owner/model", name) for name in names))
    else:
        model = HfModel(HubRepo("owner/model"))
    if kind == "tokenizer":
        model.require_tokenizer()
    print(json.dumps(asdict(model.facts())))
except LlmdeployError as error:
    print(json.dumps(error.as_document()))
"""


def facts_at(hub: Hub, home: Path, *arguments: str) -> dict[str, Any]:
    """Return the facts of a repository, read by a process with an empty home; or its error."""
    inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "SYSTEMROOT", "TMPDIR", "TEMP"}}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *arguments],
        env={**inherited, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert not list((home / "hf").rglob("*.*s*")), "nothing is kept"
    return answer


def plain(facts: Any) -> Any:
    return json.loads(json.dumps(vars(facts)))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub()) as hub:
        yield hub


def test_a_gguf_file_has_the_same_facts_at_the_source(hub: Hub, tmp_path: Path) -> None:
    names = ("selftest-f16.gguf", "mmproj-selftest-f16.gguf")
    hub.files[REPO] = {name: SELFTEST / name for name in names}
    assert facts_at(hub, tmp_path, "gguf", *names) == plain(read_gguf(*(SELFTEST / name for name in names)))
    assert len(hub.requests) == 2 + 4, "what there is, and of each file where it is, and the header"
    assert hub.sent_bytes() == 2 * 2**18


def test_a_split_model_is_counted_at_the_source(hub: Hub, tmp_path: Path) -> None:
    first, second = (f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    write(tmp_path / first, {"split.count": 2, "split.no": 0})
    write(tmp_path / second, {"split.count": 2, "split.no": 1}, tensors=3)
    hub.files[REPO] = {f"Q8_0/{name}": tmp_path / name for name in (first, second)}
    assert facts_at(hub, tmp_path, "gguf", f"Q8_0/{first}") == plain(read_gguf(tmp_path / first))
    assert facts_at(hub, tmp_path, "gguf", f"Q8_0/{second}") == plain(read_gguf(tmp_path / first))


def test_projector_at_the_source_is_not_a_model(hub: Hub, tmp_path: Path) -> None:
    hub.files[REPO] = {"mmproj.gguf": SELFTEST / "mmproj-selftest-f16.gguf"}
    error = facts_at(hub, tmp_path, "gguf", "mmproj.gguf")["error"]
    assert error["message"] == f"`hf://owner/model/mmproj.gguf@{COMMIT}` is a vision projector, not a model"
    assert error["hint"] == "give the model's own file first"


def test_a_model_in_hugging_face_form_has_the_same_facts_at_the_source(hub: Hub, tmp_path: Path) -> None:
    hub.files[REPO] = {file.name: file for file in (SELFTEST / "hf").iterdir()}
    assert facts_at(hub, tmp_path, "hf") == plain(HfModel(SELFTEST / "hf").facts())
    assert hub.sent_bytes("model.safetensors") == 2**18
    assert hub.sent_bytes() < 2**18 + 10_000
    assert {method for method, _, _ in hub.requests} == {"GET", "HEAD"}
    assert len(hub.requests) == 2 + 4


def sharded(folder: Path, count: int, index: dict[str, Any] | None) -> dict[str, bytes | Path]:
    """Split a model into so many files, with the index of a repository."""
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}')
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        write_safetensors(folder / name, {f"{number}.{part}": ("BF16", [400, 400]) for part in range(3)})
    if index is not None:
        text = json.dumps({"metadata": index, "weight_map": {f"w{number}": "x" for number in range(50_000)}})
        (folder / "model.safetensors.index.json").write_text(text)
    return {file.name: file for file in folder.iterdir()}


def test_headers_of_many_files_are_not_read_one_by_one(hub: Hub, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    hub.files[REPO] = sharded(made, 12, {"total_size": 12 * 960_000})
    assert facts_at(hub, tmp_path, "hf") == plain(HfModel(made).facts())
    assert hub.asked("GET", "of-00012") == []
    assert hub.sent_bytes() <= 2**18 + 1000, "of the index its beginning"


@pytest.mark.parametrize("index", [None, {}, {"total_size": 5}, {"total_size": 10**15}])
def test_impossible_total_of_an_index_is_ignored(hub: Hub, tmp_path: Path, index: dict[str, Any] | None) -> None:
    made = tmp_path / "made"
    made.mkdir()
    hub.files[REPO] = sharded(made, 2, index)
    assert facts_at(hub, tmp_path, "hf")["weights_bytes"] == HfModel(made).facts().weights_bytes == 2 * 960_000


def test_sizes_of_many_files_are_used_without_a_total(hub: Hub, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    hub.files[REPO] = sharded(made, 12, {})
    size = facts_at(hub, tmp_path, "hf")["weights_bytes"]
    assert 12 * 960_000 < size < 12 * 961_000
    assert hub.asked("GET", "of-00012") == []


def test_repository_without_a_tokenizer_is_refused_before_its_download(hub: Hub, tmp_path: Path) -> None:
    hub.files[REPO] = {name: SELFTEST / "hf" / name for name in ("config.json", "model.safetensors")}
    assert facts_at(hub, tmp_path, "tokenizer")["error"]["message"] == "`hf://owner/model` holds no tokenizer"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, "`hf://owner/model` holds no `config.json`"),
        ({"config.json": b"<html>"}, "`hf://owner/model/config.json` cannot be read: "),
        ({"config.json": b"[]"}, "`hf://owner/model/config.json` is not a JSON object"),
        (
            {"config.json": b"{}", "model.safetensors": bytes(1000)},
            "`hf://owner/model/model.safetensors` is truncated or damaged: ",
        ),
    ],
)
def test_damaged_file_at_the_source_is_reported(
    hub: Hub, tmp_path: Path, files: dict[str, bytes | Path], message: str
) -> None:
    hub.files[REPO] = files
    assert re.match(re.escape(message), facts_at(hub, tmp_path, "hf")["error"]["message"])
