from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.errors import UsageError
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, OllamaTag, parse, served_name

WORDS = st.text("abcAZ019._-", min_size=1, max_size=8)
HUB_FILES = st.builds(
    lambda repo, folders, name, revision: f"hf://{'/'.join(repo)}/{'/'.join([*folders, name])}.gguf{revision}",
    st.tuples(WORDS, WORDS),
    st.lists(WORDS, max_size=2),
    WORDS,
    st.one_of(st.just(""), st.just("@main"), WORDS.map(lambda word: f"@{word}")),
)
TAGS = st.builds(
    lambda start, path, tag: f"{start}{'/'.join(path)}{tag}",
    st.sampled_from(["ollama://", "hf.co/", "huggingface.co/"]),
    st.lists(WORDS, min_size=1, max_size=3),
    st.one_of(st.just(""), WORDS.map(lambda word: f":{word}")),
)
TYPED = st.one_of(
    HUB_FILES,
    TAGS,
    WORDS,
    st.builds(lambda name, tag: f"{name}:{tag}", WORDS, WORDS),
    st.builds(lambda start, rest: start + rest, st.sampled_from(["./", "../", "/", "~/", ""]), st.text(max_size=12)),
    st.builds(lambda stem: f"{stem}.gguf", st.text(max_size=12)),
    st.text(),
)


@given(TYPED)
def test_any_text_is_a_reference_that_survives_being_written_or_a_usage_error(text: str) -> None:
    try:
        reference = parse(text)
    except UsageError:
        return
    assert parse(str(reference)) == reference
    if not isinstance(reference, CatalogName | HubRepo | OllamaTag):  # these are names
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", served_name(reference))


@pytest.mark.parametrize("text", ["~no-such-user-here/x.gguf", "~no-such-user-here"])
def test_the_home_of_nobody_is_a_path_like_any_other(text: str) -> None:
    assert parse(text) == Path.cwd() / text


@given(HUB_FILES)
def test_a_hub_address_names_repository_file_and_revision(text: str) -> None:
    reference = parse(text)
    assert isinstance(reference, HubFile)
    assert reference.repo.count("/") == 1
    assert reference.file.endswith(".gguf")
    assert str(reference) == text.removesuffix("@main")


@pytest.mark.parametrize(
    ("text", "reference", "served"),
    [
        ("selftest", CatalogName("selftest"), "selftest"),
        ("qwen2.5-vl:7b", CatalogName("qwen2.5-vl:7b"), "qwen2.5-vl:7b"),
        ("/models/x.gguf", Path("/models/x.gguf"), "x"),
        ("hf://o/r/x.gguf", HubFile("o/r", "x.gguf"), "x"),
        ("hf://o/r/d/x.gguf@v1", HubFile("o/r", "d/x.gguf", "v1"), "x"),
        ("hf://o/r", HubRepo("o/r"), "o/r"),
        ("hf://o/r@v1", HubRepo("o/r", "v1"), "o/r"),
        ("Qwen/Qwen3-8B", HubRepo("Qwen/Qwen3-8B"), "Qwen/Qwen3-8B"),
        ("ollama://llama3.2:1b", OllamaTag("llama3.2:1b"), "llama3.2:1b"),
        ("ollama://user/model", OllamaTag("user/model"), "user/model"),
        ("hf.co/o/r:Q4_K_M", OllamaTag("hf.co/o/r:Q4_K_M"), "hf.co/o/r:Q4_K_M"),
        ("/models/my model (1).gguf", Path("/models/my model (1).gguf"), "my-model-1"),
        ("/models/模型.gguf", Path("/models/模型.gguf"), "model"),
    ],
)
def test_the_forms(text: str, reference: object, served: str) -> None:
    assert parse(text) == reference
    assert served_name(parse(text)) == served


def test_a_path_is_absolute_and_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert parse("x.gguf") == parse("./x.gguf") == parse("~/x.gguf") == tmp_path / "x.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "hf://",
        "hf://o/r/model.safetensors",
        "hf://o/r/x.gguf@",
        "name:",
        "o/r/x",
        "-x",
        "ollama://",
        "ollama://a b",
        "hf.co/r",
        "hf.co/o/r/f",
    ],
)
def test_what_is_no_reference(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        parse(text)


def test_a_folder_path_is_a_path_only_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "r").touch()
    assert parse("o/r") == tmp_path / "o" / "r"
