"""A model as GGUF files: which they are, whether they are here, how they come."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmdeploy.errors import ModelNotFound
from llmdeploy.models import catalog, gguf, hub
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import CatalogName, HubFile, OllamaTag, parse
from tests.conftest import SELFTEST, copy_selftest

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
HUB_WEIGHTS, HUB_MMPROJ = HubFile("owner/repo", "x.gguf"), HubFile("owner/repo", "mmproj.gguf")


def test_a_file_and_the_projector_beside_it(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path)
    found = gguf.find(parse(str(weights)))
    assert found == GgufModel(weights, tmp_path / "mmproj-selftest-f16.gguf")
    assert found.files == (weights, tmp_path / "mmproj-selftest-f16.gguf")
    assert str(found) == f"{weights} + {tmp_path / 'mmproj-selftest-f16.gguf'}"
    assert found.present()


def test_a_file_alone(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path, mmproj=False)
    found = gguf.find(weights)
    assert (found.files, found.paths(), str(found)) == ((weights,), (weights, None), str(weights))
    assert not found.facts().capabilities.count("image")


def test_a_projector_that_is_named_goes_before_the_one_beside(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path)
    other = tmp_path / "other.gguf"
    other.write_bytes(MMPROJ.read_bytes())
    assert gguf.find(weights, other).mmproj == other
    with pytest.raises(ModelNotFound) as caught:
        gguf.find(weights, tmp_path / "none.gguf")
    assert caught.value.message == f"there is no file `{tmp_path / 'none.gguf'}`"
    assert "--mmproj" in caught.value.hint


def test_a_name_of_the_catalog() -> None:
    assert gguf.find(CatalogName("selftest")) == GgufModel(WEIGHTS, MMPROJ)
    facts = gguf.find(CatalogName("selftest")).facts()
    assert (facts.context_length, "image" in facts.capabilities) == (8192, True)
    for name, entry in catalog.load().items():
        assert gguf.find(CatalogName(name)).weights == entry.weights
    with pytest.raises(ModelNotFound, match="no model is called `selftst`") as caught:
        gguf.find(CatalogName("selftst"))
    assert caught.value.hint == "did you mean `selftest`?"


def test_a_file_of_the_hub_has_no_projector_but_a_named_one(tmp_path: Path) -> None:
    mmproj = tmp_path / "mmproj.gguf"
    mmproj.touch()
    assert gguf.find(HUB_WEIGHTS) == GgufModel(HUB_WEIGHTS)
    assert gguf.find(HUB_WEIGHTS, mmproj) == GgufModel(HUB_WEIGHTS, mmproj)


def test_a_model_of_ollamas_is_served_there() -> None:
    with pytest.raises(ModelNotFound) as caught:
        gguf.find(OllamaTag("user/x:7b"))
    assert caught.value.message == "`ollama://user/x:7b` is a model of Ollama's"
    assert caught.value.hint == "serve it there: `llmdeploy serve ollama://user/x:7b --engine ollama`"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[HubFile, Path]:
    """The Hub's cache, as a table; a download adds to it."""
    cache: dict[HubFile, Path] = {}

    def download(file: HubFile, on_progress: hub.OnProgress) -> Path:
        on_progress(file.file, 1, 1)
        return cache.setdefault(file, tmp_path / file.file)

    monkeypatch.setattr(hub, "cached", cache.get)
    monkeypatch.setattr(hub, "download", download)
    return cache


def test_only_what_is_missing_is_fetched(cache: dict[HubFile, Path], tmp_path: Path) -> None:
    model = GgufModel(HUB_WEIGHTS, HUB_MMPROJ)
    cache[HUB_WEIGHTS] = tmp_path / "x.gguf"
    fetched: list[str] = []
    assert not model.present()
    model.pull(lambda name, done, total: fetched.append(name))
    assert fetched == ["mmproj.gguf"]
    assert model.present()
    model.pull(lambda name, done, total: fetched.append(name))
    assert fetched == ["mmproj.gguf"]
    assert model.paths() == (tmp_path / "x.gguf", tmp_path / "mmproj.gguf")


def test_files_of_this_machine_are_never_fetched(cache: dict[HubFile, Path]) -> None:
    model = GgufModel(Path("/nowhere/x.gguf"))
    model.pull(lambda *_: pytest.fail("fetched"))
    assert cache == {}


def test_a_file_that_is_not_fetched_has_no_path(cache: dict[HubFile, Path]) -> None:
    with pytest.raises(ModelNotFound) as caught:
        GgufModel(HUB_WEIGHTS).paths()
    assert caught.value.message == "`hf://owner/repo/x.gguf` is not on this machine"
    assert caught.value.hint == "`llmdeploy serve` fetches it"
