from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmdeploy import errors
from llmdeploy.config import DEFAULT, ENGINE_NAMES, Settings
from llmdeploy.engines import availability, registry
from llmdeploy.engines.availability import Availability
from llmdeploy.engines.ollama.engine import Ollama
from llmdeploy.errors import ConfigError, ModelNotFound
from llmdeploy.models import gguf, hf_model
from llmdeploy.models.catalog import lookup, names, reader, schema
from llmdeploy.models.catalog.entry import BITS, FORM, CatalogEntry, plain_quant
from llmdeploy.models.facts import read_gguf
from llmdeploy.models.hf_model import HfModel
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, ModelRef, OllamaTag, parse, with_quant
from llmdeploy.models.weights import GGUF, HF, OLLAMA, Format
from llmdeploy.paths import selftest_dir
from tests.conftest import World
from tests.hub_server import COMMIT

FILE = Path(lookup.__file__).with_name("catalog.toml")
ENTRIES = lookup.load()
OF_THE_HUB = [entry for entry in ENTRIES.values() if not entry.shipped]

TWENTY = [
    "qwen2.5:7b", "qwen2.5-coder:32b", "qwen2.5-vl:72b", "qwen3:0.6b", "qwen3:8b", "qwen3:30b", "qwen3-coder:30b",
    "qwen3-vl:8b", "qwen3.5:9b", "qwen3.6:27b", "llama3.1:8b", "llama3.3:70b", "gemma3:27b", "gemma4:e4b",
    "gpt-oss:20b", "gpt-oss:120b", "deepseek-r1:32b", "mistral-small3.2:24b", "ministral-3:8b", "phi4:14b",
]  # fmt: skip


def for_every(entries: Iterable[CatalogEntry], check: Callable[[CatalogEntry], None]) -> None:
    """Fail once, with the name of every entry that the check refuses and the reason."""
    failures = []
    for entry in entries:
        try:
            check(entry)
        except (AssertionError, errors.LlmdeployError) as error:
            failures.append(f"{entry}: {str(error).splitlines()[0]}")
    assert not failures, "\n".join(failures)


def test_every_failing_entry_is_named() -> None:
    def check(entry: CatalogEntry) -> None:
        assert entry.family != "smollm2"

    with pytest.raises(AssertionError) as failure:
        for_every(OF_THE_HUB, check)
    lines = [line.strip().partition(": ")[0] for line in str(failure.value).splitlines()]
    assert lines[:3] == ["smollm2:135m", "smollm2:360m", "smollm2:1.7b"]


# The file


def test_shipped_catalog_is_valid() -> None:
    schema.check(tomllib.loads(FILE.read_text(encoding="utf-8")), str(FILE))


def test_tables_of_one_model_give_the_same_entry_as_the_whole_catalog() -> None:
    entries = dict(lookup.load())
    assert {name: reader.entries(tomllib.loads(names.excerpt(name)))[name] for name in entries} == entries
    assert names.excerpt("qwen3") == ""


def test_every_name_can_be_typed_and_found() -> None:
    assert lookup.names() == names.shipped()
    assert lookup.names()[0] == "selftest"
    for name in lookup.names():
        assert parse(name) == CatalogName(name)
        assert lookup.find(name).name == name


def test_common_models_are_available_on_every_engine() -> None:
    whole = [entry for entry in OF_THE_HUB if entry.tag and entry.repositories and entry.gguf_files]
    assert (len(OF_THE_HUB) >= 70, len(whole) >= 60) == (True, True)
    assert len({entry.family for entry in OF_THE_HUB}) >= 30
    assert sum(("image" in entry.capabilities) for entry in whole) >= 20
    assert {"awq", "fp8", "gptq"} <= {quant for entry in whole for quant in entry.repositories}


def test_every_entry_is_complete() -> None:
    def check(entry: CatalogEntry) -> None:
        assert entry.license
        assert entry.capabilities[0] == "text"
        assert 2048 <= entry.context <= 10_485_760
        assert 100e6 < entry.parameters < 300e9
        assert 0 <= entry.active < entry.parameters
        assert 0 <= entry.vision < entry.parameters / 2
        assert entry.vocabulary > 30_000
        assert entry.embedding >= 512

    for_every(OF_THE_HUB, check)


def test_weights_of_every_entry_have_a_valid_address() -> None:
    def check(entry: CatalogEntry) -> None:
        for repository in entry.repositories.values():
            assert parse(repository) == HubRepo(repository)
        if entry.tag:
            assert parse(f"ollama://{entry.tag}") == OllamaTag(entry.tag)
            for tag in entry.tags.values():
                assert "{" not in tag
                assert parse(f"ollama://{tag}") == OllamaTag(tag)
                assert tag.partition(":")[0] == entry.tag.partition(":")[0]
        if entry.gguf_files:
            for file in [entry.weights, *([entry.mmproj] if entry.mmproj else [])]:
                assert isinstance(file, HubFile)
                assert parse(str(file)) == file
            assert set(entry.gguf.sizes) <= set(entry.gguf.quants)
            known = {plain_quant(quant).removeprefix("UD-").replace("_XL", "_M") for quant in entry.gguf.quants}
            assert known <= set(BITS)
            assert ("image" in entry.capabilities) == (entry.gguf.mmproj is not None)

    for_every(OF_THE_HUB, check)


def test_sizes_are_those_of_their_quantization() -> None:
    def check(entry: CatalogEntry) -> None:
        text = entry.parameters - entry.vision
        for quant, size in entry.gguf.sizes.items():
            bits = BITS[plain_quant(quant).removeprefix("UD-")]
            # The file lacks a layer that predicts a second token; small models keep their embeddings at more bits.
            assert 0.85 < size * 8 / text / bits < (1.15 if text > 2e9 else 1.7)
        assert entry.gguf_files is not None
        default = entry.gguf.quants[0]
        assert default.upper().removeprefix("UD-") in {"Q4_K_M", "MXFP4", "F16"}

    for_every([entry for entry in OF_THE_HUB if entry.gguf_files], check)


def test_entries_are_immutable() -> None:
    with pytest.raises(TypeError):
        lookup.load()["x"] = lookup.find("selftest")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        lookup.find("selftest").context = 1  # type: ignore[misc]


def test_catalog_matches_the_shipped_model() -> None:
    entry = lookup.find("selftest")
    assert entry.shipped
    assert entry.hf_folder is not None
    assert (selftest_dir() / entry.hf_folder / "model.safetensors").is_file()
    weights, mmproj = entry.weights, entry.mmproj
    assert not isinstance(weights, HubFile)
    assert mmproj is not None
    assert not isinstance(mmproj, HubFile)
    assert weights.stat().st_size + mmproj.stat().st_size == entry.size(GGUF)[0]
    assert (mmproj.stat().st_size, entry.size(GGUF)[1]) == (entry.gguf.mmproj_bytes, True)
    for facts in (read_gguf(weights, mmproj), HfModel(selftest_dir() / entry.hf_folder).facts()):
        assert facts.embedding_length == entry.embedding
        assert facts.vocabulary_size == entry.vocabulary
        assert facts.context_length == entry.context
        assert facts.sees_images == ("image" in entry.capabilities)


def test_the_parameters_of_the_shipped_model_are_counted() -> None:
    import gguf

    entry = lookup.find("selftest")
    count = sum(
        tensor.n_elements for path in (entry.weights, entry.mmproj) for tensor in gguf.GGUFReader(str(path)).tensors
    )
    assert entry.parameters == count


# Sizes


@pytest.mark.parametrize(
    ("name", "format", "gib"),
    [
        ("qwen3:8b", GGUF, 4.68),
        ("qwen3:8b", HF, 15.3),
        ("qwen3:8b-awq", HF, 5.7),
        ("qwen3:8b-fp8", HF, 8.8),
        ("qwen3:8b-q8_0", GGUF, 8.1),
        ("qwen3.5:27b", GGUF, 16.4),
        ("glm-4.7-flash:30b", HF, 58.2),
        ("qwen2.5-vl:7b", OLLAMA, 5.6),
    ],
)
def test_size_of_a_name_in_a_format(name: str, format: Format, gib: float) -> None:
    assert lookup.find(name).size(format)[0] / 2**30 == pytest.approx(gib, rel=0.02)


def test_an_estimate_is_near_the_size_of_the_files() -> None:
    ratios = []
    for entry in OF_THE_HUB:
        for quant, size in (entry.gguf_files.sizes if entry.gguf_files else {}).items():
            files = dataclasses.replace(entry.gguf, sizes={}, mmproj=None, mmproj_bytes=0)
            guessed = dataclasses.replace(
                entry, gguf_files=files, quant=quant, vision=0, parameters=entry.parameters - entry.vision
            )
            ratios.append(guessed.size(GGUF)[0] / size if entry.parameters > 2e9 else 1)
    assert len(ratios) > 25
    assert all(0.85 < ratio < 1.15 for ratio in ratios)


# Spellings


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("qwen2.5-vl", "qwen2.5-vl:7b"),
        ("qwen2.5vl", "qwen2.5-vl:7b"),
        ("qwen2.5vl:7b", "qwen2.5-vl:7b"),
        ("qwen2.5vl:latest", "qwen2.5-vl:7b"),
        ("qwen2.5-vl-7b", "qwen2.5-vl:7b"),
        ("qwen2.5_vl.7b", "qwen2.5-vl:7b"),
        ("Qwen2.5-VL-7B-Instruct", "qwen2.5-vl:7b"),
        ("Qwen2.5-VL-7B-Instruct-AWQ", "qwen2.5-vl:7b-awq"),
        ("qwen3", "qwen3:8b"),
        ("QWEN3:8B", "qwen3:8b"),
        ("qwen3:30b-a3b", "qwen3:30b"),
        ("qwen3-vl:8b-instruct", "qwen3-vl:8b"),
        ("gemma-3-27b-it", "gemma3:27b"),
        ("gpt-oss", "gpt-oss:20b"),
        ("llama-3.1-8b-instruct", "llama3.1:8b"),
        ("self-test", "selftest"),
        ("qwen3:8b-q8_0", "qwen3:8b-q8_0"),
        ("qwen3-8b-Q8_0", "qwen3:8b-q8_0"),
        ("qwen2.5:7b-instruct-q4_K_M", "qwen2.5:7b-q4_k_m"),
        ("qwen3-awq", "qwen3:8b-awq"),
        ("qwen3:4b-q4_K_M", "qwen3:4b-q4_k_m"),
        ("deepseek-r1:14b-qwen-distill-q8_0", "deepseek-r1:14b-q8_0"),
    ],
)
def test_other_spellings_mean_the_same(typed: str, meant: str) -> None:
    assert lookup.canonical(typed) == meant
    assert lookup.find(meant) == lookup.find(typed)
    assert lookup.get(typed) == lookup.find(typed)


def test_every_spelling_in_the_shipped_catalog_is_unique() -> None:
    both = {spelling: found for spelling, found in lookup._load(lookup._own()).spellings.items() if len(found) > 1}
    assert both == {}


def test_every_family_has_a_default_that_is_there() -> None:
    for family in {entry.family for entry in ENTRIES.values()}:
        assert lookup.find(family).family == family


def test_every_quantization_can_be_named() -> None:
    def check(entry: CatalogEntry) -> None:
        for format in FORM:
            for quant in entry.quants(format):
                named = with_quant(CatalogName(entry.name), quant)
                assert isinstance(named, CatalogName)
                found = lookup.find(named.name)
                assert (found.name, plain_quant(found.quant)) == (entry.name, plain_quant(quant))
                assert found.chosen(format) == quant

    for_every(OF_THE_HUB, check)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("qwen3-32", "`qwen3:32b`"),
        ("qwen2.5-vll", "`qwen2.5-vl:7b`"),
        ("qwen3:8", "`qwen3:8b`"),
        ("selftst", "`selftest`"),
    ],
)
def test_unknown_name_suggests_similar_names(typed: str, near: str) -> None:
    with pytest.raises(ModelNotFound) as failure:
        lookup.find(typed)
    assert failure.value.message == f"no model is called `{typed}`"
    assert failure.value.hint.startswith("did you mean ")
    assert near in failure.value.hint
    assert lookup.get(typed) is None


def test_name_without_similar_names() -> None:
    with pytest.raises(ModelNotFound) as failure:
        lookup.find("zzz")
    assert failure.value.hint == "`llmdeploy models catalog` lists the names"


# Quantizations, engine by engine


def test_a_quantization_is_a_file_a_tag_or_a_repository() -> None:
    q8, awq = CatalogName("qwen3:8b-q8_0"), CatalogName("qwen3:8b-awq")
    assert str(gguf.find(q8).weights) == "hf://Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q8_0.gguf"
    assert str(Ollama(Settings()).resolve(q8)) == "qwen3:8b-q8_0"
    assert hf_model.find(awq) == HfModel(HubRepo("Qwen/Qwen3-8B-AWQ"))


@pytest.mark.parametrize(
    ("find", "name", "said", "instead"),
    [
        (gguf.find, "qwen3:8b-awq", "no `awq` of `qwen3:8b` as a GGUF file", "`qwen3:8b-q8_0`"),
        (gguf.find, "qwen3:8b-awq", "no `awq` of `qwen3:8b` as a GGUF file", "`qwen3:8b-awq` is in Hugging Face form"),
        (
            hf_model.find,
            "qwen3:8b-q8_0",
            "no `q8_0` of `qwen3:8b` in Hugging Face form",
            "`qwen3:8b-awq`, `qwen3:8b-gptq`",
        ),
        (Ollama(Settings()).resolve, "qwen3:8b-awq", "no `awq` of `qwen3:8b` in Ollama's registry", "`qwen3:8b-fp16`"),
        (gguf.find, "qwen3:8b-q2_k", "no `q2_k` of `qwen3:8b`", "`q8_0`"),
        (gguf.find, "llama4:scout", "no GGUF file of `llama4:scout`", "`llmdeploy models show llama4:scout`"),
    ],
)
def test_quantization_that_an_engine_does_not_have(
    find: Callable[[CatalogName], object], name: str, said: str, instead: str
) -> None:
    with pytest.raises(ModelNotFound) as failure:
        find(CatalogName(name))
    assert said in failure.value.message
    assert instead in failure.value.hint


def test_name_outside_the_catalog_is_an_ollama_tag() -> None:
    assert str(Ollama(Settings()).resolve(CatalogName("qwen3:8b-q3_K_L"))) == "qwen3:8b-q3_K_L"
    assert str(Ollama(Settings()).resolve(CatalogName("my-own"))) == "my-own"


# The user's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.setenv("LLMDEPLOY_CONFIG", str(tmp_path / "config.toml"))
    return lambda text: void(lookup.user_file().write_text(text, encoding="utf-8"))


def void(_: object) -> None: ...


def test_users_entries_take_precedence(own: Callable[[str], None]) -> None:
    own(
        '[models."qwen3:8b"]\nhub = { bf16 = "me/mine" }\n'
        '[models."house:1b"]\nollama = "house"\nhub = { bf16 = "me/house" }\n'
        '[models.local.gguf]\nfile = "/models/x.gguf"\nquants = ["Q4_K_M"]\n'
    )
    assert (lookup.find("qwen3:8b").hub, lookup.find("qwen3:8b").ollama) == ("me/mine", None)
    assert lookup.find("house") == lookup.find("house:1b")
    assert lookup.find("local").weights == Path("/models/x.gguf")
    assert lookup.names()[:3] == ["qwen3:8b", "house:1b", "local"]
    assert lookup.find("house").own
    assert not lookup.find("qwen3:4b").own


def test_keys_that_are_no_longer_read_are_accepted(own: Callable[[str], None]) -> None:
    own('[families.house]\nhead_size = 128\n[models."house:1b"]\nollama = "house"\nlayers = 32\nwindow = 4096\n')
    assert lookup.find("house").ollama == "house"


def test_ambiguous_spelling_is_refused_with_both_names(own: Callable[[str], None]) -> None:
    own('[models."house:1b"]\nollama = "a"\n[models."house:2b"]\nollama = "b"\n')
    with pytest.raises(ModelNotFound) as failure:
        lookup.find("house")
    assert failure.value.message == "`house` may be `house:1b` or `house:2b`"
    assert failure.value.hint == "say which: `llmdeploy models show house:1b house:2b`"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (
            '[models.x]\ncontexts = 1\nollama = "x"',
            '`models."x"`: unknown key `contexts`',
            "the nearest is `context`",
        ),
        ('[models.x]\nollama = "x"\ncontext = "a"', '`models."x"`: `context`: expected `int`, got `str`', "correct it"),
        ('[models.x]\nollama = "x"\ncontext = true', "`context`: expected `int`", "correct it"),
        ('[models.x]\nollama = "x"\ncontext = 0', "`context`: expected `int` >= 1", "correct it"),
        ('[models.x]\nhub = { bf16 = "no-owner" }', "`hub[...]`: expected `owner/name`", "correct it"),
        ('[models.x]\nhub = "a/b"', "`hub`: expected `object`, got `str`", "correct it"),
        ('[models.x.gguf]\nfiles = "x.gguf"', "unknown key `gguf.files`", "the nearest is `file`"),
        ('[models.x.gguf]\nfile = "x.bin"\nquants = ["Q4_0"]', "`gguf.file`", "correct it"),
        ('[models.x.gguf]\nfile = "x.gguf"\nquants = "none"', "names no list of `quantizations`: `none`", "itself"),
        ('[models.x.gguf]\nfile = "x.gguf"\nquants = ["a", "b"]', "one file for several", "`{quant}`"),
        (
            '[models.x.gguf]\nfile = "x.gguf"\nquants = ["a"]\nbytes = { b = 1 }',
            "`gguf.bytes` has `b`, which is not in `gguf.quants`",
            "add it there",
        ),
        ('[models."a b"]\nollama = "x"', '`models."a b"`: this name cannot be typed', "`name:7b`"),
        ("[models.x]\ncontext = 1", "it names nothing that an engine could take", "add `ollama`, `hub` or `gguf`"),
        ("[model.x]", "unknown key `model`", "the nearest is `models`"),
        ('[families.x]\ndefaults = "1b"', '`families."x"`: unknown key `defaults`', "the nearest is `default`"),
        ("[models", "end of document", "TOML"),
        ("x = 1", "unknown key `x`", "the nearest is"),
    ],
)
def test_errors_in_the_users_catalog(own: Callable[[str], None], text: str, said: str, hint: str) -> None:
    own(text)
    with pytest.raises(ConfigError) as failure:
        lookup.find("qwen3:8b")
    assert failure.value.message.startswith(f"`{lookup.user_file()}`")
    assert said in failure.value.message
    assert hint in failure.value.hint
    assert isinstance(failure.value, errors.LlmdeployError)


# What each engine would get


def available(model: ModelRef, source: str = DEFAULT.hub) -> tuple[Availability, ...]:
    return availability.availability(model, registry.every(replace(DEFAULT, hub=source)))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)


@pytest.mark.usefixtures("no_network")
def test_every_engine_is_answered_without_a_network() -> None:
    def check(entry: CatalogEntry) -> None:
        for offer in available(CatalogName(entry.name)):
            assert offer.artefact, offer
            assert all(isinstance(parse(one), HubFile | HubRepo | OllamaTag) for one in offer.artefact)
            assert (offer.bytes > 0, offer.here, offer.lacks) == (True, False, "")
            assert offer.quant
            assert offer.quant not in offer.others

    for_every((lookup.find(name) for name in ["qwen2.5-vl:7b", *TWENTY]), check)


@pytest.mark.usefixtures("no_network")
def test_local_models_are_recognized_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    cached(tmp_path / "hub", "Qwen/Qwen3-8B-GGUF", "Qwen3-8B-Q4_K_M.gguf")
    cached(tmp_path / "hub", "Qwen/Qwen3-8B", "config.json")
    manifest = tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "8b"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert [offer.here for offer in available(CatalogName("qwen3:8b"))] == [True, True, False]
    cached(
        tmp_path / "hub", "Qwen/Qwen3-8B", "model.safetensors.index.json", '{"weight_map": {"a": "one.safetensors"}}'
    )
    assert not available(CatalogName("qwen3:8b"))[2].here
    cached(tmp_path / "hub", "Qwen/Qwen3-8B", "one.safetensors")
    assert not available(CatalogName("qwen3:8b"))[2].here
    cached(tmp_path / "hub", "Qwen/Qwen3-8B", "tokenizer.json")
    assert available(CatalogName("qwen3:8b"))[2].here
    assert [offer.here for offer in available(CatalogName("qwen3:8b-q8_0"))] == [False, False, False]


@pytest.mark.usefixtures("no_network")
def test_local_repositories_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for file in ("x-Q4_K_M.gguf", "x-Q8_0.gguf", "x-F16-00001-of-00002.gguf"):
        cached(tmp_path / "hub", "a/x-GGUF", file, "1234")
    cached(tmp_path / "hub", "a/x-GGUF", "mmproj-x-f16.gguf", "12")
    for name in ("a/x-GGUF", "a/x-GGUF:q8_0", "hf://a/x-GGUF/x-Q8_0.gguf", "hf.co/a/x-GGUF:Q8_0"):
        llamacpp = available(parse(name))[0]
        assert (llamacpp.bytes, llamacpp.exact, llamacpp.here) == (6, True, True), name
    for name in ("a/x-GGUF:Q5_0", "a/x-GGUF:F16", "hf://a/x-GGUF/y.gguf", "b/x-GGUF"):
        assert (available(parse(name))[0].bytes, available(parse(name))[0].here) == (0, False), name
    cached(tmp_path / "hub", "a/x", "config.json")
    cached(tmp_path / "hub", "a/x", "tokenizer.json")
    cached(tmp_path / "hub", "a/x", "model.safetensors", "123")
    assert (available(parse("a/x"))[2].bytes, available(parse("a/x"))[2].here) == (3, True)


@pytest.mark.usefixtures("no_network")
def test_name_is_shown_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    name = CatalogName("qwen3:8b")
    assert available(name)[2].artefact == ("hf://Qwen/Qwen3-8B",)
    assert available(name, "modelscope")[2].artefact == ("ms://Qwen/Qwen3-8B",)
    assert available(name, "modelscope")[0].artefact == ("ms://Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf",)
    snapshot = tmp_path / "ms" / "models" / "Qwen--Qwen3-8B" / "snapshots" / "master"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot / "tokenizer.json").touch()
    (snapshot / "model.safetensors").write_text("123")
    assert (available(name)[2].artefact, available(name)[2].here) == (("ms://Qwen/Qwen3-8B",), True)


def cached(cache: Path, repo: str, file: str, text: str = "") -> None:
    """Put a file into a cache as huggingface_hub lays it out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / COMMIT / file).write_text(text)


@pytest.mark.parametrize(
    ("reference", "engines"),
    [
        ("Qwen/Qwen3-8B", {"vllm"}),
        ("hf://Qwen/Qwen3-8B-GGUF:Q8_0", {"llamacpp", "ollama"}),
        ("hf://Qwen/Qwen3-8B-GGUF/x.gguf", {"llamacpp", "ollama"}),
        ("ollama://x:7b", {"ollama"}),
        ("hf.co/a/b:Q8_0", {"llamacpp", "ollama"}),
        (str(selftest_dir() / "selftest-f16.gguf"), {"llamacpp", "ollama"}),
        (str(selftest_dir() / "hf"), {"vllm"}),
    ],
)
def test_availability_of_references_that_are_not_catalog_names(reference: str, engines: set[str]) -> None:
    found = available(parse(reference))
    assert [offer.engine for offer in found] == list(ENGINE_NAMES)
    assert {offer.engine for offer in found if offer.artefact} == engines
    assert all(bool(offer.artefact) != bool(offer.lacks) for offer in found)


def test_names_for_completion_import_nothing_heavy() -> None:
    code = "import sys; from llmdeploy.models.catalog import names; names.shipped(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "numpy",
        "gguf",
        "huggingface_hub",
        "httpx",
        "typer",
        "rich",
        "asyncio",
        "ssl",
        "socket",
        "msgspec",
        "tomllib",
    }
    assert not heavy & set(loaded)


# The commands

SHOWN = """\
qwen2.5-vl:7b
  text, image; 8.29 billion parameters; context 128000; Apache-2.0
  llamacpp: Q4_K_M, 5.2 GiB, not here
    hf://ggml-org/Qwen2.5-VL-7B-Instruct-GGUF/Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf
    hf://ggml-org/Qwen2.5-VL-7B-Instruct-GGUF/mmproj-Qwen2.5-VL-7B-Instruct-Q8_0.gguf
    also q8_0
  ollama: q4_K_M, about 5.6 GiB, not here
    ollama://qwen2.5vl:7b
    also q8_0, fp16
  vllm: bf16, about 15.4 GiB, not here
    hf://Qwen/Qwen2.5-VL-7B-Instruct
    also awq, gptq, nvfp4
"""


def test_show_lists_the_weights_of_each_engine(world: World) -> None:
    assert world.run("models", "show", "qwen2.5-vl").text == (
        f"exit 0\n--- stdout\n{SHOWN}--- stderr\n`qwen2.5-vl` is `qwen2.5-vl:7b`\n"
    )


def test_show_of_many_is_one_document(world: World) -> None:
    result = world.run("models", "show", "--json", "qwen2.5vl", "qwen3:8b-awq", "llama4:scout", "selftest")
    assert (result.status, result.stderr) == (0, "")
    vl, awq, scout, selftest = json.loads(result.stdout)["models"]
    assert (vl["asked"], vl["name"]) == ("qwen2.5vl", "qwen2.5-vl:7b")
    assert vl["engines"]["ollama"]["artefact"] == ["ollama://qwen2.5vl:7b"]
    assert vl["engines"]["llamacpp"]["bytes"] == 4_683_072_032 + 853_119_712
    assert (vl["engines"]["llamacpp"]["exact"], vl["engines"]["vllm"]["exact"]) == (True, False)
    assert awq["engines"]["vllm"]["artefact"] == ["hf://Qwen/Qwen3-8B-AWQ"]
    assert awq["engines"]["llamacpp"]["artefact"] == []
    assert "Q8_0" in awq["engines"]["llamacpp"]["others"]
    assert scout["gated"]
    assert scout["engines"]["vllm"]["gated"]
    assert scout["active_parameters"] == 17_000_000_000
    assert {engine: offer["here"] for engine, offer in selftest["engines"].items()} == {
        "llamacpp": True,
        "ollama": False,
        "vllm": True,
    }


def test_show_of_an_unknown_name(world: World) -> None:
    result = world.run("models", "show", "qwen3:8b", "qwen3:9b")
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no model is called `qwen3:9b`\nhint: did you mean ")


def test_catalog_lists_the_names(world: World) -> None:
    result = world.run("models", "catalog")
    assert (result.status, [line.split()[0] for line in result.stdout.splitlines()[1:]]) == (0, lookup.names())
    documents: list[dict[str, Any]] = json.loads(world.run("models", "catalog", "--json").stdout)["models"]
    assert [document["name"] for document in documents] == lookup.names()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('hub = { bf16 = "x" }', "`hub[...]`: expected `owner/name`"),
        ('gguf = { repo = "x", file = "x.gguf", quants = ["F16"] }', "`gguf.repo`: expected `owner/name`"),
        ('gguf = { repo = "a/x", file = "x", quants = ["F16"] }', "`gguf.file`: expected a path that ends in `.gguf`"),
        ('ollama = "a\\nb"', "`ollama`: expected a text in one line"),
    ],
)
def test_expected_form_is_described_in_words(world: World, entry: str, said: str) -> None:
    world.config.parent.mkdir(parents=True)
    (world.config.parent / "catalog.toml").write_text(f"[models.house]\n{entry}\n")
    assert f'`models."house"`: {said}\n' in world.run("models", "show", "house").stderr


def test_users_catalog_is_in_the_folder_of_the_configuration(world: World) -> None:
    world.config.parent.mkdir(parents=True)
    (world.config.parent / "catalog.toml").write_text('[models."house:1b"]\nollama = "house"\n')
    assert world.run("models", "catalog").stdout.splitlines()[1].split()[0] == "house:1b"
    assert "ollama://house" in world.run("models", "show", "house").stdout
    (world.config.parent / "catalog.toml").write_text("[models.house]\nolama = 1\n")
    assert world.run("models", "show", "qwen3:8b").text == (
        "exit 1\n--- stdout\n--- stderr\n"
        'error: `[FOLDER]/home/.config/llmdeploy/catalog.toml`, `models."house"`: unknown key `olama`\n'
        "hint: the nearest is `ollama`\n"
    )
