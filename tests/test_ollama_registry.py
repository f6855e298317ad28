"""The manifests and headers in Ollama's registry, and the files in its store: sizes and facts before a pull."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmdeploy import hardware
from llmdeploy.config import Settings
from llmdeploy.engines.ollama import requirements
from llmdeploy.engines.ollama.documents import Installed
from llmdeploy.engines.ollama.engine import Ollama
from llmdeploy.engines.ollama.registry import Layer, Manifest
from llmdeploy.engines.ollama.registry import Registry as Asked
from llmdeploy.engines.ollama.settings import OllamaSettings
from llmdeploy.engines.ollama.weights import GgufImport, Tag
from llmdeploy.errors import DownloadFailed, UsageError
from llmdeploy.models import digest, gguf, lock, remote_file
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import OllamaTag, parse
from llmdeploy.models.requirements import RequiredFile, Requirements
from llmdeploy.models.stores.ollama import parts
from llmdeploy.plan import Wishes
from llmdeploy.tls import trusting
from tests.conftest import SELFTEST, World
from tests.ollama_registry import Registry, serve
from tests.ollama_replay import closed_port, replay
from tests.test_facts import write
from tests.tls_world import CERTIFICATE

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serve(Registry()) as registry:
        yield registry


def asked(registry: Registry, name: str) -> Asked:
    return Asked(f"{registry.url.removeprefix('http://')}/{name}", scheme="http")


# --- Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", ("registry.ollama.ai", "library/qwen3", "latest")),
        ("qwen3:8b", ("registry.ollama.ai", "library/qwen3", "8b")),
        ("User/model:7b", ("registry.ollama.ai", "User/model", "7b")),
        ("hf.co/Owner/Repo-GGUF:Q4_K_M", ("hf.co", "Owner/Repo-GGUF", "Q4_K_M")),
        ("hf.co/Owner/Repo-GGUF", ("hf.co", "Owner/Repo-GGUF", "latest")),
        ("registry.example:5000/user/model", ("registry.example:5000", "user/model", "latest")),
        ("registry.example:5000/user/model:v1", ("registry.example:5000", "user/model", "v1")),
    ],
)
def test_name_is_parsed_as_ollama_does(name: str, expected: tuple[str, str, str]) -> None:
    assert parts(name) == expected


# --- The registry


def test_manifest_has_the_size_of_every_layer(registry: Registry) -> None:
    made = registry.add("library/x:7b", model=WEIGHTS, projector=MMPROJ, template=b"{{ .Prompt }}")
    manifest = asked(registry, "library/x:7b").manifest()
    assert [(f"sha256:{layer.digest}", layer.size) for layer in manifest.layers] == made
    assert manifest.size == sum(size for _, size in made)
    projector = manifest.layer("projector")
    assert projector is not None
    assert projector.size == MMPROJ.stat().st_size
    assert manifest.layer("adapter") is None


def test_facts_come_from_the_header_of_the_weights(registry: Registry) -> None:
    registry.add("library/x:7b", model=WEIGHTS.read_bytes() + bytes(3_000_000), projector=MMPROJ)
    there = asked(registry, "library/x:7b")
    manifest = there.manifest()
    facts = there.facts(manifest)
    here = gguf.find(parse("selftest")).facts()
    assert facts.weights_bytes == manifest.size, "as Ollama's daemon tells it"
    assert replace(facts, weights_bytes=here.weights_bytes, source=here.source, mmproj_bytes=here.mmproj_bytes) == here
    assert facts.source.startswith("header of `localhost:")
    assert registry.sent == remote_file.FIRST
    assert len(registry.requests) == 3, "the manifest, the blob, and where that leads to"


def test_vision_part_in_the_weights_is_recognized(registry: Registry, tmp_path: Path) -> None:
    registry.add("library/x:7b", model=write(tmp_path / "x.gguf", {"vision.block_count": 32}))
    there = asked(registry, "library/x:7b")
    assert there.facts(there.manifest()).sees_images


DIGEST = "sha256:" + "ab" * 32
FORGED = [
    (DIGEST, "sha256:../../../../etc/passwd"),
    (DIGEST, "sha256:" + "AB" * 32),
    (DIGEST, DIGEST + "\\n"),
    (DIGEST, "md5:" + "ab" * 16),
    ('"size": 7', '"size": -7'),
    ('"size": 7', '"size": true'),
    ('"size": 7', '"size": 7.0'),
    ('"size": 7', '"size": "7"'),
    ('"size": 7', '"size": 1e400'),
    ('"size": 7', '"size": 9223372036854775807'),
]
"""Changes of a manifest, with which it would name another file or no size."""


def forged(before: str, after: str) -> bytes:
    """Return a manifest with that change."""
    layer = f'{{"mediaType": "application/vnd.ollama.image.model", "digest": "{DIGEST}", "size": 7}}'
    return f'{{"config": {layer}, "layers": [{layer}]}}'.replace(before, after).encode()


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (None, "it answers with status 404"),
        (b"<html>log in</html>", "what answers does not speak as a registry does"),
        (b"[]", "what answers does not speak as a registry does"),
        (b'{"layers": []}', "what answers does not speak as a registry does"),
        (b'{"config": {"digest": "sha256:1", "size": 1, "mediaType": "x"}, "layers": []}', "what answers does not"),
        (b"[" * 100_000, "what answers does not speak as a registry does"),
        *((forged(*change), "what answers does not speak as a registry does") for change in FORGED),
    ],
)
def test_answer_that_is_not_a_manifest_is_refused(registry: Registry, manifest: bytes | None, why: str) -> None:
    if manifest is not None:
        registry.manifests["library/x:7b"] = manifest
    there = asked(registry, "library/x:7b")
    with pytest.raises(DownloadFailed) as caught:
        there.manifest()
    host = registry.url.removeprefix("http://")
    assert caught.value.message.startswith(f"`{host}` does not tell of `{host}/library/x:7b`: {why}")
    assert caught.value.hint


def test_endless_answer_is_cut(registry: Registry) -> None:
    registry.manifests["library/x:7b"] = b" " * 100_000_000
    with pytest.raises(DownloadFailed, match="does not speak as a registry does"):
        asked(registry, "library/x:7b").manifest()
    assert registry.written < 50_000_000


def test_registry_that_does_not_answer() -> None:
    with pytest.raises(DownloadFailed, match="does not tell of"):
        Asked(f"127.0.0.1:{closed_port()}/library/x:7b").manifest()


def test_unusable_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (f"http://127.0.0.1:{closed_port()}", "spdy://x", "http://[::"):
        monkeypatch.setenv("HTTPS_PROXY", value)
        with pytest.raises(DownloadFailed):
            Asked("qwen3:8b").manifest()


def test_loopback_is_reached_without_a_proxy(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    registry.add("library/x:7b", model=WEIGHTS)
    assert asked(registry, "library/x:7b").manifest().layers


def test_answer_without_a_range_is_cut(registry: Registry) -> None:
    registry.add("library/x:7b", model=WEIGHTS.read_bytes() + bytes(50_000_000))
    registry.ignores_range = True
    there = asked(registry, "library/x:7b")
    with pytest.raises(DownloadFailed, match="it answers with status 200 where a range was asked for"):
        there.facts(there.manifest())


@pytest.mark.parametrize("layers", [{"tensor": b"x"}, {"model": b"no GGUF"}, {"model": WEIGHTS.read_bytes()[:5000]}])
def test_damaged_gguf_in_the_registry_is_a_download_failure(registry: Registry, layers: dict[str, bytes]) -> None:
    # Ollama reads other forms too.
    registry.add("library/x:7b", **layers)
    there = asked(registry, "library/x:7b")
    with pytest.raises(DownloadFailed):
        there.facts(there.manifest())


# --- The store

LAYER = Layer("model", "ab" * 32, 1_000_000)


def test_complete_and_partial_layers_are_counted(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    assert requirements.stored_bytes(LAYER, tmp_path) == 0
    part = blobs / f"sha256-{LAYER.digest}-partial"
    with part.open("wb") as file:
        file.write(os.urandom(262_144))
        file.truncate(LAYER.size)  # as Ollama does first
        os.fsync(file.fileno())
    assert requirements.stored_bytes(LAYER, tmp_path) == 262_144
    part.rename(blobs / f"sha256-{LAYER.digest}")
    assert requirements.stored_bytes(LAYER, tmp_path) == LAYER.size
    assert requirements.stored_bytes(LAYER, None) == 0


def test_requirements_of_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{LAYER.digest}").touch()
    other = Layer("template", "cd" * 32, 50)
    need = requirements.of_manifest(Manifest("qwen3:8b", "ef" * 32, (LAYER, other)), tmp_path)
    assert (need.source, need.folder, need.size, need.missing) == ("ollama://qwen3:8b", tmp_path, 1_000_050, 50)
    assert [file.name for file in need.files] == ["abababababab", "cdcdcdcdcdcd"], "as a pull names them"
    assert need.revision == "ef" * 32


def test_tag_is_locked_by_its_digest(trusted: Registry, empty: Ollama) -> None:
    trusted.add("library/x:7b", model=WEIGHTS)
    x = tag(empty, trusted, "library/x:7b")
    need = x.requirements()
    locked = lock.pin("x", "ollama", need)
    lock.require_same(locked, need)
    here = Installed(x.name, need.size, (), None, digest=need.revision)
    lock.require_same(locked, requirements.of_installed(here, None))
    with pytest.raises(DownloadFailed) as moved:
        lock.require_same(locked, requirements.of_installed(replace(here, digest="ab" * 32), None))
    assert moved.value.code == "lock_differs"


# --- The engine


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Yield a registry that is reached like the real one: over TLS, by the host in the model's name."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    trusting.cache_clear()
    with serve(Registry(), tls=True) as registry:
        yield registry
    trusting.cache_clear()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ollama]:
    """Return the engine for an Ollama without models, whose store is a folder of this user."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    with replay("version", "empty_store") as ollama:
        engine = Ollama(Settings(engine="ollama", ollama=OllamaSettings(host=ollama.url)))
        engine.status()
        engine.daemon.spec(Wishes(), 1)
        yield engine


def name_at(registry: Registry, name: str) -> str:
    """Return the name of a model in a registry, as Ollama writes it."""
    return f"{registry.url.removeprefix('https://')}/{name}"


def tag(engine: Ollama, registry: Registry, name: str) -> Tag:
    """Return a model in a registry, for an engine."""
    found = engine.resolve(OllamaTag(name_at(registry, name)))
    assert isinstance(found, Tag)
    return found


def imported(engine: Ollama, weights: Path, mmproj: Path | None = None) -> GgufImport:
    """Return GGUF files as a model for an engine."""
    return GgufImport(GgufModel(weights, mmproj), engine._server)


def test_size_and_facts_of_a_tag_before_its_pull(trusted: Registry, empty: Ollama, tmp_path: Path) -> None:
    (_, _), (weights, size), _ = trusted.add("library/x:7b", model=WEIGHTS, projector=MMPROJ)
    x = tag(empty, trusted, "library/x:7b")
    need = x.requirements()
    assert (need.folder, need.missing, need.present, need.unknown) == (tmp_path / "models", need.size, False, "")
    blob = tmp_path / "models" / "blobs" / weights.replace(":", "-")
    blob.parent.mkdir(parents=True)
    shutil.copy(WEIGHTS, blob)
    assert x.requirements().missing == need.size - size
    facts = x.facts()
    assert (facts.architecture, facts.capabilities) == ("qwen2vl", ("text", "image"))
    assert facts.weights_bytes == need.size
    assert len([path for _, path, _, _ in trusted.requests if "manifests" in path]) == 1


def test_full_disk_is_reported_before_the_pull(
    trusted: Registry, empty: Ollama, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted.add("library/x:7b", model=WEIGHTS)
    monkeypatch.setattr(Requirements, "free", lambda need: 1000)
    with pytest.raises(DownloadFailed) as caught:
        tag(empty, trusted, "library/x:7b").download(lambda *_: pytest.fail("pulled"))
    assert caught.value.code == "disk_full"
    assert "`OLLAMA_MODELS`" in caught.value.hint


def test_pull_works_without_answers_of_the_registry(trusted: Registry, empty: Ollama) -> None:
    # The daemon has a key for a private model, which llmdeploy cannot read.
    trusted.status = 401
    x = tag(empty, trusted, "user/secret:7b")
    need = x.requirements()
    assert (need.files, need.present) == ((), False)
    assert need.unknown.endswith("it answers with status 401")
    need.require_room()
    with pytest.raises(DownloadFailed):
        x.facts()
    assert len(trusted.requests) == 1, "asked once"


def test_installed_model_needs_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asked, "manifest", lambda registry: pytest.fail("asked"))
    with replay("version", "tags") as ollama:
        engine = Ollama(Settings(ollama=OllamaSettings(host=ollama.url)))
        need = engine.resolve(OllamaTag("selftest")).requirements()
    assert (need.present, need.size, need.missing) == (True, 2334040, 0)
    assert need.revision == need.files[0].digest != ""


def test_sizes_are_known_without_a_daemon(trusted: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `pull --dry-run` starts none.
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed_port()}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    trusted.add("library/x:7b", model=WEIGHTS)
    need = tag(Ollama(Settings()), trusted, "library/x:7b").requirements()
    assert need.missing == need.size > WEIGHTS.stat().st_size


def test_local_files_are_planned_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed_port()}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    engine = Ollama(Settings())
    model = imported(engine, WEIGHTS)
    digest.sha256(WEIGHTS, lambda *_: None)  # whether it is there would be asked of the daemon
    assert not model.is_present()
    assert engine.plan(model.facts(), hardware.detect(), Wishes()).needed_bytes > WEIGHTS.stat().st_size


def test_free_space_of_a_remote_store_is_unknown(
    trusted: Registry, empty: Ollama, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted.add("library/x:7b", model=WEIGHTS)
    monkeypatch.setattr("llmdeploy.engines.ollama.connection.is_local_url", lambda url: False)
    need = tag(empty, trusted, "library/x:7b").requirements()
    assert (need.folder, need.free()) == (None, None)


def test_pull_to_a_folder_is_refused(empty: Ollama, tmp_path: Path) -> None:
    for weights in (empty.resolve(OllamaTag("qwen3:8b")), imported(empty, WEIGHTS)):
        with pytest.raises(UsageError, match="`--dir` is not for it"):
            weights.requirements(tmp_path)
        with pytest.raises(UsageError, match="`--dir` is not for it"):
            weights.download(lambda *_: pytest.fail("pulled"), tmp_path)


def test_linked_files_need_no_space(empty: Ollama, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for file in (WEIGHTS, MMPROJ):
        shutil.copy(file, tmp_path)
    need = imported(empty, tmp_path / WEIGHTS.name, tmp_path / MMPROJ.name).requirements()
    assert (need.missing, need.copies) == (0, 0)


def test_copied_files_need_space_in_the_store(empty: Ollama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ollama joins a model in several files.
    first, second = (f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    write(tmp_path / first, {"split.count": 2, "split.no": 0})
    write(tmp_path / second, {"split.count": 2, "split.no": 1}, tensors=3)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.gguf"))
    monkeypatch.setattr(Requirements, "free", lambda need: 2 * size - 1)
    with pytest.raises(DownloadFailed) as caught:
        imported(empty, tmp_path / first).download(lambda *_: pytest.fail("given"))
    assert caught.value.code == "disk_full"
    assert f"`{tmp_path / 'models'}`" in caught.value.message


def test_copies_on_the_same_disk_are_counted(tmp_path: Path) -> None:
    files = Requirements("hf://o/r", tmp_path / "hub", (RequiredFile("x.gguf", 1000, here=400),))
    taken = requirements.of_import("hf://o/r", 1000, tmp_path / "models")
    assert (taken.missing, taken.copies) == (1000, 1000), "a copy, and what Ollama writes of it"
    assert requirements.with_copies(files, taken).copies == 2000
    assert requirements.with_copies(files, replace(taken, folder=None)).copies == 0
    assert requirements.with_copies(files, None) == files


# --- Through the front


def test_tag_that_does_not_fit_is_refused_before_the_pull(trusted: Registry, world: World) -> None:
    # The registry reports a size of 8 TB.
    content = bytearray(WEIGHTS.read_bytes())
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 8
    content[at : at + 8] = (2**34).to_bytes(8, "little")
    trusted.add("library/huge:7b", model=bytes(content))
    manifest = json.loads(trusted.manifests["library/huge:7b"])
    manifest["layers"][0]["size"] = 2**43
    trusted.manifests["library/huge:7b"] = json.dumps(manifest).encode()
    with replay("version", "empty_store") as ollama:
        variables: dict[str, Any] = {"OLLAMA_HOST": ollama.url, "SSL_CERT_FILE": str(CERTIFICATE)}
        result = world.run(
            "serve", f"ollama://{name_at(trusted, 'library/huge:7b')}", "--engine", "ollama", **variables
        )
        assert ollama.asked("/api/pull") == []
    assert result.status == 1
    assert "needs 8192." in result.stderr, result.text
    assert " is free" in result.stderr
    assert "fetching" not in result.stderr
    assert trusted.sent <= remote_file.FIRST


def test_pull_without_a_state_folder(world: World, tmp_path: Path) -> None:
    # The log needs the state folder, which does not exist yet.
    with replay("version", "tags") as ollama:
        variables = {"OLLAMA_HOST": ollama.url, "LLMDEPLOY_STATE_DIR": str(tmp_path / "new" / "state")}
        result = world.run("pull", "ollama://selftest", "--engine", "ollama", "--no-fit", **variables)
    assert result.status == 0, result.text
    assert "ollama: `ollama://selftest:latest` is here, 2 MiB\n" in result.stderr


def test_model_of_unknown_size_is_not_reported_as_present(trusted: Registry, world: World) -> None:
    trusted.status = 401
    with replay("version", "empty_store") as ollama:
        variables: dict[str, Any] = {"OLLAMA_HOST": ollama.url, "SSL_CERT_FILE": str(CERTIFICATE)}
        name = f"ollama://{name_at(trusted, 'user/secret:7b')}"
        result = world.run("pull", name, "--engine", "ollama", "--dry-run", "--no-fit", **variables)
    assert result.status == 0, result.text
    assert f"`{name}`, size unknown: " in result.stderr.replace("[PORT]", "")
    assert "is here" not in result.stderr
