"""The rules that decide whether one of Ollama's models runs on upstream llama.cpp, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmdeploy.models import gguf_header
from llmdeploy.models.gguf_header import Header
from llmdeploy.models.ollama_compat import MARKS, projector_reason, reason
from tests.model_places import MMPROJ, WEIGHTS

MAIN_TENSORS = ("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight")


def header(architecture: str, *tensors: str, **fields: Any) -> Header:
    """Return the header of a file with a chat template. In names of fields `__` is a dot, and `a` the architecture."""
    named = {
        (f"{architecture}.{name[3:]}" if name.startswith("a__") else name).replace("__", "."): value
        for name, value in fields.items()
    }
    known = {"general.architecture": architecture, "tokenizer.chat_template": "{{ messages }}<|im_end|>"}
    return Header(Path("x"), known | named, 1, dict.fromkeys((*MAIN_TENSORS, *tensors), (8, 8)))


GOOD_GEMMA3 = {"a__attention__layer_norm_rms_epsilon": 1e-6}


def architecture(it: Header) -> str:
    return str(it.fields["general.architecture"])


CLEAN = (
    header("llama"),
    header("llama", tokenizer__ggml__tokens=128_256, tokenizer__ggml__pre="llama-bpe"),
    header("llama", tokenizer__ggml__tokens=32_000),
    header("qwen2"),
    header("qwen2vl"),
    header("qwen3"),
    header("gpt-oss"),
    header("qwen3vl", a__rope__dimension_sections=(24, 20, 20, 0)),
    header("gemma3", **GOOD_GEMMA3),
    header("gemma4", tokenizer__ggml__model="gemma4"),
    header("qwen35"),
    header("qwen35moe"),
    header("qwen3next", "blk.0.ssm_dt.bias"),
    header("mistral3"),
    header("llama4"),
    header("lfm2", "token_embd_norm.weight"),
    header("nemotron_h_moe", "blk.1.ffn_latent_down.weight"),
    header("laguna", "blk.0.attn_gate.weight"),
    header("bert", tokenizer__ggml__precompiled_charsmap=(1, 2, 3)),
    header("gemma3n"),
)


@pytest.mark.parametrize("clean", CLEAN, ids=architecture)
def test_what_upstream_loads_may_be_used(clean: Header) -> None:
    assert reason(clean) is None


OWN = (
    *(header(it) for it in ("qwen25vl", "gptoss", "mllama", "deepseekocr", "glmocr", "glm4moelite", "olmo3")),
    header("qwen3vl"),
    header("qwen3vlmoe"),
    header("gemma3"),
    header("gemma3", a__mm__tokens_per_image=256, **GOOD_GEMMA3),
    header("gemma3", a__rope__global__freq_base=1e6, **GOOD_GEMMA3),
    header("gemma3", a__rope__local__freq_base=1e4, **GOOD_GEMMA3),
    header("gemma3", tokenizer__ggml__add_padding_token=True, **GOOD_GEMMA3),
    header("gemma3", tokenizer__ggml__add_unknown_token=True, **GOOD_GEMMA3),
    header("gemma3", "dense.0.weight", **GOOD_GEMMA3),
    header("gemma4", tokenizer__ggml__model="llama"),
    header("qwen35", a__vision__block_count=27),
    header("qwen35", a__image_token_id=1),
    header("qwen35", a__ssm__v_head_reordered=True),
    header("qwen35", a__rope__mrope_interleaved=True),
    header("qwen35moe", a__feed_forward_length=512),
    header("qwen3next", "blk.0.ssm_dt"),
    header("mistral3", a__rope__scaling__beta_fast=32.0),
    header("mistral3", a__rope__scaling__mscale_all_dim=1.0),
    header("mistral3", a__rope__scaling_beta=0.1),
    header("lfm2"),
    header("nemotron_h_moe", "blk.1.ffn_latent_in.weight"),
    header("laguna", a__rope__swa__freq_base=1e4),
    header("laguna", "blk.0.attn_g.weight"),
    header("bert", tokenizer__ggml__precompiled_charsmap=3),
    header("llama", tokenizer__ggml__tokens=128_256),
    header("llama", tokenizer__ggml__tokens=128_256, tokenizer__ggml__pre="default"),
    header(
        "llama",
        tokenizer__ggml__tokens=128_256,
        tokenizer__ggml__pre="llama-bpe",
        tokenizer__ggml__eos_token_id=128_001,
    ),
)


@pytest.mark.parametrize("own", OWN, ids=architecture)
def test_ollamas_own_form_of_an_architecture_is_left_to_ollama(own: Header) -> None:
    assert reason(own) == f"its file is in Ollama's own form of `{architecture(own)}`, which llama.cpp cannot load"


def test_every_architecture_of_the_table_has_a_case() -> None:
    assert MARKS.keys() - set(map(architecture, OWN)) == {"gemma3n"}  # by the shapes of its tensors: below


def test_two_vocabularies_of_different_lengths() -> None:
    embeddings = {"token_embd.weight": (2048, 262_400), "per_layer_token_embd.weight": (7680, 262_144)}
    it = Header(Path("x"), header("gemma3n").fields, 1, embeddings)
    assert reason(it) is not None
    same = embeddings | {"token_embd.weight": (2048, 262_144)}
    assert reason(Header(Path("x"), it.fields, 1, same)) is None


@pytest.mark.parametrize("tensor", ["v.blk.0.attn_q.weight", "mm.0.weight", "a.conv1d.1.weight", "s.x", "mtp.0.x"])
@pytest.mark.parametrize("name", ["llama4", "gemma4", "mistral3", "one-that-comes-later"])
def test_a_merged_part_is_left_to_ollama_whatever_the_architecture(name: str, tensor: str) -> None:
    assert "in the model's own file" in str(reason(header(name, tensor)))


def test_what_lies_beside_the_weights_matters() -> None:
    clean = header("qwen3")
    assert reason(clean, ("model", "template", "params", "license", "projector")) is None
    assert "adapter" in str(reason(clean, ("model", "adapter")))
    assert "system prompt" in str(reason(clean, ("model", "system")))
    assert "messages" in str(reason(clean, ("model", "messages")))
    assert "safetensors" in str(reason(clean, ("tensor",)))
    assert "safetensors" in str(reason(clean, model_format="safetensors"))


def test_without_a_template_llamacpp_would_take_a_common_one() -> None:
    clean = header("qwen3")
    bare = Header(Path("x"), {**clean.fields, "tokenizer.chat_template": None}, 1, clean.tensors)
    assert "no chat template" in str(reason(bare))
    assert reason(clean, stops=("<|im_start|>", "<|im_end|>")) is None, "one of them is a word of the template"
    assert "texts" in str(reason(clean, stops=("### User:",)))


def test_the_shipped_model_is_as_upstream_has_it() -> None:
    assert reason(gguf_header.read(WEIGHTS), ("model", "projector"), stops=("<|im_end|>",)) is None
    projector = gguf_header.read(MMPROJ)
    assert projector_reason(projector) is None
    fields = {name: value for name, value in projector.fields.items() if "projector_type" not in name}
    assert "projector" in str(projector_reason(Header(MMPROJ, fields, 1)))


def test_a_header_tells_its_tensors_and_its_quantization() -> None:
    found = gguf_header.read(WEIGHTS)
    assert found.tensors["token_embd.weight"] == (128, 508)
    assert gguf_header.quantization(found) == "F16"
    assert gguf_header.quantization(Header(WEIGHTS, {}, 1)) == ""
    assert gguf_header.quantization(Header(WEIGHTS, {"general.file_type": 4711}, 1)) == ""
