"""Models in Hugging Face form: the files that vLLM reads, whether they are here, and MLX's quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmdeploy.config import Settings
from llmdeploy.engines import registry
from llmdeploy.engines.vllm.engine import Vllm
from llmdeploy.errors import ModelNotFound
from llmdeploy.models import hf_model
from llmdeploy.models.hf_model import HfModel, wanted
from llmdeploy.models.reference import HubRepo, OllamaTag, parse
from llmdeploy.models.stores.repository import models_in
from tests.conftest import SELFTEST
from tests.hub_machine import Machine
from tests.hub_server import COMMIT, Hub, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
OTHERS = ["README.md", "model.gguf", "onnx/model.onnx", "original/consolidated.00.pth", "pytorch_model.bin"]
OTHERS += ["original/params.json", "figures/one.png", ".gitattributes"]


def test_what_holds_the_weights_once_more_is_left_out() -> None:
    names = wanted([*OTHERS, *PARTS, INDEX, *SMALL])
    assert names[0] == "config.json"
    assert sorted(names) == sorted([*PARTS, INDEX, *SMALL])


def test_of_weights_that_are_there_twice_vllm_reads_the_consolidated() -> None:
    names = wanted(["consolidated.safetensors", *PARTS, INDEX, "config.json", "params.json", "tekken.json"])
    assert names == ["config.json", "consolidated.safetensors", "params.json", "tekken.json"]


@pytest.mark.parametrize("names", [[], ["config.json", "pytorch_model.bin"], ["fp16/model.safetensors"]])
def test_a_repository_without_safetensors(names: list[str]) -> None:
    with pytest.raises(ModelNotFound, match="no safetensors in its top folder"):
        wanted(names)


def test_a_quantization_is_of_gguf_files_which_vllm_does_not_take() -> None:
    with pytest.raises(ModelNotFound) as caught:
        hf_model.find(parse("hf://owner/repo:Q4_K_M"))
    assert caught.value.message == "`hf://owner/repo:Q4_K_M` names GGUF files, which vLLM does not take"
    assert "`llmdeploy serve hf://owner/repo:Q4_K_M --engine llamacpp`" in caught.value.hint
    with pytest.raises(ModelNotFound, match="is not a model in Hugging Face form"):
        hf_model.find(OllamaTag("hf.co/owner/repo"))


def test_a_folder_is_here() -> None:
    model = HfModel(SELFTEST / "hf")
    assert model.is_present()
    need = model.requirements()
    assert need.present
    assert {"config.json", "model.safetensors"} <= {file.name for file in need.files}
    model.download(lambda *_: pytest.fail("fetched"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {name: name.encode() for name in [*OTHERS, *PARTS, *SMALL]}
    files[INDEX] = b'{"weight_map": {"a": "%s", "b": "%s"}}' % tuple(name.encode() for name in PARTS)
    with serve(Hub(files={"owner/repo": files})) as hub:
        yield hub


def test_a_repository_is_fetched_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    machine = Machine(tmp_path, hub.url)
    second = hub.commit("owner/repo", dict(hub.files["owner/repo"]), "other")
    machine.pull("owner/repo")
    asked = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert all(f"/resolve/{COMMIT}/" in path for path in asked)
    assert sorted(path.rpartition("/")[2] for path in asked) == sorted([*PARTS, INDEX, *SMALL])
    assert machine.here("owner/repo")
    assert machine.here("owner/repo@other") == []

    before = len(hub.sent)
    machine.pull("owner/repo@other")
    assert len(hub.sent) == before, "the content is there already"
    assert machine.here("owner/repo@other")[0].parent.name == second


@pytest.mark.parametrize("gone", ["config.json", PARTS[1]])
def test_a_repository_that_is_here_in_part_is_not_here(hub: Hub, tmp_path: Path, gone: str) -> None:
    machine = Machine(tmp_path, hub.url)
    machine.pull("owner/repo")
    next(machine.cache.glob(f"*/snapshots/*/{gone}")).unlink()
    assert machine.here("owner/repo") == []
    next(machine.cache.glob(f"*/snapshots/*/{INDEX}")).unlink()
    assert machine.here("owner/repo") == []


def test_a_tokenizer_that_is_missing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    machine = Machine(tmp_path, hub.url)
    machine.pull("owner/repo")
    for file in machine.cache.glob("*/snapshots/*/tokenizer*"):
        file.unlink()
    assert machine.here("owner/repo") == []
    machine.pull("owner/repo")
    assert machine.here("owner/repo")


def test_the_location_of_a_repository() -> None:
    assert hf_model.find(parse("hf://owner/repo@v1")) == HfModel(HubRepo("owner/repo", "v1"))


MLX = '{"architectures": ["LlamaForCausalLM"], "quantization": {"group_size": 64, "bits": 4}%s}'


@pytest.mark.parametrize(
    ("more", "format"),
    [
        ("", "mlx"),
        (', "quantization_config": {"group_size": 64, "bits": 4}', "mlx"),  # as newer versions of MLX repeat it
        (', "quantization_config": {"quant_method": "awq"}', "hf"),
    ],
)
def test_model_quantized_for_mlx_is_recognised(tmp_path: Path, more: str, format: str) -> None:
    (tmp_path / "config.json").write_text(MLX % more)
    assert HfModel(tmp_path).format == format


def test_vllm_refuses_a_model_quantized_for_mlx(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(MLX % "")
    with pytest.raises(ModelNotFound, match="is quantized for MLX, which vLLM does not load"):
        Vllm(Settings()).resolve(tmp_path)


def test_repository_quantized_for_mlx_has_no_engine(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(MLX % "")
    [found] = models_in(HubRepo("mlx-community/x-4bit"), ["config.json", "model.safetensors"], config=config)
    assert (found.formats, found.detail) == (("mlx",), "it is quantized for MLX")
    assert registry.running(*found.formats) == ()
