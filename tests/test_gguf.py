"""A model as GGUF files: which they are, whether they are here, how they come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmdeploy.config import Flags, Settings
from llmdeploy.errors import ModelNotFound
from llmdeploy.models import gguf
from llmdeploy.models.catalog import lookup
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import CatalogName, HubFile, OllamaTag, parse
from tests.conftest import SELFTEST, copy_selftest
from tests.hub_machine import Machine
from tests.hub_server import Hub, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
HUB_WEIGHTS = HubFile("owner/repo", "x.gguf")


def test_a_file_and_the_projector_beside_it(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path)
    found = gguf.find(parse(str(weights)))
    assert found == GgufModel(weights, tmp_path / "mmproj-selftest-f16.gguf")
    assert found.files == (weights, tmp_path / "mmproj-selftest-f16.gguf")
    assert str(found) == f"{weights} + {tmp_path / 'mmproj-selftest-f16.gguf'}"
    assert found.is_present()


def test_a_file_alone(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path, mmproj=False)
    found = gguf.find(weights)
    assert (found.files, found.paths(), str(found)) == ((weights,), (weights, None), str(weights))
    assert not found.facts().capabilities.count("image")


def test_a_projector_that_is_named_goes_before_the_one_beside(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path)
    other = tmp_path / "other.gguf"
    other.write_bytes(MMPROJ.read_bytes())
    assert gguf.find(weights, Settings(flags=Flags(mmproj=other))).mmproj == other
    with pytest.raises(ModelNotFound) as caught:
        gguf.find(weights, Settings(flags=Flags(mmproj=tmp_path / "none.gguf")))
    assert caught.value.message == f"there is no file `{tmp_path / 'none.gguf'}`"
    assert "--mmproj" in caught.value.hint


def test_a_name_of_the_catalog() -> None:
    assert gguf.find(CatalogName("selftest")) == GgufModel(WEIGHTS, MMPROJ)
    facts = gguf.find(CatalogName("selftest")).facts()
    assert (facts.context_length, "image" in facts.capabilities) == (8192, True)
    for name in ("qwen3:8b", "qwen2.5-vl:7b-q8_0"):
        entry = lookup.find(name)
        assert gguf.find(CatalogName(name)) == GgufModel(entry.weights, entry.mmproj)
    with pytest.raises(ModelNotFound, match="no model is called `selftst`") as caught:
        gguf.find(CatalogName("selftst"))
    assert caught.value.hint.startswith("did you mean `selftest`")


def test_a_projector_that_is_named_for_a_file_of_the_hub(tmp_path: Path) -> None:
    mmproj = tmp_path / "mmproj.gguf"
    mmproj.touch()
    assert gguf.find(HUB_WEIGHTS) == GgufModel(HUB_WEIGHTS)
    assert gguf.find(HUB_WEIGHTS, Settings(flags=Flags(mmproj=mmproj))) == GgufModel(HUB_WEIGHTS, mmproj)


def test_a_model_of_ollamas_is_served_there() -> None:
    with pytest.raises(ModelNotFound) as caught:
        gguf.find(OllamaTag("user/x:7b"))
    assert caught.value.message == "`ollama://user/x:7b` is a model of Ollama's"
    assert caught.value.hint == "serve it there: `llmdeploy serve ollama://user/x:7b --engine ollama`"


def test_what_is_not_here_has_no_path() -> None:
    with pytest.raises(ModelNotFound) as caught:
        GgufModel(HUB_WEIGHTS).paths()
    assert caught.value.message == "`hf://owner/repo/x.gguf` is not on this machine"
    assert caught.value.hint == "`llmdeploy serve` fetches it"


def test_files_of_this_machine_are_never_fetched(tmp_path: Path) -> None:
    model = GgufModel(copy_selftest(tmp_path, mmproj=False))
    model.download(lambda *_: pytest.fail("fetched"))
    need = model.requirements()
    assert (need.present, need.files[0].name, need.size) == (True, "selftest-f16.gguf", WEIGHTS.stat().st_size)
    with pytest.raises(ModelNotFound, match=r"nowhere/x.gguf` cannot be read: No such file"):
        GgufModel(Path("/nowhere/x.gguf")).requirements()


# --- Repositories

PARTS = [f"Q8_0/model-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)]
FILES = {name: name.encode() for name in ("model-Q4_K_M.gguf", "model-Q2_K.gguf", *PARTS, "mmproj-F16.gguf", "x.md")}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(files={"owner/repo-GGUF": FILES, "owner/safe": {"model.safetensors": b"x"}})) as hub:
        yield hub


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", hub.url)


@pytest.mark.parametrize(
    ("address", "files"),
    [
        ("hf://owner/repo-GGUF:q8_0", [*PARTS, "mmproj-F16.gguf"]),
        ("owner/repo-GGUF", ["model-Q4_K_M.gguf", "mmproj-F16.gguf"]),
        ("hf.co/owner/repo-GGUF:Q2_K", ["model-Q2_K.gguf", "mmproj-F16.gguf"]),
        ("hf.co/owner/repo-GGUF:latest", ["model-Q4_K_M.gguf", "mmproj-F16.gguf"]),
        (f"hf://owner/repo-GGUF/{PARTS[0]}", [*PARTS, "mmproj-F16.gguf"]),
    ],
)
def test_a_repository_gives_one_quantization_with_its_projector(
    machine: Machine, hub: Hub, address: str, files: list[str]
) -> None:
    need = machine.run("need", address)
    assert [file["name"] for file in need["files"]] == files
    found = machine.pull(address)
    assert [path.read_text() for path in found] == files
    assert machine.here(address, HF_HUB_OFFLINE="1") == found
    assert hub.sent_bytes() == sum(map(len, files))


def test_what_is_here_in_part_is_not_here(machine: Machine, hub: Hub) -> None:
    for name in ("model-Q2_K.gguf", PARTS[0]):
        subprocess.run(
            [sys.executable, "-c", f"from huggingface_hub import *; hf_hub_download('owner/repo-GGUF', {name!r})"],
            env=machine.env,
            check=True,
        )
    assert machine.here("hf://owner/repo-GGUF:Q8_0") == []
    assert machine.here("hf://owner/repo-GGUF:Q4_K_M") == []
    assert len(machine.here("hf://owner/repo-GGUF:Q2_K")) == 1


def test_a_quantization_that_the_repository_does_not_have(machine: Machine) -> None:
    error = machine.run("pull", "hf://owner/repo-GGUF:Q5_K_M")["error"]
    assert error["code"] == "model_not_found"
    assert error["message"] == "`owner/repo-GGUF` has no GGUF file of the quantization `Q5_K_M`"
    assert error["hint"] == "it has `Q2_K`, `Q4_K_M`, `Q8_0`"


def test_a_repository_without_gguf_files_runs_on_vllm(machine: Machine) -> None:
    error = machine.said(machine.start("pull", "gguf", "hf://owner/safe"))["error"]
    assert error["message"] == "`hf://owner/safe` holds no GGUF file; as a whole it runs on vLLM"
    assert error["hint"] == (
        "`llmdeploy serve hf://owner/safe --engine vllm`, or name a repository of GGUF files, `owner/safe-GGUF` perhaps"
    )
