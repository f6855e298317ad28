from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from llmdeploy.errors import ModelNotFound
from llmdeploy.models import catalog
from llmdeploy.models.facts import read_gguf
from llmdeploy.models.reference import CatalogName, HubFile, parse
from llmdeploy.paths import selftest_dir


def test_every_name_can_be_typed_and_found() -> None:
    assert catalog.names() == ["selftest", "qwen2.5-vl:7b", "qwen3:8b"]
    for name in catalog.names():
        assert parse(name) == CatalogName(name)
        assert catalog.find(name).name == name


def test_the_entries_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        catalog.load()["x"] = catalog.find("selftest")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalog.find("selftest").context = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("qwen2.5vl", "`qwen2.5-vl:7b`"),
        ("qwen2.5-vl", "`qwen2.5-vl:7b`"),
        ("qwen2.5vl:7b", "`qwen2.5-vl:7b`"),
        ("qwen3", "`qwen3:8b`"),
        ("Qwen3:8B", "`qwen3:8b`"),
        ("self-test", "`selftest`"),
    ],
)
def test_an_unknown_name_brings_the_near_ones(typed: str, near: str) -> None:
    with pytest.raises(ModelNotFound) as failure:
        catalog.find(typed)
    assert failure.value.message == f"no model is called `{typed}`"
    assert failure.value.hint.startswith(f"did you mean {near}")


def test_a_name_that_is_near_to_nothing() -> None:
    with pytest.raises(ModelNotFound) as failure:
        catalog.find("zzz")
    assert failure.value.hint == "`llmdeploy models` lists the names"


def test_the_shipped_model_is_as_the_catalog_says() -> None:
    entry = catalog.find("selftest")
    assert entry.shipped
    assert entry.hf_folder is not None
    assert (selftest_dir() / entry.hf_folder / "model.safetensors").is_file()
    weights, mmproj = entry.weights, entry.mmproj
    assert not isinstance(weights, HubFile)
    assert mmproj is not None
    assert not isinstance(mmproj, HubFile)
    assert (weights.stat().st_size, mmproj.stat().st_size) == (entry.gguf.bytes, entry.gguf.mmproj_bytes)
    facts = read_gguf(weights, mmproj)
    assert facts.kv_heads == (entry.kv_heads,) * entry.layers
    assert facts.key_length == facts.value_length == entry.head_size
    assert facts.embedding_length == entry.heads * entry.head_size
    assert (facts.context_length, facts.sees_images) == (entry.context, entry.sees_images)


def test_the_parameters_of_the_shipped_model_are_counted() -> None:
    import gguf

    entry = catalog.find("selftest")
    count = sum(
        tensor.n_elements for path in (entry.weights, entry.mmproj) for tensor in gguf.GGUFReader(str(path)).tensors
    )
    assert entry.parameters == count


@pytest.mark.parametrize("name", ["qwen2.5-vl:7b", "qwen3:8b"])
def test_a_model_of_the_hub_has_all_that_engines_need(name: str) -> None:
    entry = catalog.find(name)
    assert not entry.shipped
    assert entry.ollama is not None
    assert entry.hub is not None
    files = [entry.weights] + ([entry.mmproj] if entry.mmproj else [])
    for file in files:
        assert isinstance(file, HubFile)
        assert parse(str(file)) == file
    assert entry.sees_images == (entry.gguf.mmproj is not None) == (entry.gguf.mmproj_bytes > 0)
    # 4-bit weights of Q4_K_M are between 4 and 5.5 bits a parameter, the vision tower left out.
    assert 4 < entry.gguf.bytes * 8 / entry.parameters < 5.5


def test_names_for_the_completion_load_nothing_heavy() -> None:
    code = "import sys; from llmdeploy.models import catalog; catalog.names(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "gguf", "huggingface_hub", "httpx", "typer", "rich", "asyncio", "ssl", "socket"} & set(loaded)
