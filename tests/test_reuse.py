"""Files of other programs are used instead of a download, if they are the same model in the same quantization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from llmdeploy.config import DEFAULT, Settings
from llmdeploy.engines import registry
from llmdeploy.engines.llamacpp.engine import LlamaCpp
from llmdeploy.engines.ollama.engine import Ollama as OllamaEngine
from llmdeploy.engines.ollama.settings import OllamaSettings
from llmdeploy.engines.ollama.weights import GgufImport, Tag
from llmdeploy.errors import ModelNotFound
from llmdeploy.models import digest, reuse
from llmdeploy.models.catalog import lookup
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, OllamaTag
from llmdeploy.models.stores import folders
from llmdeploy.models.weights import GGUF, OLLAMA
from tests.conftest import OwnOllama, World, until
from tests.hub_server import Hub, serve
from tests.model_places import MMPROJ, WEIGHTS, as_quantized, blob_of, fetch, lmstudio, pack, put, selftest_layers
from tests.ollama_replay import closed_port, replay

REPO = "owner/selftest-GGUF"
WANTED = GgufModel(HubFile(REPO, "selftest-f16.gguf"))
WITH_EYES = GgufModel(HubFile(REPO, "selftest-f16.gguf"), HubFile(REPO, "mmproj-f16.gguf"))
TAGS = ("selftest",)


@pytest.fixture
def ollama_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ollama's store, empty yet."""
    store = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    return store


def test_ollamas_files_of_the_same_model_are_taken(ollama_store: Path) -> None:
    assert reuse.of_files(WITH_EYES, TAGS) is None
    pack(ollama_store, "selftest/latest", *selftest_layers())
    found = reuse.of_files(WITH_EYES, TAGS)
    assert found is not None
    model = found.model()
    assert model.paths() == (ollama_store / "blobs" / blob_of(WEIGHTS), ollama_store / "blobs" / blob_of(MMPROJ))
    assert model.reused_from == f"uses Ollama's `selftest:latest` in `{ollama_store}`: 2 MiB not fetched"
    assert digest.known(model.paths()[0]) == blob_of(WEIGHTS).removeprefix("sha256-")
    assert reuse.of_files(WANTED, TAGS) == found, "a repository brings its projector too"


def test_a_pull_from_the_hub_by_ollama_is_the_same_file(ollama_store: Path) -> None:
    pack(ollama_store, f"hf.co/{REPO}/F16", ("model", WEIGHTS))
    found = reuse.of_files(WANTED, ())
    assert found is not None
    assert f"Ollama's `hf.co/{REPO}:F16`" in found.whose
    assert reuse.of_files(WITH_EYES, ()) is None, "its projector is not there"
    assert reuse.of_files(GgufModel(HubFile("another/repo", "selftest-f16.gguf")), ()) is None


@pytest.mark.parametrize(
    "layers",
    [
        (("model", as_quantized()), ("projector", MMPROJ)),
        (("model", WEIGHTS), ("projector", MMPROJ), ("adapter", b"lora")),
        (("model", WEIGHTS), ("projector", MMPROJ), ("system", b"You are a pirate.")),
        (("model", WEIGHTS), ("projector", MMPROJ), ("params", b'{"stop": ["### User:"]}')),
        (("model", WEIGHTS),),
        (("model", WEIGHTS), ("projector", WEIGHTS)),
        (("model", WEIGHTS.read_bytes()[:-1000]), ("projector", MMPROJ)),
        (("model", b"no GGUF"), ("projector", MMPROJ)),
        (("tensor", b"x"),),
    ],
    ids=["quantization", "adapter", "system", "stops", "no eyes", "no projector", "cut", "no model", "safetensors"],
)
def test_what_is_not_quite_the_same_is_left_alone(ollama_store: Path, layers: tuple[tuple[str, bytes], ...]) -> None:
    pack(ollama_store, "selftest/latest", *layers)
    assert reuse.of_files(WITH_EYES, TAGS) is None


def test_what_went_away_is_fetched_as_ever(ollama_store: Path) -> None:
    pack(ollama_store, "selftest/latest", *selftest_layers())
    assert reuse.of_files(WITH_EYES, TAGS)
    (ollama_store / "blobs" / blob_of(MMPROJ)).unlink()
    assert reuse.of_files(WITH_EYES, TAGS) is None
    assert reuse.of_tag("selftest") is None


def test_a_revision_that_was_asked_for_is_fetched(ollama_store: Path) -> None:
    pack(ollama_store, "selftest/latest", *selftest_layers())
    pinned = GgufModel(HubFile(REPO, "selftest-f16.gguf", "v2"))
    assert reuse.of_files(pinned, TAGS) is None


def test_the_same_file_of_lm_studio_and_of_a_folder(tmp_path: Path) -> None:
    folders.save(tmp_path / "mine", HubRepo(REPO), ["selftest-f16.gguf", "mmproj-f16.gguf"])
    mine = put(tmp_path / "mine" / "selftest-f16.gguf", WEIGHTS)
    assert reuse.of_files(WITH_EYES, ()) is None, "the projector is not there"
    put(tmp_path / "mine" / "mmproj-f16.gguf", MMPROJ)
    assert reuse.of_files(WITH_EYES, ()) is not None, "a folder's record is of a folder that is there"
    folders.forget(tmp_path / "mine", [mine])
    folders.save(tmp_path / "mine", HubRepo(REPO, "v2"), ["selftest-f16.gguf"])
    assert reuse.of_files(WANTED, ()) is None, "it is of another revision"
    folders.save(tmp_path / "mine", HubRepo(REPO), ["selftest-f16.gguf"])
    theirs = lmstudio(Path.home(), REPO, selftest_f16=WEIGHTS)
    found = reuse.of_files(WANTED, ())
    assert found is not None
    assert (found.weights, found.model().reused_from) == (
        theirs / "selftest-f16.gguf", f"uses LM Studio's `{theirs / 'selftest-f16.gguf'}`: 2 MiB not fetched"
    )  # fmt: skip
    put(theirs / "selftest-f16.gguf", WEIGHTS.read_bytes()[:-1000])  # it is still fetching
    found = reuse.of_files(WANTED, ())
    assert found is not None
    assert found.weights == mine


# --- The engines


def tag(name: str) -> Tag:
    """Return a model of Ollama to compare with; comparisons ignore the server."""
    return Tag(name, cast("Any", None))


def llamacpp() -> LlamaCpp:
    return LlamaCpp(Settings())


def test_a_name_of_the_catalog_on_llamacpp_is_ollamas_file_where_that_is_here(ollama_store: Path) -> None:
    entry = lookup.find("qwen3:8b")
    engine = llamacpp()
    ordinary = engine.resolve(CatalogName("qwen3:8b"))
    assert ordinary.weights == entry.weights
    assert not ordinary.reused_from
    assert not ordinary.is_present()
    pack(ollama_store, "qwen3/8b", ("model", as_quantized()), ("params", b'{"stop":["<|im_start|>","<|im_end|>"]}'))
    found = engine.resolve(CatalogName("qwen3:8b"))
    assert found.is_present()
    assert found.reused_from == f"uses Ollama's `qwen3:8b` in `{ollama_store}`: 2 MiB not fetched"
    assert found.local_files() == (ollama_store / "blobs" / blob_of(as_quantized()),)
    assert found.facts().layers == 4
    assert found.revision() is None


def test_a_model_of_ollamas_by_its_own_name_on_llamacpp(ollama_store: Path) -> None:
    pack(ollama_store, "team/x/latest", ("model", WEIGHTS), ("adapter", b"lora"))
    pack(ollama_store, "selftest/latest", *selftest_layers())
    assert llamacpp().resolve(OllamaTag("selftest")).local_files()[1].name == blob_of(MMPROJ)
    with pytest.raises(ModelNotFound) as caught:
        llamacpp().resolve(OllamaTag("team/x"))
    assert caught.value.message == (
        "Ollama's `team/x:latest` does not run on llama.cpp: it has an adapter beside its weights"
    )
    assert caught.value.hint == "serve it there: `llmdeploy serve ollama://team/x --engine ollama`"
    with pytest.raises(ModelNotFound, match="`ollama://none` is a model of Ollama's"):
        llamacpp().resolve(OllamaTag("none"))


def test_what_our_configuration_names_is_the_store(tmp_path: Path) -> None:
    pack(tmp_path / "named", "selftest/latest", *selftest_layers())
    engine = LlamaCpp(Settings(ollama=OllamaSettings(models=str(tmp_path / "named"))))
    assert engine.resolve(OllamaTag("selftest")).reused_from


def test_ollama_takes_the_catalogs_file_where_it_has_not_the_tag(tmp_path: Path) -> None:
    weights = lookup.find("qwen3:8b").weights
    assert isinstance(weights, HubFile)
    with replay("tags") as recorded:  # it has `selftest`, and no `qwen3:8b`
        engine = OllamaEngine(Settings(ollama=OllamaSettings(host=recorded.url)))
        assert engine.resolve(CatalogName("qwen3:8b")) == tag("qwen3:8b")
        theirs = put(Path.home() / ".lmstudio" / "models" / weights.repo / weights.file, as_quantized())
        found = engine.resolve(CatalogName("qwen3:8b"))
    assert isinstance(found, GgufImport)
    assert found.local_files() == (theirs,)
    assert found.reused_from == f"Ollama takes `{theirs}` of this machine: 2 MiB not fetched"
    silent = OllamaEngine(Settings(ollama=OllamaSettings(host=f"127.0.0.1:{closed_port()}")))
    assert silent.resolve(CatalogName("qwen3:8b")) == tag("qwen3:8b"), "what it has is not known"


def test_another_quantization_than_ollamas_tag_is_left_alone(tmp_path: Path) -> None:
    """Ollama's `mistral-nemo:12b` is Q4_0, and the catalog's GGUF file Q4_K_M."""
    entry = lookup.find("mistral-nemo:12b")
    weights = entry.weights
    assert isinstance(weights, HubFile)
    assert entry.chosen(OLLAMA) != entry.chosen(GGUF)
    put(Path.home() / ".lmstudio" / "models" / weights.repo / weights.file, as_quantized())
    assert reuse.for_ollama(CatalogName("mistral-nemo:12b"), DEFAULT) is None
    assert reuse.for_ollama(CatalogName("mistral-nemo:12b-q4_k_m"), DEFAULT) is not None, "asked for, of both"


def test_a_model_of_the_catalog_without_a_gguf_file_is_ollamas_tag() -> None:
    name = next((name for name, entry in lookup.load().items() if entry.tag and entry.gguf_files is None), None)
    if name is None:
        pytest.skip("the catalog has none")
    with replay("tags") as recorded:
        assert isinstance(
            OllamaEngine(Settings(ollama=OllamaSettings(host=recorded.url))).resolve(CatalogName(name)), Tag
        )


@pytest.mark.parametrize("name", ["llamacpp", "vllm"])
def test_what_ships_spares_nothing(name: str) -> None:
    engine = registry.get(name, Settings())
    assert not engine.resolve(CatalogName("selftest")).reused_from


# --- Through the front


def test_serve_says_whose_file_it_uses_and_answers(world: World) -> None:
    store = world.folder / "ollama"
    pack(store, f"hf.co/{REPO}/F16", *selftest_layers())
    world.environment |= {"OLLAMA_MODELS": str(store), "HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    result = world.run("serve", f"hf://{REPO}/selftest-f16.gguf", "--detach")
    assert result.status == 0, result.text
    assert f"uses Ollama's `hf.co/{REPO}:F16` in `[FOLDER]/ollama`: 2 MiB not fetched" in result.stderr
    assert world.run("chat", "Count to 5", "--temperature", "0").stdout == "1 2 3 4 5\n"
    until(lambda: world.record().get("receipt"))
    file, _ = world.record()["receipt"]["files"]
    assert file["path"] == str(store / "blobs" / blob_of(WEIGHTS))
    assert file["sha256"] == blob_of(WEIGHTS).removeprefix("sha256-")


OWN = """
[models."mine:1b"]
ollama = "mine:1b"
ollama_quants = ["F16"]
ollama_tags = "mine:1b-{quant}"
capabilities = ["text", "image"]
[models."mine:1b".gguf]
repo = "owner/mine-GGUF"
file = "mine-{quant}.gguf"
mmproj = "mmproj-mine.gguf"
quants = ["F16"]
"""


def test_a_model_of_the_users_own_catalog_is_served_from_ollamas_store(world: World) -> None:
    put(world.config.with_name("catalog.toml"), OWN.encode())
    pack(world.folder / "home" / ".ollama" / "models", "mine/1b", *selftest_layers())
    world.environment["HF_ENDPOINT"] = f"http://127.0.0.1:{closed_port()}"
    result = world.run("serve", "mine:1b", "--detach")
    assert result.status == 0, result.text
    assert "uses Ollama's `mine:1b` in `[FOLDER]/home/.ollama/models`: 2 MiB not fetched" in result.stderr
    assert world.run("chat", "Count to 5", "--temperature", "0").stdout == "1 2 3 4 5\n"
    assert "image" in json.loads(world.run("status", "--json").stdout)["capabilities"]
    dry = json.loads(world.run("models", "rm", "mine:1b", "--dry-run", "--json").stdout)
    assert "error" in dry, "it is served now"
    assert world.run("stop").status == 0
    dry = json.loads(world.run("models", "rm", "mine:1b", "--dry-run", "--json").stdout)
    assert [one["name"] for one in dry["removed"]] == ["ollama://mine:1b"]


def test_show_and_pull_agree_on_a_model_in_ollamas_store(world: World) -> None:
    put(world.config.with_name("catalog.toml"), OWN.encode())
    pack(world.folder / "home" / ".ollama" / "models", "mine/1b", *selftest_layers())
    world.environment["HF_ENDPOINT"] = f"http://127.0.0.1:{closed_port()}"
    [shown] = json.loads(world.run("models", "show", "mine:1b", "--json").stdout)["models"]
    [pull] = json.loads(world.run("pull", "mine:1b", "--dry-run", "--json").stdout)["pulls"]
    llamacpp = shown["engines"]["llamacpp"]
    assert llamacpp["here"]
    assert llamacpp["exact"]
    assert llamacpp["bytes"] == sum(file["size"] for file in pull["files"])
    assert [file["here"] for file in pull["files"]] == [file["size"] for file in pull["files"]]
    assert llamacpp["artefact"] == ["hf://owner/mine-GGUF/mine-F16.gguf", "hf://owner/mine-GGUF/mmproj-mine.gguf"]
    [stored] = [one for one in json.loads(world.run("models", "--json").stdout)["stored"] if one["place"] == "ollama"]
    assert stored["engines"] == ["llamacpp", "ollama"]


def test_a_tag_of_ollamas_on_llamacpp_sees_images(world: World) -> None:
    pack(world.folder / "home" / ".ollama" / "models", "selftest/latest", *selftest_layers())
    result = world.run("serve", "ollama://selftest", "--detach", "--json")
    assert result.status == 0, result.text
    assert "uses Ollama's `selftest:latest`" in result.stderr
    assert "image" in json.loads(world.run("status", "--json").stdout)["capabilities"]


@pytest.mark.ollama
def test_a_real_ollama_takes_a_file_of_the_hubs_cache(world: World, daemon: OwnOllama) -> None:
    """Ollama gets a link: nothing is downloaded or copied."""
    entry = lookup.find("qwen3:8b")
    assert isinstance(entry.weights, HubFile)
    with serve(Hub(files={entry.weights.repo: {entry.weights.file: as_quantized()}})) as hub:
        fetch(hub.url, world.folder / "hf", entry.weights.repo, entry.weights.file)
    world.environment |= {"OLLAMA_HOST": daemon.url, "HF_HOME": str(world.folder / "hf")}
    world.environment |= {"HF_ENDPOINT": hub.url, "OLLAMA_MODELS": str(daemon.store)}
    result = world.run("serve", "qwen3:8b", "--engine", "ollama", "--detach")
    assert result.status == 0, result.text
    assert "of this machine: 2 MiB not fetched" in result.stderr
    assert world.run("chat", "Count to 5", "--temperature", "0").stdout == "1 2 3 4 5\n"
    blob = daemon.store / "blobs" / blob_of(as_quantized())
    assert blob.stat().st_nlink == 2
    assert world.run("stop").status == 0


@pytest.mark.ollama
def test_what_a_real_ollama_made_of_the_file_runs_on_llamacpp(world: World, daemon: OwnOllama) -> None:
    world.environment |= {"OLLAMA_HOST": daemon.url, "OLLAMA_MODELS": str(daemon.store)}
    assert world.run("serve", "selftest", "--engine", "ollama", "--detach").status == 0
    assert world.run("stop").status == 0
    [name] = daemon.names()
    result = world.run("serve", f"ollama://{name}", "--detach")
    assert result.status == 0, result.text
    assert world.run("chat", "Count to 5", "--temperature", "0").stdout == "1 2 3 4 5\n"
