"""Files of a quantization, by the names in real repositories."""

from __future__ import annotations

import pytest

from llmdeploy.errors import ModelNotFound
from llmdeploy.models.quantization import Choice, belonging, choose, quant_of

# As unsloth, bartowski, ggml-org, Qwen and mradermacher name theirs.
UNSLOTH = [
    "BF16/Qwen3-8B-BF16-00001-of-00002.gguf",
    "BF16/Qwen3-8B-BF16-00002-of-00002.gguf",
    "Qwen3-8B-IQ4_XS.gguf",
    "Qwen3-8B-Q4_0.gguf",
    "Qwen3-8B-Q4_K_M.gguf",
    "Qwen3-8B-Q8_0.gguf",
    "Qwen3-8B-UD-Q2_K_XL.gguf",
    "Qwen3-8B-UD-Q4_K_XL.gguf",
    "README.md",
    "imatrix_unsloth.gguf",
    "mmproj-BF16.gguf",
    "mmproj-F16.gguf",
]


@pytest.mark.parametrize(
    ("quant", "first"),
    [
        ("", "Qwen3-8B-Q4_K_M.gguf"),
        ("q4_k_m", "Qwen3-8B-Q4_K_M.gguf"),
        ("Q4_0", "Qwen3-8B-Q4_0.gguf"),
        ("UD-Q4_K_XL", "Qwen3-8B-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "Qwen3-8B-UD-Q4_K_XL.gguf"),
        ("Q2_K_XL", "Qwen3-8B-UD-Q2_K_XL.gguf"),
        ("iq4_xs", "Qwen3-8B-IQ4_XS.gguf"),
        ("BF16", "BF16/Qwen3-8B-BF16-00001-of-00002.gguf"),
    ],
)
def test_quantization_and_its_projector_are_found(quant: str, first: str) -> None:
    found = choose(UNSLOTH, quant)
    assert (found.weights[0], found.mmproj) == (first, "mmproj-F16.gguf")


def test_split_model_has_all_its_parts() -> None:
    parts = ("BF16/Qwen3-8B-BF16-00001-of-00002.gguf", "BF16/Qwen3-8B-BF16-00002-of-00002.gguf")
    assert choose(UNSLOTH, "BF16").weights == parts
    assert belonging(parts[1], UNSLOTH) == Choice(parts, "mmproj-F16.gguf")
    assert belonging("a.gguf", ["a.gguf", "b.gguf"]).paths == ("a.gguf",)


@pytest.mark.parametrize(
    ("paths", "default"),
    [
        (["x-Q8_0.gguf"], "x-Q8_0.gguf"),
        (["x-fp16.gguf", "x-q8_0.gguf", "x-q2_k.gguf"], "x-q8_0.gguf"),
        (["x-f16.gguf", "x-Q3_K_M.gguf"], "x-Q3_K_M.gguf"),
        (["x.Q5_K_S.gguf", "x.Q5_K_M.gguf", "x.Q6_K.gguf"], "x.Q5_K_M.gguf"),
        (["x-Q4_0.gguf", "x-Q4_K_S.gguf", "x-IQ4_NL.gguf"], "x-Q4_K_S.gguf"),
        (["gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b-F16.gguf"], "gpt-oss-20b-mxfp4.gguf"),
        (["x-128K-Q4_K_M.gguf", "x-Q4_K_M.gguf"], "x-Q4_K_M.gguf"),
        (["x.i1-Q4_K_M.gguf", "x.i1-IQ1_S.gguf"], "x.i1-Q4_K_M.gguf"),
        (["mmproj-model-f16.gguf", "model.gguf"], "model.gguf"),
        (["Q4_K_M/x.gguf", "Q8_0/x.gguf"], "Q4_K_M/x.gguf"),
    ],
)
def test_default_quantization(paths: list[str], default: str) -> None:
    assert choose(paths).weights == (default,)
    assert choose(reversed(paths)).weights == (default,)


def test_f16_has_two_names() -> None:
    assert choose(["x-fp16.gguf", "x-bf16.gguf"], "F16").weights == ("x-fp16.gguf",)
    assert choose(["x-f16.gguf", "x-bf16.gguf"], "fp16").weights == ("x-f16.gguf",)


@pytest.mark.parametrize("quant", ["Q4_K", "Q5_K_M", "K_M", "8B", "mmproj", ".*"])
def test_missing_quantization_is_reported_with_those_that_exist(quant: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        choose(UNSLOTH, quant, "`owner/repo`")
    assert caught.value.message == f"`owner/repo` has no GGUF file of the quantization `{quant}`"
    assert caught.value.hint == "it has `BF16`, `IQ4_XS`, `Q4_0`, `Q4_K_M`, `Q8_0`, `UD-Q2_K_XL`, `UD-Q4_K_XL`"


def test_repository_without_models_is_reported() -> None:
    with pytest.raises(ModelNotFound, match="the repository has no GGUF file"):
        choose(["README.md", "mmproj-F16.gguf", "imatrix.gguf", "x-Q4_K_M-00002-of-00002.gguf"])


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("UD-Q2_K/x-UD-Q2_K-00001-of-00002.gguf", "UD-Q2_K"),
        ("gemma-3-4b-it-qat-Q4_0.gguf", "Q4_0"),
        ("x.TQ1_0.gguf", "TQ1_0"),
        ("Q6_K_L/x.gguf", "Q6_K_L"),
        ("Qwen_Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("model.gguf", ""),
    ],
)
def test_quantization_in_the_name_of_a_file(path: str, quant: str) -> None:
    assert quant_of(path) == quant
