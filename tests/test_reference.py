from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.errors import UsageError
from llmdeploy.models.reference import (
    CatalogName,
    HubFile,
    HubRepo,
    ModelRef,
    OllamaTag,
    parse,
    served_name,
    with_quant,
    with_revision,
)

WORDS = st.text("abcAZ019._-", min_size=1, max_size=8)
NAMES = WORDS.filter(lambda word: word != "." and ".." not in word)
"""Words that may name a repository, a file or a revision at the Hub."""
HUB_FILES = st.builds(
    lambda repo, folders, name, revision: f"hf://{'/'.join(repo)}/{'/'.join([*folders, name])}.gguf{revision}",
    st.tuples(NAMES, NAMES),
    st.lists(NAMES, max_size=2),
    NAMES,
    st.one_of(st.just(""), st.just("@main"), NAMES.map(lambda word: f"@{word}")),
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


PIECES = (
    *(
        "hf://",
        "ms://",
        "ollama://",
        "http://",
        "https://",
        "huggingface.co/",
        "hf.co/",
        "modelscope.cn/models/",
        "ollama.com/",
    ),
    *(
        "/",
        "//",
        ":",
        "::",
        "@",
        "#",
        "?",
        "%2F",
        "%",
        "\\",
        ".",
        "..",
        "~",
        "-",
        "_",
        " ",
        "",
        "\n",
        "\0",
        "\x1b[2J",
        "\u202e",
    ),
    *("owner", "repo-GGUF", "Qwen3-8B", "qwen2.5-vl", "7b", "Q4_K_M", "q8_0", "awq", "main", "refs/pr/1", "blob/main/"),
    *("x.gguf", ".gguf", "model.safetensors", "library", "latest", "é", "模型", "a" * 100, "0" * 5000, "\ud800"),
)


def test_ten_thousand_strings_are_references_or_usage_errors() -> None:
    chance = random.Random(6)
    refused = 0
    for _ in range(10_000):
        text = "".join(chance.choices(PIECES, k=chance.randint(1, 8)))
        told = ""
        try:
            reference = parse(text)
        except UsageError as error:
            told = f"{error.message}; {error.hint}"
        if told:
            refused += 1
            assert re.fullmatch(r"`.*` (is|does) \w.*; \S.*", told), told
            assert told.isprintable()
            assert len(told) < 300 + 2 * len(text)
        else:
            assert parse(str(reference)) == reference
    assert 1000 < refused < 9900, "both kinds are tried"


@given(TYPED)
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse(text)
    except UsageError:
        return
    assert parse(str(reference)) == reference
    if not isinstance(reference, CatalogName | HubRepo | OllamaTag):  # these are names
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", served_name(reference))


@pytest.mark.parametrize("text", ["~no-such-user-here/x.gguf", "~no-such-user-here"])
def test_home_of_an_unknown_user_is_a_path(text: str) -> None:
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
        ("hf://o/r:Q4_K_M@v1", HubRepo("o/r", "v1", quant="Q4_K_M"), "o/r"),
        ("Qwen/Qwen3-8B-GGUF:iq4_xs", HubRepo("Qwen/Qwen3-8B-GGUF", quant="IQ4_XS"), "Qwen/Qwen3-8B-GGUF"),
        ("Qwen/Qwen3-8B@refs/pr/1", HubRepo("Qwen/Qwen3-8B", "refs/pr/1"), "Qwen/Qwen3-8B"),
        ("unsloth/x-GGUF:UD-Q4_K_XL", HubRepo("unsloth/x-GGUF", quant="UD-Q4_K_XL"), "unsloth/x-GGUF"),
        ("ms://o/r", HubRepo("o/r", "master", "ms"), "o/r"),
        ("ms://o/r@main", HubRepo("o/r", "main", "ms"), "o/r"),
        ("ms://o/r/x.gguf", HubFile("o/r", "x.gguf", "master", "ms"), "x"),
        ("https://huggingface.co/o/r", HubRepo("o/r"), "o/r"),
        ("https://huggingface.co/o/r/tree/v2", HubRepo("o/r", "v2"), "o/r"),
        ("https://huggingface.co/o/r/blob/main/d/x.gguf?download=true", HubFile("o/r", "d/x.gguf"), "x"),
        ("https://www.modelscope.cn/models/o/r/summary", HubRepo("o/r", "master", "ms"), "o/r"),
        ("https://ollama.com/library/qwen3:8b", OllamaTag("qwen3:8b"), "qwen3:8b"),
        ("hf.co/o/r:Q4_K_M", OllamaTag("hf.co/o/r:Q4_K_M"), "hf.co/o/r:Q4_K_M"),
        ("/models/my model (1).gguf", Path("/models/my model (1).gguf"), "my-model-1"),
        ("/models/模型.gguf", Path("/models/模型.gguf"), "model"),
    ],
)
def test_forms_of_references(text: str, reference: object, served: str) -> None:
    assert parse(text) == reference
    assert served_name(parse(text)) == served


def test_path_is_absolute_and_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "o/r:latest",
        "ms://o",
        "https://example.org/o/r",
        "https://huggingface.co/o/r/blob/main/README.md",
        "https://huggingface.co/datasets/o/r",
    ],
)
def test_text_that_is_not_a_reference_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        parse(text)


def test_folder_is_a_path_only_if_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "r").touch()
    assert parse("o/r") == tmp_path / "o" / "r"


def test_ollama_name_that_looks_like_a_repository_gets_a_hint() -> None:
    with pytest.raises(UsageError) as error:
        parse("user/model:latest")
    assert error.value.hint == (
        "a model of Ollama is `ollama://user/model:latest`; a GGUF repository names its files: `owner/repo:Q4_K_M`"
    )


@pytest.mark.parametrize(
    ("text", "quant", "found"),
    [
        ("qwen3:8b", "Q8_0", CatalogName("qwen3:8b-q8_0")),
        ("o/r", "q8_0", HubRepo("o/r", quant="Q8_0")),
        ("ms://o/r@v1", "Q8_0", HubRepo("o/r", "v1", "ms", "Q8_0")),
    ],
)
def test_reference_with_another_quantization(text: str, quant: str, found: ModelRef) -> None:
    assert with_quant(parse(text), quant) == found
    assert parse(str(found)) == found


@pytest.mark.parametrize(("text", "quant"), [("o/r:Q4_K_M", "Q8_0"), ("./x.gguf", "Q8_0"), ("qwen3:8b", "a b")])
def test_reference_without_other_quantizations_is_refused(text: str, quant: str) -> None:
    with pytest.raises(UsageError, match="quantization"):
        with_quant(parse(text), quant)


def test_reference_with_another_revision() -> None:
    assert with_revision(parse("hf://o/r/x.gguf"), "v1") == HubFile("o/r", "x.gguf", "v1")
    assert with_revision(parse("o/r:Q8_0"), "v1") == HubRepo("o/r", "v1", quant="Q8_0")
    for text, revision in [("ollama://x", "v1"), ("o/r", "a b")]:
        with pytest.raises(UsageError, match="revision"):
            with_revision(parse(text), revision)
