"""The reasons why a model from Ollama's store does not run on upstream llama.cpp.

Ollama converts some models in its own way: with other names of architectures and fields, or with the vision part in the
model's file. Its server repairs that while it loads; upstream llama.cpp cannot. The rules are those by which Ollama's
own loader recognises such a file (llama/compat/llama-ollama-compat.cpp of its repository, version 0.33).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmdeploy.models.gguf_header import Header

RULES = 1
"""Version of the rules: verdicts by another version are not used."""

MERGED = ("v.", "mm.", "a.", "s.", "mtp.", "model.vision_tower.")
"""Prefixes of the tensors that upstream has in another file, or not at all."""
LLAMA3_VOCABULARY, LLAMA3_END_OF_TEXT = 128_256, 128_001
"""Vocabulary size and end token of Llama 3. Its chats end with `<|eot_id|>`: a file without it may not stop."""
TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Marks:
    """Marks of Ollama's own form in the files of one architecture: one of them is enough."""

    always: bool = False
    fields: tuple[str, ...] = ()
    """Names of fields, after the architecture's name; or whole names that begin with `tokenizer.`."""
    without: tuple[str, ...] = ()
    """Fields of upstream's form that Ollama's form lacks."""
    tensors: tuple[str, ...] = ()
    """Suffixes of tensor names."""
    rule: Callable[[Header], bool] = lambda header: False

    def found_in(self, header: Header, architecture: str) -> bool:
        def has(field: str) -> bool:
            return (field if field.startswith("tokenizer.") else f"{architecture}.{field}") in header.fields

        return (
            self.always
            or any(map(has, self.fields))
            or not all(map(has, self.without))
            or any(name.endswith(self.tensors) for name in header.tensors)
            or self.rule(header)
        )


def reason(
    header: Header,
    layers: Collection[str] = ("model",),
    model_format: str = "gguf",
    stops: Sequence[str] = (),
) -> str | None:
    """Return why upstream llama.cpp cannot serve the model in place of Ollama; None if it can.

    `header`: the header of the model's file; `layers`: the kinds of layers in its manifest; `stops`: the texts that
    end an answer, from Ollama's parameters. The reason is a clause that follows "because".
    """
    return _packed(layers, model_format) or _converted(header) or _talks_otherwise(header, stops)


def projector_reason(projector: Header) -> str | None:
    """Return the reason for a vision projector in its own file; None if there is none."""
    named = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
    if any(name in projector.fields for name in named):
        return None
    return "its vision projector does not say of which type it is"


def _packed(layers: Collection[str], model_format: str) -> str | None:
    if model_format not in {"", "gguf"} or "tensor" in layers:
        return "it is in safetensors form, for Ollama's MLX runner"
    if "adapter" in layers:
        return "it has an adapter beside its weights"
    if {"system", "messages"} & set(layers):
        return "it has a system prompt or messages of its own, which only Ollama gives it"
    return None


def _converted(header: Header) -> str | None:
    architecture = str(header.fields.get("general.architecture", ""))
    if any(name.startswith(MERGED) for name in header.tensors):
        return "its vision, audio or draft part is in the model's own file, which only Ollama can load"
    if architecture in MARKS and MARKS[architecture].found_in(header, architecture):
        return f"its file is in Ollama's own form of `{architecture}`, which llama.cpp cannot load"
    return None


def _talks_otherwise(header: Header, stops: Sequence[str]) -> str | None:
    """Return why llama.cpp would write or end the model's turns in another way than Ollama; None if it would not.

    Ollama has its own template and stop texts beside the file. If the file has the template that the model was trained
    with, and the stop texts are words of it, llama.cpp ends an answer by the same tokens. Sampling parameters are the
    application's own on every engine.
    """
    template = header.fields.get(TEMPLATE)
    if not isinstance(template, str):
        return "its file has no chat template, and llama.cpp would take a common one"
    if stops and not any(stop in template for stop in stops):
        return "it ends its answers by texts that its file's own chat template does not know"
    return None


def _vocabularies_differ(header: Header) -> bool:
    shapes = [header.tensors.get(name, ()) for name in ("token_embd.weight", "per_layer_token_embd.weight")]
    return all(len(shape) > 1 for shape in shapes) and shapes[0][1] != shapes[1][1]


def _lacks_its_norm(header: Header) -> bool:
    return "output_norm.weight" in header.tensors and "token_embd_norm.weight" not in header.tensors


def _charsmap_is_texts(header: Header) -> bool:
    """Return whether the field is an array of texts, which a header has as its length."""
    return isinstance(header.fields.get("tokenizer.ggml.precompiled_charsmap"), int)


def _misses_the_end_of_a_turn(header: Header) -> bool:
    if header.fields.get("tokenizer.ggml.tokens") != LLAMA3_VOCABULARY:
        return False
    unknown = header.fields.get("tokenizer.ggml.pre", "default") == "default"
    return unknown or header.fields.get("tokenizer.ggml.eos_token_id") == LLAMA3_END_OF_TEXT


_QWEN35 = ("vision.block_count", "image_token_id", "ssm.v_head_reordered", "rope.mrope_interleaved")

MARKS: Mapping[str, Marks] = MappingProxyType(
    {
        **dict.fromkeys(
            ("qwen25vl", "gptoss", "mllama", "deepseekocr", "glmocr", "glm4moelite", "olmo3"), Marks(always=True)
        ),
        **dict.fromkeys(("qwen3vl", "qwen3vlmoe"), Marks(without=("rope.dimension_sections",))),
        "gemma3": Marks(
            fields=(
                "mm.tokens_per_image",
                "rope.global.freq_base",
                "rope.local.freq_base",
                "tokenizer.ggml.add_padding_token",
                "tokenizer.ggml.add_unknown_token",
            ),
            without=("attention.layer_norm_rms_epsilon",),
            tensors=("dense.0.weight",),
        ),
        "gemma3n": Marks(rule=_vocabularies_differ),
        "gemma4": Marks(rule=lambda header: header.fields.get("tokenizer.ggml.model") == "llama"),
        "qwen35": Marks(fields=_QWEN35),
        "qwen35moe": Marks(fields=(*_QWEN35, "feed_forward_length")),
        "qwen3next": Marks(tensors=(".ssm_dt",)),
        "mistral3": Marks(fields=("rope.scaling.beta_fast", "rope.scaling.mscale_all_dim", "rope.scaling_beta")),
        "lfm2": Marks(rule=_lacks_its_norm),
        "nemotron_h_moe": Marks(tensors=(".ffn_latent_in", ".ffn_latent_in.weight")),
        "laguna": Marks(
            fields=("rope.swa.dimension_count", "rope.swa.freq_base"),
            tensors=("blk.0.attn_g.weight",),
        ),
        "bert": Marks(rule=_charsmap_is_texts),
        "llama": Marks(rule=_misses_the_end_of_a_turn),
    }
)
"""Marks by the file's `general.architecture`; other architectures are the same in both."""
