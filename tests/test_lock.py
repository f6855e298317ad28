"""The lock file: its pins, and the differences that it refuses."""

from __future__ import annotations

import hashlib
import os
import time
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


# A lock of a cloned repository


PIN = """version = 1
[[model]]
model = "qwen3:8b"
engine = "llamacpp"
source = "hf://Qwen/Qwen3-8B-GGUF"
revision = "0123456789abcdef0123456789abcdef01234567"
files = [{name = "x.gguf", size = 4, digest = "abababababababababababababababababababababababababababababababab"}]
"""
FORGED = {
    "a branch": (f'"{COMMIT}"', '"main"'),
    "a short commit": (COMMIT, COMMIT[:12]),
    "a commit in capitals": (COMMIT, COMMIT.upper()),
    "a digest as the commit": (COMMIT, "ab" * 32),
    "a parent folder": (COMMIT, "../../../x"),
    "another engine": ('"llamacpp"', '"../../x"'),
    "a file as the source": ("hf://Qwen/Qwen3-8B-GGUF", "/etc/passwd"),
    "a quantization in the source": ("hf://Qwen/Qwen3-8B-GGUF", "hf://Qwen/Qwen3-8B-GGUF:Q4_K_M"),
    "no source": ("hf://Qwen/Qwen3-8B-GGUF", "\\u001b[2J"),
    "a tag at a commit": ("hf://Qwen/Qwen3-8B-GGUF", "ollama://qwen3:8b"),
    "a file outside": ("x.gguf", "../x.gguf"),
    "a file with an escape": ("x.gguf", "\\u001bx.gguf"),
    "a negative size": ("size = 4", "size = -4"),
    "a fraction as size": ("size = 4", "size = 4.5"),
    "a switch as size": ("size = 4", "size = true"),
    "a huge size": ("size = 4", "size = 9223372036854775807"),
    "no digest": ("ab" * 32, ""),
    "a path as digest": ("ab" * 32, "../../precious"),
}


def test_honest_lock_is_read() -> None:
    lock.LOCK.write_text(PIN)
    [pin] = lock.read()
    assert (pin.revision, pin.files[0].size) == (COMMIT, 4)
    lock.LOCK.write_text(PIN.replace("hf://Qwen/Qwen3-8B-GGUF", "ollama://qwen3:8b").replace(COMMIT, "cd" * 32))
    assert lock.read()[0].revision == "cd" * 32


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_lock_that_pull_would_not_write_is_refused(change: tuple[str, str]) -> None:
    lock.LOCK.write_text(PIN.replace(*change))
    with pytest.raises(ConfigError) as error:
        lock.read()
    assert error.value.message.startswith("`llmdeploy.lock` cannot be read: ")
    assert error.value.message.isprintable()
    assert error.value.hint.startswith("`rm llmdeploy.lock`")


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large", "binary"])
def test_lock_that_is_not_a_small_file_is_refused_at_once(kind: str) -> None:
    if kind == "device":
        lock.LOCK.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(lock.LOCK)
    elif kind == "folder":
        lock.LOCK.mkdir()
    else:
        lock.LOCK.write_bytes(b"\xff" if kind == "binary" else b"# " + b"x" * 2**20)
    with pytest.raises(ConfigError, match=r"^`llmdeploy\.lock` cannot be read: \w") as error:
        lock.read()
    assert "Errno" not in error.value.message


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 500_000) + " = 1",
        "[" + ".".join("a" * 500_000) + "]",
        "".join("a." * 500 + f"k{at} = 1\n" for at in range(1000)),
        'x = ["""\n""", {' + ".".join("a" * 500_000) + ' = 1, "b" = 1}]',
        'x = {"a" = 1, ' + ".".join("a" * 500_000) + ' = 1, "b" = 1}',
        "x = " + "[" * 1_000_000,
        "x = " + "{a=" * 300_000,
        "x = " + "9" * 1_000_000,
        "version = 0x" + "f" * 6_000,
    ],
    ids=["a key", "a table", "many keys", "a key behind a text of two lines", "a key in a table", *"1234"],
)
def test_lock_with_a_costly_text_is_refused_in_bounded_time(text: str) -> None:
    lock.LOCK.write_text(text)
    before = time.process_time()
    with pytest.raises(ConfigError, match="cannot be read"):
        lock.read()
    assert time.process_time() - before < 2


def test_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    lock.LOCK.symlink_to(precious)
    with pytest.raises(ConfigError, match="is a link, and a lock is not written through one"):
        lock.write([])
    assert precious.read_text() == "mine"


def test_revision_that_a_lock_chose_is_said() -> None:
    name = CatalogName("qwen3:8b")
    assert lock.note(name, gguf.find(name, HERE).references(), HERE) == ""
    lock.write([lock.pin("qwen3:8b", "llamacpp", NEED)])
    found = gguf.find(name, HERE)
    assert lock.note(name, found.references(), HERE) == f"revision {COMMIT} of `qwen3:8b`, by `./llmdeploy.lock`"
    free = replace(HERE, flags=Flags(pinned=False))
    assert lock.note(name, gguf.find(name, free).references(), free) == ""
    named = HubRepo("Qwen/Qwen3-8B-GGUF", COMMIT)
    assert lock.note(named, [str(named)], HERE) == "", "the user named that revision"
    assert lock.note(name, ["hf://other/repo@" + COMMIT, "/x/y.gguf"], HERE) == ""


def test_file_that_changed_after_its_download_is_not_what_the_lock_names(tmp_path: Path) -> None:
    small, large = b'{"a": 1}', b"GGUF" * 1000
    git = hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()
    need = replace(
        NEED,
        files=(
            RequiredFile("x.gguf", len(large), digest=hashlib.sha256(large).hexdigest()),
            RequiredFile("a.json", len(small), digest=git),
        ),
    )
    pin = lock.pin("qwen3:8b", "llamacpp", need)
    (tmp_path / "x.gguf").write_bytes(large)
    (tmp_path / "a.json").write_bytes(small)
    reads: list[str] = []

    def check() -> None:
        lock.require_unchanged(pin, tmp_path, lambda name, *_: reads.append(name))

    check()
    assert reads == ["checking x.gguf"]
    check()
    assert reads == ["checking x.gguf"], "it is read once"
    (tmp_path / "a.json").write_bytes(b'{"a": 2}')
    with pytest.raises(DownloadFailed, match=r"`/.*/a\.json` is not what `llmdeploy\.lock` names: it was changed"):
        check()
    (tmp_path / "a.json").write_bytes(small)
    status = (tmp_path / "x.gguf").stat()
    (tmp_path / "x.gguf").write_bytes(large[:-1] + b"!")
    os.utime(tmp_path / "x.gguf", ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DownloadFailed, match="it was changed after its download") as error:
            check()
        assert error.value.hint == f"`rm {tmp_path / 'x.gguf'}`, and the same command fetches it"
        assert error.value.code == "lock_differs"


def test_lock_file_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmdeploy.atomic_file.replace", full)
    with pytest.raises(ConfigError, match=r"`llmdeploy\.lock` cannot be written: No space left on device"):
        lock.write([])
