"""The view of what is on this machine, over places that are laid out as the programs do it."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmdeploy.errors import LlmdeployError, ModelNotFound
from llmdeploy.models import removal, store
from llmdeploy.models.reference import CatalogName, HubRepo, OllamaTag, parse
from llmdeploy.models.stores import folders, hub_cache, lmstudio, modelscope, ollama
from llmdeploy.models.stores.installed import InstalledModel, total_bytes
from llmdeploy.models.stores.repository import models_in
from tests import model_places
from tests.hub_server import COMMIT, Hub, serve
from tests.model_places import MMPROJ, WEIGHTS, fetch, pack, put, selftest_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

GGUF, HF = "owner/x-GGUF", "owner/x"
HF_FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"s" * 5000}
GGUF_FILES = {
    "x-Q4_K_M.gguf": b"4" * 4000,
    "x-Q8_0.gguf": b"8" * 8000,
    "mmproj-x-F16.gguf": b"m" * 1000,
    "README.md": b"# x",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serve(Hub(files={GGUF: GGUF_FILES, HF: HF_FILES, "owner/tokens": {"tokenizer.json": b"[]"}})) as hub:
        yield hub.url


@pytest.fixture(scope="module")
def fetched(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill the Hub's cache with huggingface_hub."""
    home = tmp_path_factory.mktemp("hf")
    for repo, files in ((GGUF, GGUF_FILES), (HF, HF_FILES), ("owner/tokens", {"tokenizer.json": b"[]"})):
        fetch(endpoint, home, repo, *files)
    return home / "hub"


@pytest.fixture
def cache(fetched: Path, tmp_path: Path) -> Path:
    """Provide a copy of the cache for one test."""
    return Path(shutil.copytree(fetched, tmp_path / "hf" / "hub", symlinks=True))


def by_name(models: object) -> dict[str, InstalledModel]:
    assert isinstance(models, tuple)
    return {str(model.reference): model for model in models}


def names(found: InstalledModel) -> set[str]:
    return {file.name for file in found.files}


# --- The Hub's cache


def test_download_of_huggingface_hub_is_a_model_for_each_quantization(cache: Path) -> None:
    found = by_name(hub_cache.read(cache).models)
    assert found.keys() == {f"hf://{HF}", f"hf://{GGUF}:Q4_K_M", f"hf://{GGUF}:Q8_0"}, "a tokenizer is not a model"
    small, whole = found[f"hf://{GGUF}:Q4_K_M"], found[f"hf://{HF}"]
    assert names(small) == {"x-Q4_K_M.gguf", "mmproj-x-F16.gguf", "README.md"}
    assert (small.size, small.formats, small.revisions) == (4000 + 1000 + 3, ("gguf",), (COMMIT,))
    assert (whole.size, whole.formats, names(whole)) == (5004, ("hf",), set(HF_FILES))
    assert time.time() - small.last_used < 60
    assert all(parse(name) == model.reference for name, model in found.items())
    assert total_bytes(found.values()) == 4000 + 8000 + 1000 + 3 + 5004


def test_incomplete_model_has_no_formats(cache: Path) -> None:
    (cache / "models--owner--x" / "snapshots" / COMMIT / "config.json").unlink()
    split = put(cache / "models--owner--x-GGUF" / "snapshots" / COMMIT / "x-Q6_K-00001-of-00002.gguf", b"6")
    found = by_name(hub_cache.read(cache).models)
    assert found[f"hf://{HF}"].formats == ()
    assert (found[f"hf://{GGUF}:Q6_K"].formats, found[f"hf://{GGUF}:Q6_K"].detail) == ((), "not all its parts are here")
    put(split.with_name("x-Q6_K-00002-of-00002.gguf"), b"6")
    assert by_name(hub_cache.read(cache).models)[f"hf://{GGUF}:Q6_K"].formats == ("gguf",)


def test_missing_shard_of_an_index_makes_a_model_incomplete(cache: Path) -> None:
    snapshot = cache / "models--owner--x" / "snapshots" / COMMIT
    put(
        snapshot / "model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}}'
    )
    assert by_name(hub_cache.read(cache).models)[f"hf://{HF}"].detail == "not all its files are here"
    put(snapshot / "two.safetensors", b"s")
    assert by_name(hub_cache.read(cache).models)[f"hf://{HF}"].formats == ("hf",)


def test_revisions_of_a_model_are_one_line(endpoint: str, cache: Path) -> None:
    repository = cache / "models--owner--x"
    other = "f" * 40
    (repository / "snapshots" / COMMIT).rename(repository / "snapshots" / other)
    (repository / "refs" / "main").unlink()
    assert f"hf://{HF}@{other}" in by_name(hub_cache.read(cache).models), "no branch has it: named by its commit"
    fetch(endpoint, cache.parent, HF, *HF_FILES)
    [found] = [it for it in hub_cache.read(cache).models if it.reference == HubRepo(HF)]
    assert set(found.revisions) == {COMMIT, other}
    assert found.size == 5004, "both have the same blobs"


def test_partial_files_are_reported_with_their_size(cache: Path) -> None:
    put(cache / "models--owner--x" / "blobs" / f"{'a' * 64}.llmdeploy.incomplete", b"p" * 70)
    put(cache / "models--owner--x-GGUF" / "blobs" / f"{'b' * 64}.0123abcd.incomplete", b"p" * 30)
    put(cache / "models--owner--new" / "blobs" / f"{'c' * 64}.llmdeploy.incomplete", b"p" * 9)
    found = by_name(hub_cache.read(cache).models)
    assert (found[f"hf://{HF}"].unfinished, found[f"hf://{HF}"].formats) == (70, ("hf",))
    assert (found[f"hf://{GGUF}"].unfinished, found[f"hf://{GGUF}"].files) == (30, ()), "of which quantization: unknown"
    assert (found["hf://owner/new"].unfinished, found["hf://owner/new"].formats) == (9, ())


def test_missing_cache_and_unreadable_cache(tmp_path: Path) -> None:
    assert hub_cache.read(tmp_path / "none") == hub_cache.StoreListing()
    [note] = hub_cache.read(put(tmp_path / "file", b"x")).notes
    assert "cannot be read" in note


def test_old_repository_is_named_by_its_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--gpt2" / "snapshots" / COMMIT
    for name in ("config.json", "model.safetensors"):
        put(snapshot / name, b"{}")
    [found] = hub_cache.read(tmp_path).models
    assert (found.reference, found.formats) == (snapshot, ("hf",))


def test_models_of_the_same_quantization_are_named_by_their_files() -> None:
    found = models_in(HubRepo("o/r"), ["a-Q4_0.gguf", "b-Q4_0.gguf", "c.gguf", "imatrix.gguf"])
    assert [str(group.reference) for group in found] == [
        "hf://o/r/a-Q4_0.gguf", "hf://o/r/b-Q4_0.gguf", "hf://o/r/c.gguf"
    ]  # fmt: skip


def test_each_file_of_fifty_repositories_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        repository = tmp_path / f"models--owner--m{number}"
        put(repository / "refs" / "main", COMMIT.encode())
        (repository / "snapshots" / COMMIT).mkdir(parents=True)
        for name in (*HF_FILES, *(f"model-{part:05}-of-00010.safetensors" for part in range(10))):
            blob = put(repository / "blobs" / f"{name}-blob", b"x")
            (repository / "snapshots" / COMMIT / name).symlink_to(blob)
    opened, bounded = counted(monkeypatch, io, "open"), counted(monkeypatch, builtins, "open")
    resolved = counted(monkeypatch, os.path, "realpath")
    shelf = hub_cache.read(tmp_path)
    assert len(opened) + len(bounded) == 2 * 50  # the branch's commit and config.json, but no weights
    found = store.Store(shelf.models, ())
    assert [found.freed(model) for model in found.models] == [13] * 50
    assert (len(opened) + len(bounded), len(resolved)) == (2 * 50, 13 * 50)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[object]:
    """Return a list that gets the first argument of each call of a function from now on."""
    function, calls = getattr(module, name), []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[0])
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, call)
    return calls


# --- Ollama's store


@pytest.fixture
def ollama_store(tmp_path: Path) -> Path:
    store = tmp_path / "ollama" / "models"
    pack(store, "qwen3/8b", *selftest_layers())
    pack(store, "hf.co/owner/x-GGUF/Q8_0", ("model", WEIGHTS))
    pack(store, "hub.example.org:5000/team/x/latest", ("model", WEIGHTS), ("adapter", b"lora"))
    pack(store, "registry.ollama.ai/llmdeploy/selftest-f16/0123456789ab", ("model", WEIGHTS))
    license = f"{ollama.MARK} as selftest:latest, state folder /x of here.".encode()
    pack(store, "selftest/latest", ("model", WEIGHTS), ("license", license))
    return store


def test_models_of_ollama_are_read_without_its_daemon(ollama_store: Path) -> None:
    shelf = ollama.read(ollama_store)
    found = by_name(shelf.models)
    assert found.keys() == {
        "ollama://qwen3:8b", "hf.co/owner/x-GGUF:Q8_0", "ollama://hub.example.org:5000/team/x:latest",
        "ollama://llmdeploy/selftest-f16:0123456789ab", "ollama://selftest:latest",
    }  # fmt: skip
    assert all(parse(name) == model.reference for name, model in found.items())
    whole = found["ollama://qwen3:8b"]
    assert whole.formats == ("ollama", "gguf")
    assert whole.size - WEIGHTS.stat().st_size - MMPROJ.stat().st_size < 100
    assert len(whole.revisions[0]) == 64
    adapted = found["ollama://hub.example.org:5000/team/x:latest"]
    assert (adapted.formats, adapted.detail) == (
        ("ollama",), "not on llama.cpp: it has an adapter beside its weights"
    )  # fmt: skip
    assert found["ollama://llmdeploy/selftest-f16:0123456789ab"].detail == "imported from a GGUF file"
    assert [name for name, model in found.items() if model.hidden] == ["ollama://selftest:latest"]


def test_incomplete_model_of_ollama_has_no_formats(ollama_store: Path) -> None:
    [blob] = [file for kind, file in ollama.find(ollama_store, "qwen3:8b")[0].layers if kind == "projector"]
    blob.unlink()
    found = by_name(ollama.read(ollama_store).models)["ollama://qwen3:8b"]
    assert (found.formats, found.detail) == ((), "some of its files are missing or may not be read")
    put(ollama_store / "blobs" / f"sha256-{'a' * 64}-partial", b"p" * 8192)
    [note] = ollama.read(ollama_store).notes
    assert "has 8 KiB of unfinished downloads" in note


@pytest.mark.parametrize(
    "digest", ["../../precious", "sha256:../../../precious", "sha256-" + "a" * 63, "sha256:x/../y", 5]
)
def test_manifest_names_no_file_outside_the_store(ollama_store: Path, digest: object) -> None:
    put(ollama_store.parent / "precious", WEIGHTS.read_bytes())
    [manifest] = (ollama_store / "manifests").glob("*/library/qwen3/8b")
    content = json.loads(manifest.read_text())
    for changed in ({"layers": [{**content["layers"][0], "digest": digest}]}, {"config": {"digest": digest}}):
        manifest.write_text(json.dumps({**content, **changed}))
        assert ollama.find(ollama_store, "qwen3:8b") == []
        assert "ollama://qwen3:8b" not in by_name(ollama.read(ollama_store).models)


def test_manifest_that_is_not_a_small_file_is_skipped(ollama_store: Path) -> None:
    folder = ollama_store / "manifests" / "registry.ollama.ai" / "library" / "odd"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    put(folder / "deep", b"[" * 10**6)
    assert len(ollama.read(ollama_store).models) == 5


def test_damaged_store_is_skipped(ollama_store: Path) -> None:
    put(ollama_store / "manifests" / "registry.ollama.ai" / "library" / "broken" / "1", b"{")
    put(ollama_store / "manifests" / "registry.ollama.ai" / "library" / "odd" / "1", b'{"layers": [1], "config": {}}')
    put(ollama_store / "manifests" / ".DS_Store", b"x")
    assert len(ollama.read(ollama_store).models) == 5
    assert ollama.read(ollama_store / "none") == ollama.StoreListing()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_store_of_another_user_is_reported_in_a_note(ollama_store: Path) -> None:
    (ollama_store / "manifests").chmod(0)
    try:
        [note] = ollama.read(ollama_store).notes
    finally:
        (ollama_store / "manifests").chmod(0o755)
    assert note == f"Ollama's store `{ollama_store}` cannot be read: Permission denied"


def test_a_header_is_read_once_for_each_manifest(ollama_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama.read(ollama_store)
    read: list[Path] = []
    monkeypatch.setattr(ollama.gguf_header, "read", read.append)
    assert by_name(ollama.read(ollama_store).models)["ollama://qwen3:8b"].formats == ("ollama", "gguf")
    assert read == []
    monkeypatch.setattr(ollama.ollama_compat, "RULES", 10**6)
    with pytest.raises(AttributeError):  # read again, by newer rules: here to nothing
        ollama.read(ollama_store)


# --- Folders


def test_files_of_lm_studio_are_named_by_their_paths(tmp_path: Path) -> None:
    folder = model_places.lmstudio(tmp_path, GGUF, x_Q4_K_M=WEIGHTS, mmproj_x_F16=MMPROJ)
    [found] = lmstudio.read(folder.parents[1]).models
    assert found.reference == folder / "x-Q4-K-M.gguf"
    assert names(found) == {"x-Q4-K-M.gguf", "mmproj-x-F16.gguf"}
    assert found.formats == ("gguf",)


def test_folders_of_lm_studio(tmp_path: Path) -> None:
    home = Path.home()
    assert lmstudio.roots() == (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models")
    put(home / ".lmstudio-home-pointer", f"{tmp_path}/studio\n".encode())
    assert lmstudio.roots()[0] == tmp_path / "studio" / "models"
    put(home / ".lmstudio-home-pointer", b"")
    assert len(lmstudio.roots()) == 2


def test_a_folder_that_a_model_was_put_into(tmp_path: Path) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    for name in ("x-Q4_K_M.gguf", "mine.gguf"):
        put(here / name, WEIGHTS)
    put(here / "x-Q8_0.gguf.incomplete", b"half")
    folders.save(gone, HubRepo(HF), ["model.safetensors"])
    folders.save(here, HubRepo(GGUF), ["x-Q4_K_M.gguf"])
    folders.save(here, HubRepo(GGUF), ["x-Q8_0.gguf"])
    assert [one.folder for one in folders.filled()] == [here]
    found = by_name(folders.read().models)
    assert found.keys() == {str(here / "x-Q4_K_M.gguf"), "selftest"}, "the user's own file is not ours to show"
    mine = found[str(here / "x-Q4_K_M.gguf")]
    assert (mine.detail, mine.unfinished) == (f"from `hf://{GGUF}`", 4)
    folders.forget(here, [here / "x-Q4_K_M.gguf", here / "x-Q8_0.gguf"])
    assert folders.filled() == []


def test_the_model_that_ships_runs_on_every_engine() -> None:
    [found] = folders.read().models
    assert (found.reference, found.formats) == (CatalogName("selftest"), ("gguf", "hf"))
    assert str(removal.refusal(found)) == "`selftest` ships with llmdeploy"


@pytest.mark.parametrize("base", ["models", "hub/models"])
def test_the_cache_of_an_older_modelscope(tmp_path: Path, base: str) -> None:
    folder = tmp_path / base / "Qwen" / "Qwen2___5-0___5B"
    for name, content in HF_FILES.items():
        put(folder / name, content)
    put(folder / ".msc", b"x")
    put(folder / "._____temp" / "model-2.safetensors", b"half")
    [found] = modelscope.read(tmp_path).models
    assert (str(found.reference), found.formats) == ("ms://Qwen/Qwen2.5-0.5B", ("hf",))
    assert (names(found), found.unfinished) == (set(HF_FILES), 4)
    assert found.root == (tmp_path / base).parent


def test_modelscopes_cache(tmp_path: Path) -> None:
    snapshots = tmp_path / "models" / "Qwen--Qwen2.5-0.5B" / "snapshots"
    for name, content in HF_FILES.items():
        put(snapshots / COMMIT / name, content)
        put(snapshots / "master" / name, b"").unlink()
        (snapshots / "master" / name).hardlink_to(snapshots / COMMIT / name)
    put(snapshots / ("1" * 40) / "model.safetensors.incomplete", b"half")
    [found] = (here := store.Store(modelscope.read(tmp_path).models, ())).models
    assert (str(found.reference), found.formats) == ("ms://Qwen/Qwen2.5-0.5B", ("hf",))
    assert (found.size, found.unfinished) == (sum(map(len, HF_FILES.values())), 4)
    assert COMMIT in found.revisions
    assert here.freed(found) == found.size + found.unfinished, "one file by two names"
    removal.remove(here, [found])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("file", "message"),
    [("main", "`{root}` cannot be changed: Read-only file system"), ("/x/y", "`/x/y` cannot be removed: Read-only")],
)
def test_what_cannot_be_removed_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", file)

    monkeypatch.setattr(removal, "WAYS", {"hub": refuse})
    held = InstalledModel(HubRepo("a/b"), "hub", tmp_path, (), (), 0)
    with pytest.raises(LlmdeployError) as caught:
        removal.remove(store.Store((held,), ()), [held])
    assert caught.value.message.startswith(message.format(root=tmp_path))


def test_a_name_of_the_catalog_means_what_came_from_modelscope(tmp_path: Path) -> None:
    snapshot = tmp_path / "models" / "Qwen--Qwen3-0.6B" / "snapshots" / "master"
    for name, content in HF_FILES.items():
        put(snapshot / name, content)
    here = store.Store(modelscope.read(tmp_path).models, ())
    assert [str(model.reference) for model in here.named("qwen3:0.6b")] == ["ms://Qwen/Qwen3-0.6B"]


# --- All of it


@pytest.fixture
def everything(cache: Path, ollama_store: Path, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama_store))
    monkeypatch.setattr(store.source, "origin", lambda source: type("Hub", (), {"cache": staticmethod(lambda: cache)}))
    return store.scan()


def test_one_view_of_all_places(everything: store.Store) -> None:
    places = {model.place for model in everything.models}
    assert places == {"hub", "ollama", "folder"}
    assert not [model for model in everything.models if model.hidden]
    assert everything.notes == ()


@pytest.mark.parametrize(
    ("name", "means"),
    [
        (f"hf://{GGUF}:Q4_K_M", [f"hf://{GGUF}:Q4_K_M"]),
        (f"{GGUF}:q4_k_m", [f"hf://{GGUF}:Q4_K_M"]),
        (f"hf://{GGUF}", [f"hf://{GGUF}:Q4_K_M", f"hf://{GGUF}:Q8_0"]),
        (f"hf://{GGUF}/x-Q8_0.gguf", [f"hf://{GGUF}:Q8_0"]),
        (HF, [f"hf://{HF}"]),
        ("ollama://qwen3:8b", ["ollama://qwen3:8b"]),
        ("ollama://QWEN3:8B", ["ollama://qwen3:8b"]),
        ("qwen3:8b", ["ollama://qwen3:8b"]),
        ("Qwen3_8B", ["ollama://qwen3:8b"]),
        ("hf.co/owner/x-gguf:Q8_0", ["hf.co/owner/x-GGUF:Q8_0"]),
        ("selftest", ["selftest"]),
    ],
)
def test_what_a_name_means(everything: store.Store, name: str, means: list[str]) -> None:
    assert [str(model.reference) for model in everything.named(name)] == means


def test_a_name_that_is_not_here_brings_what_is_near(everything: store.Store) -> None:
    with pytest.raises(ModelNotFound, match="`hf://owner/x-GUF:Q4_K_M` is not on this machine") as caught:
        everything.named("hf://owner/x-GUF:Q4_K_M")
    assert f"`hf://{GGUF}:Q4_K_M`" in caught.value.hint
    with pytest.raises(ModelNotFound) as caught:
        everything.named("zzzzzzz")
    assert caught.value.hint == "`llmdeploy models` shows what is here"


@pytest.mark.parametrize("name", ["llama4:scout", "glm4:9b", "qwen3:8b-awq"])
def test_name_without_a_model_for_an_engine(everything: store.Store, name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"`{name}` is not on this machine"):
        everything.named(name)


def test_files_of_other_models_are_not_freed(everything: store.Store) -> None:
    [small], [large] = everything.named(f"hf://{GGUF}:Q4_K_M"), everything.named(f"hf://{GGUF}:Q8_0")
    assert everything.freed(small) == 4000, "the projector and the README are the other's too"
    assert everything.freed(small, large) == 4000 + 8000 + 1000 + 3
    [tag] = everything.named("ollama://qwen3:8b")
    assert everything.freed(tag) < MMPROJ.stat().st_size + 200, "four models share the weights"
    assert isinstance(tag.reference, OllamaTag)


def test_file_with_another_hard_link_frees_nothing(everything: store.Store, tmp_path: Path) -> None:
    [small] = everything.named(f"hf://{GGUF}:Q4_K_M")
    os.link(os.path.realpath(small.files[0]), tmp_path / "mine.gguf")
    assert everything.freed(small) == 0


@pytest.mark.parametrize("index", ["[]", "{}", "{", '{"weight_map": ["x"]}', '{"weight_map": {"a": ["x"], "b": 1}}'])
def test_damaged_index_hides_no_model(cache: Path, index: str) -> None:
    snapshot = cache / "models--owner--x" / "snapshots" / COMMIT
    (snapshot / "model.safetensors.index.json").write_text(index)
    assert by_name(hub_cache.read(cache).models)[f"hf://{HF}"].formats == ("hf",)


@pytest.mark.parametrize("stop", [{"a": 1}, 5, "text", None])
def test_stop_texts_of_another_form_are_left_out(tmp_path: Path, stop: object) -> None:
    params = put(tmp_path / "params", json.dumps({"stop": stop}).encode())
    packed = ollama.Packed(tmp_path, "m:latest", tmp_path, "", (("params", params),), {})
    assert packed.stops() == ()
