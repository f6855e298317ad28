"""The lock file: its pins, and the differences that it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmdeploy.config import Flags, Settings
from llmdeploy.errors import ConfigError, DownloadFailed, ModelNotFound
from llmdeploy.models import gguf, hf_model, lock
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo
from llmdeploy.models.requirements import RequiredFile, Requirements

HERE = Settings()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEED = Requirements(
    source="hf://Qwen/Qwen3-8B-GGUF",
    revision=COMMIT,
    folder=None,
    files=(
        RequiredFile("Qwen3-8B-Q4_K_M.gguf", 5_027_783_488, digest="ab" * 32),
        RequiredFile("a.json", 2, digest="c" * 40),
    ),
)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_written_pins_are_read_and_each_engine_has_one() -> None:
    one = lock.pin("qwen3:8b", "llamacpp", NEED)
    lock.write(lock.with_pins(lock.read(), [one]))
    other = lock.pin("qwen3:8b", "vllm", replace(NEED, source="hf://Qwen/Qwen3-8B"))
    lock.write(lock.with_pins(lock.read(), [other]))
    newer = lock.pin("qwen3:8b", "llamacpp", replace(NEED, revision="f" * 40))
    lock.write(lock.with_pins(lock.read(), [newer]))
    assert lock.read() == (newer, other)
    assert lock.named("qwen3:8b", ["llamacpp"]) == (newer,)
    assert lock.named(None, []) == lock.named("qwen3:8b", []) == (newer, other)


def test_lock_file_is_readable_and_easy_to_compare() -> None:
    lock.write([lock.pin("qwen3:8b", "llamacpp", NEED)])
    text = lock.LOCK.read_text()
    assert text.startswith("# Written by `llmdeploy pull --lock`.")
    assert f'revision = "{COMMIT}"\n' in text
    assert [line.strip().startswith('{name = "') for line in text.splitlines() if "digest" in line] == [True, True]
    lock.write(lock.read())
    assert lock.LOCK.read_text() == text


def test_name_is_pinned_but_not_its_repository_under_another_name() -> None:
    repo, file = HubRepo("Qwen/Qwen3-8B-GGUF", quant="Q4_K_M"), HubFile("Qwen/Qwen3-8B-GGUF", "x.gguf")
    assert lock.pinned("qwen3:8b", repo, HERE) is repo
    lock.write([lock.pin("qwen3:8b", "llamacpp", NEED)])
    assert lock.pinned(CatalogName("qwen3:8b"), repo, HERE) == replace(repo, revision=COMMIT)
    assert lock.pinned("qwen3:8b", file, HERE) == replace(file, revision=COMMIT)
    assert lock.pinned("qwen3:8b-q8_0", repo, HERE) is repo
    assert lock.pinned("qwen3:8b", repo, replace(HERE, flags=Flags(pinned=False))) is repo
    assert lock.pinned("qwen3:8b", HubRepo("Qwen/Qwen3-8B"), HERE) == HubRepo("Qwen/Qwen3-8B")
    assert lock.pinned("qwen3:8b", replace(repo, revision="v2"), HERE) == replace(repo, revision="v2")


def test_name_is_pinned_in_every_spelling() -> None:
    repo = HubRepo("Qwen/Qwen3-8B-GGUF")
    lock.write(lock.with_pins((), [lock.pin("Qwen3_8B", "llamacpp", NEED), lock.pin("qwen3:8b", "llamacpp", NEED)]))
    [pin] = lock.read()
    assert pin.model == "qwen3:8b"
    assert lock.pinned(CatalogName("qwen3-8b"), repo, HERE).revision == COMMIT
    assert lock.named("qwen3-8B", []) == (pin,)


def test_each_engine_has_its_own_commit_of_a_repository() -> None:
    repo = HubRepo("Qwen/Qwen3-8B-GGUF")
    later = lock.pin("qwen3:8b", "ollama", replace(NEED, revision="f" * 40))
    lock.write([lock.pin("qwen3:8b", "llamacpp", NEED), later])
    assert lock.pinned("qwen3:8b", repo, replace(HERE, engine="ollama")).revision == "f" * 40
    assert lock.pinned("qwen3:8b", repo, HERE).revision == COMMIT


def test_model_comes_from_the_source_in_the_lock() -> None:
    there = lock.pin("qwen3:8b", "llamacpp", replace(NEED, source="ms://Qwen/Qwen3-8B-GGUF"))
    lock.write([there, lock.pin("qwen3:8b", "vllm", replace(NEED, source="ms://Qwen/Qwen3-8B"))])
    name = CatalogName("qwen3:8b")
    weights = gguf.find(name, HERE).weights
    assert isinstance(weights, HubFile)
    assert (weights.source, weights.revision) == ("ms", COMMIT)
    assert hf_model.find(name, HERE).location == HubRepo("Qwen/Qwen3-8B", COMMIT, "ms")
    asked = replace(HERE, sources={"source": "--source"})
    assert hf_model.find(name, asked).location == HubRepo("Qwen/Qwen3-8B")


def test_requirements_must_match_the_lock() -> None:
    locked = lock.pin("qwen3:8b", "llamacpp", NEED)
    lock.require_same(locked, NEED)
    with pytest.raises(DownloadFailed) as other_commit:
        lock.require_same(locked, replace(NEED, revision="f" * 40))
    assert other_commit.value.message == f"`hf://Qwen/Qwen3-8B-GGUF` is not what `llmdeploy.lock` names, {'f' * 40} now"
    forged = replace(NEED.files[0], digest="cd" * 32)
    with pytest.raises(DownloadFailed) as other_bytes:
        lock.require_same(locked, replace(NEED, files=(forged, NEED.files[1])))
    assert other_bytes.value.message.endswith("is not what `llmdeploy.lock` names: `Qwen3-8B-Q4_K_M.gguf`")
    assert other_bytes.value.hint == "`llmdeploy pull qwen3:8b --engine llamacpp --lock` takes it as it is now"
    assert other_bytes.value.code == "lock_differs"


def test_model_without_a_pin_and_source_without_digests_are_refused() -> None:
    with pytest.raises(ModelNotFound) as none:
        lock.named("qwen3:8b", [])
    assert none.value.hint == "`llmdeploy pull MODEL --lock` writes one"
    lock.write([lock.pin("qwen3:8b", "llamacpp", NEED)])
    with pytest.raises(ModelNotFound) as unknown:
        lock.named("qwen3:8b", ["vllm"])
    assert unknown.value.message == "`llmdeploy.lock` does not name `qwen3:8b` for vllm"
    assert unknown.value.hint == "`llmdeploy pull qwen3:8b --engine vllm --lock` adds it"
    with pytest.raises(DownloadFailed, match="does not tell its revision"):
        lock.pin("qwen3:8b", "llamacpp", replace(NEED, revision=""))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version = 2", "has version 2, and this llmdeploy knows 1"),
        ("model = [", "cannot be read: "),
        ("version = 1\nmodels = []", "cannot be read: Object contains unknown field `models`"),
        ('version = 1\n[[model]]\nmodel = "x"', "cannot be read: Object missing required field `engine`"),
        ("version = 'one'", "cannot be read: Expected `int`, got `str`"),
    ],
)
def test_invalid_lock_file_is_reported(text: str, told: str) -> None:
    lock.LOCK.write_text(text)
    with pytest.raises(ConfigError) as error:
        lock.read()
    assert error.value.message.startswith("`llmdeploy.lock` ")
    assert told in error.value.message
    assert error.value.hint == "`rm llmdeploy.lock`, and lock the models again: `llmdeploy pull MODEL --lock`"


def test_lock_file_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmdeploy.atomic_file.replace", full)
    with pytest.raises(ConfigError, match=r"`llmdeploy\.lock` cannot be written: No space left on device"):
        lock.write([])
