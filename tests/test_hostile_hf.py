"""Models in Hugging Face form that a stranger made to take time or memory: each ends in a sentence, at once."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmdeploy.errors import ModelInvalid
from llmdeploy.models import hf_facts, safetensors
from llmdeploy.models.hf_facts import is_mlx
from llmdeploy.models.hf_model import HfModel
from tests.test_hf_facts import write_safetensors

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 10}


def refused(folder: Path, **values: Any) -> str:
    (folder / "config.json").write_text(json.dumps({**SHAPE, **values}))
    with pytest.raises(ModelInvalid) as caught:
        HfModel(folder).facts()
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("num_hidden_layers", -5, "-5"),
        ("num_hidden_layers", 2.5, "2.5"),
        ("num_hidden_layers", 2**40, "1099511627776"),
        ("num_attention_heads", float("nan"), "nan"),
        ("hidden_size", float("inf"), "inf"),
        ("vocab_size", 10**400, "a very large number"),
        ("vocab_size", -(10**400), "a very large number"),
        ("max_position_embeddings", -1, "-1"),
    ],
)
def test_impossible_number_in_a_configuration_is_reported(tmp_path: Path, name: str, value: float, shown: str) -> None:
    assert refused(tmp_path, **{name: value}) == (
        f"`{tmp_path / 'config.json'}` has `{name}` = `{shown}`, which no model has"
    )


def test_number_of_layers_does_not_fill_the_memory(tmp_path: Path) -> None:
    assert refused(tmp_path, num_hidden_layers=10_001) == f"`{tmp_path / 'config.json'}` claims 10001 layers"


def test_numbers_written_with_a_point_and_lists_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": 2.0, "num_key_value_heads": [1]}))
    assert HfModel(tmp_path).facts().kv_heads == (4, 4)


def test_large_configuration_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ModelInvalid, match="it has more than 4,194,304 bytes"):
        HfModel(tmp_path).facts()
    assert not is_mlx(tmp_path / "config.json")


def test_configuration_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("pipes of POSIX")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelInvalid, match="it is not a regular file"):
        HfModel(tmp_path).facts()
    assert not is_mlx(tmp_path / "config.json")


def test_large_configuration_at_the_source_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmdeploy.models.reference import HubRepo
    from llmdeploy.models.source import Listing, RemoteFile

    class Endless(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            return 2**40 if whence == io.SEEK_END else offset

        def read(self, *_: object) -> bytes:
            pytest.fail("fetched")

    repository = hf_facts.Repository(
        Listing(HubRepo("o/r"), "c" * 40, (RemoteFile("config.json", 5, git_oid="a" * 40),))
    )
    monkeypatch.setattr(hf_facts.Repository, "_open", lambda *_: Endless())
    with pytest.raises(ModelInvalid, match=r"`hf://o/r/config\.json` has more than 4,194,304 bytes"):
        repository.config()


def test_many_files_of_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_facts, "MOST_FILES", 2)
    for number in range(3):
        write_safetensors(tmp_path / f"{number}.safetensors", {})
    assert refused(tmp_path).endswith("comes with 3 safetensors files")


TENSOR: dict[str, Any] = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    "header",
    [
        {"w": {**TENSOR, "shape": [1] * 100_000}},
        {"w": {**TENSOR, "shape": [2**62] * 500}},
        {"w": {**TENSOR, "shape": [-1, -1]}},
        {"w": {**TENSOR, "shape": [1.5]}},
        {"w": {**TENSOR, "data_offsets": [5, 2]}},
        {"w": {**TENSOR, "data_offsets": [-5, -2]}},
        {"w": {**TENSOR, "data_offsets": [0, 2**70]}},
        {"w": {**TENSOR, "dtype": "F" * 10_000}},
        {str(number): 0 for number in range(400_001)},
    ],
    ids=["dimensions", "elements", "negative", "float", "backwards", "before", "behind", "type", "tensors"],
)
def test_hostile_header_of_safetensors_is_refused(header: dict[str, Any]) -> None:
    content = json.dumps(header).encode()
    with pytest.raises(ModelInvalid, match="its header is not one of safetensors"):
        safetensors.read("x", io.BytesIO(len(content).to_bytes(8, "little") + content + bytes(100)))


def test_header_of_a_gigabyte_is_refused_by_its_length(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((2**26).to_bytes(8, "little"))
        file.truncate(2**30)
    assert "is truncated or damaged" in refused(tmp_path)


def test_hostile_index_names_no_files(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for text in ('{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 1000, '{"weight_map": {"a": "b"'):
        index.write_text(text)
        assert safetensors.indexed(index) == frozenset()
    index.write_text(json.dumps({"weight_map": {str(number): "x" for number in range(400_001)}}))
    assert safetensors.indexed(index) == frozenset()
    index.write_text(json.dumps({"metadata": {"total_size": 5}, "weight_map": {"a": "x", "b": "y", "c": "x"}}))
    assert safetensors.indexed(index) == {"x", "y"}
    with index.open("wb") as file:
        file.truncate(2**33)
    assert safetensors.indexed(index) == frozenset()
