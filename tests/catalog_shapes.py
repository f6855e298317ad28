"""How many parameters a model of the catalog has, counted from its shapes: the entry's and these, from config.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmdeploy.models.catalog.entry import CatalogEntry


@dataclass(frozen=True)
class Shape:
    """What an entry does not have, under the names of config.json or near them."""

    feed_forward: int
    """Inner size of the dense layers' gated network."""
    bias: bool = False
    """Queries, keys and values have one (Qwen2)."""
    head_norms: bool = False
    """Queries and keys are normalised, each head by the same weights (Qwen3, Gemma 3)."""
    wide_norms: bool = False
    """They are, across all heads (OLMo 2)."""
    norms: int = 2
    """In each layer, of the embedding's width."""
    experts: int = 0
    expert: int = 0
    """Inner size of one expert."""
    shared: int = 0
    """Inner size of the expert that every token uses; with a gate of its own (Qwen3-Next)."""
    shared_gate: bool = False
    dense_layers: int = 0
    """Layers without experts, at the start."""
    gate: bool = False
    """Queries come with a gate of their size (Qwen3-Next)."""
    linear: tuple[int, int] = (0, 0)
    """Heads of keys and of values in a layer with linear attention; each is 128 wide, and a convolution takes 4."""
    extra_layers: int = 0
    """For predicting several tokens: a whole layer, and a projection of two embeddings to one."""
    vision: int = 0


def count(entry: CatalogEntry, shape: Shape) -> int:
    layers = range(entry.layers)
    every = entry.layers // (entry.kv_layers or entry.layers)
    full = [layer for layer in layers if layer % every == every - 1]
    attention = len(full) * _attention(entry, shape) + (entry.layers - len(full)) * _linear(entry, shape)
    networks = sum(_network(entry, shape, dense=layer < shape.dense_layers) for layer in layers)
    embeddings = entry.vocabulary * entry.embedding * (1 if entry.tied else 2)
    norms = entry.layers * shape.norms * entry.embedding + entry.embedding
    extra = _attention(entry, shape) + _network(entry, shape) + 2 * entry.embedding**2 + 5 * entry.embedding
    return embeddings + attention + networks + norms + shape.extra_layers * extra + shape.vision


def _attention(entry: CatalogEntry, shape: Shape) -> int:
    queries, keys = entry.heads * entry.head_size, entry.kv_heads * entry.head_size
    matrices = entry.embedding * (queries * (3 if shape.gate else 2) + 2 * keys)
    biases = (queries + 2 * keys) * shape.bias
    return matrices + biases + 2 * entry.head_size * shape.head_norms + (queries + keys) * shape.wide_norms


def _linear(entry: CatalogEntry, shape: Shape) -> int:
    heads = shape.linear[1]
    keys, values = (128 * count for count in shape.linear)
    projections = entry.embedding * (2 * keys + 2 * values + 2 * heads) + values * entry.embedding
    return projections + 4 * (2 * keys + values) + 2 * heads + 128


def _network(entry: CatalogEntry, shape: Shape, *, dense: bool = False) -> int:
    if dense or not shape.experts:
        return 3 * entry.embedding * shape.feed_forward
    experts = shape.experts * (3 * entry.embedding * shape.expert + entry.embedding)
    return experts + 3 * entry.embedding * shape.shared + entry.embedding * shape.shared_gate


def qwen25_vision(out: int, inner: int) -> int:
    """The vision tower of Qwen2.5-VL: 32 layers of width 1280, patches of 14 x 14 in pairs."""
    width = 1280
    layer = 2 * width + 4 * width * width + 4 * width + 3 * width * inner + 2 * inner + width
    return 3 * 2 * 14 * 14 * width + 32 * layer + width + _merger(width, out)


def qwen3_vision(out: int, *, large: bool, deep: int) -> int:
    """Of Qwen3-VL and Qwen3.5: patches of 16 x 16 in pairs, 48 x 48 positions, `deep` mergers beside the last."""
    depth, width, inner = (27, 1152, 4304) if large else (24, 1024, 4096)
    if not large and not deep and out == 1024:
        depth, width, inner = 12, 768, 3072
    embedding = 3 * 2 * 16 * 16 * width + width + 2304 * width
    layer = 4 * width + 4 * width * width + 4 * width + 2 * width * inner + inner + width
    return embedding + depth * layer + 2 * width + _merger(width, out) + deep * (8 * width + _merger(width, out))


def siglip(out: int) -> int:
    """Of Gemma 3, and the projection behind it: 27 layers of width 1152, patches of 14 x 14, 64 x 64 positions."""
    width, inner = 1152, 4304
    layer = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
    return 3 * 14 * 14 * width + width + 4096 * width + 27 * layer + 2 * width + width * out + width


def pixtral(out: int) -> int:
    """Of Mistral Small 3.1 and Ministral 3, and the projection behind it: 24 layers of width 1024."""
    width, inner = 1024, 4096
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return 3 * 14 * 14 * width + width + 24 * layer + width + 4 * width * width + width * out + out * out


def _merger(width: int, out: int) -> int:
    """Four patches to one embedding."""
    return (4 * width) ** 2 + 4 * width + 4 * width * out + out


def qwen2(feed_forward: int, vision: int = 0) -> Shape:
    return Shape(feed_forward, bias=True, vision=vision)


def qwen3(feed_forward: int, vision: int = 0) -> Shape:
    return Shape(feed_forward, head_norms=True, vision=vision)


def qwen3_moe(experts: int, expert: int, vision: int = 0) -> Shape:
    return Shape(0, head_norms=True, experts=experts, expert=expert, vision=vision)


def qwen35(feed_forward: int, linear: tuple[int, int], vision: int) -> Shape:
    return Shape(feed_forward, head_norms=True, gate=True, linear=linear, extra_layers=1, vision=vision)


def qwen35_moe(experts: int, expert: int, linear: tuple[int, int], vision: int, extra_layers: int = 1) -> Shape:
    return Shape(
        0, head_norms=True, gate=True, linear=linear, extra_layers=extra_layers, vision=vision,
        experts=experts, expert=expert, shared=expert, shared_gate=True,
    )  # fmt: skip


def gemma3(feed_forward: int, vision: Callable[[int], int] | None = None, out: int = 0) -> Shape:
    return Shape(feed_forward, head_norms=True, norms=4, vision=vision(out) if vision else 0)


SHAPES = {
    "qwen2.5:0.5b": qwen2(4864),
    "qwen2.5:1.5b": qwen2(8960),
    "qwen2.5:3b": qwen2(11_008),
    "qwen2.5:7b": qwen2(18_944),
    "qwen2.5:14b": qwen2(13_824),
    "qwen2.5:32b": qwen2(27_648),
    "qwen2.5:72b": qwen2(29_568),
    "qwen2.5-coder:0.5b": qwen2(4864),
    "qwen2.5-coder:1.5b": qwen2(8960),
    "qwen2.5-coder:3b": qwen2(11_008),
    "qwen2.5-coder:7b": qwen2(18_944),
    "qwen2.5-coder:14b": qwen2(13_824),
    "qwen2.5-coder:32b": qwen2(27_648),
    "qwq:32b": qwen2(27_648),
    "qwen2.5-vl:3b": qwen2(11_008, qwen25_vision(2048, 3420)),
    "qwen2.5-vl:7b": qwen2(18_944, qwen25_vision(3584, 3420)),
    "qwen2.5-vl:32b": qwen2(27_648, qwen25_vision(5120, 3456)),
    "qwen2.5-vl:72b": qwen2(29_568, qwen25_vision(8192, 3456)),
    "qwen3:0.6b": qwen3(3072),
    "qwen3:1.7b": qwen3(6144),
    "qwen3:4b": qwen3(9728),
    "qwen3:4b-instruct": qwen3(9728),
    "qwen3:4b-thinking": qwen3(9728),
    "qwen3:8b": qwen3(12_288),
    "qwen3:14b": qwen3(17_408),
    "qwen3:32b": qwen3(25_600),
    "qwen3:30b": qwen3_moe(128, 768),
    "qwen3:30b-instruct": qwen3_moe(128, 768),
    "qwen3:30b-thinking": qwen3_moe(128, 768),
    "qwen3:235b": qwen3_moe(128, 1536),
    "qwen3-coder:30b": qwen3_moe(128, 768),
    "qwen3-next:80b": qwen35_moe(512, 512, (16, 32), 0),
    "qwen3-coder-next:80b": qwen35_moe(512, 512, (16, 32), 0, extra_layers=0),
    "qwen3-vl:2b": qwen3(6144, qwen3_vision(2048, large=False, deep=3)),
    "qwen3-vl:4b": qwen3(9728, qwen3_vision(2560, large=False, deep=3)),
    "qwen3-vl:8b": qwen3(12_288, qwen3_vision(4096, large=True, deep=3)),
    "qwen3-vl:30b": qwen3_moe(128, 768, qwen3_vision(2048, large=True, deep=3)),
    "qwen3-vl:32b": qwen3(25_600, qwen3_vision(5120, large=True, deep=3)),
    "qwen3.5:0.8b": qwen35(3584, (16, 16), qwen3_vision(1024, large=False, deep=0)),
    "qwen3.5:2b": qwen35(6144, (16, 16), qwen3_vision(2048, large=False, deep=0)),
    "qwen3.5:4b": qwen35(9216, (16, 32), qwen3_vision(2560, large=False, deep=0)),
    "qwen3.5:9b": qwen35(12_288, (16, 32), qwen3_vision(4096, large=True, deep=0)),
    "qwen3.5:27b": qwen35(17_408, (16, 48), qwen3_vision(5120, large=True, deep=0)),
    "qwen3.5:35b": qwen35_moe(256, 512, (16, 32), qwen3_vision(2048, large=True, deep=0)),
    "qwen3.5:122b": qwen35_moe(256, 1024, (16, 64), qwen3_vision(3072, large=True, deep=0)),
    "qwen3.6:27b": qwen35(17_408, (16, 48), qwen3_vision(5120, large=True, deep=0)),
    "qwen3.6:35b": qwen35_moe(256, 512, (16, 32), qwen3_vision(2048, large=True, deep=0)),
    "llama3.1:8b": Shape(14_336),
    "llama3.1:70b": Shape(28_672),
    "llama3.2:1b": Shape(8192),
    "llama3.2:3b": Shape(8192),
    "llama3.3:70b": Shape(28_672),
    "gemma3:1b": gemma3(6912),
    "gemma3:4b": gemma3(10_240, siglip, 2560),
    "gemma3:12b": gemma3(15_360, siglip, 3840),
    "gemma3:27b": gemma3(21_504, siglip, 5376),
    "deepseek-r1:1.5b": qwen2(8960),
    "deepseek-r1:7b": qwen2(18_944),
    "deepseek-r1:8b": qwen3(12_288),
    "deepseek-r1:14b": qwen2(13_824),
    "deepseek-r1:32b": qwen2(27_648),
    "deepseek-r1:70b": Shape(28_672),
    "mistral:7b": Shape(14_336),
    "mistral-nemo:12b": Shape(14_336),
    "mistral-small3.1:24b": Shape(32_768, vision=pixtral(5120)),
    "mistral-small3.2:24b": Shape(32_768, vision=pixtral(5120)),
    "ministral-3:3b": Shape(9216, vision=pixtral(3072)),
    "ministral-3:8b": Shape(14_336, vision=pixtral(4096)),
    "ministral-3:14b": Shape(16_384, vision=pixtral(5120)),
    "mixtral:8x7b": Shape(0, experts=8, expert=14_336),
    "phi4:14b": Shape(17_920),
    "phi4-reasoning:14b": Shape(17_920),
    "phi4-mini:3.8b": Shape(8192),
    "granite3.3:2b": Shape(8192),
    "granite3.3:8b": Shape(12_800),
    "granite4.1:3b": Shape(8192),
    "granite4.1:8b": Shape(12_800),
    "granite4.1:30b": Shape(32_768),
    "smollm2:135m": Shape(1536),
    "smollm2:360m": Shape(2560),
    "smollm2:1.7b": Shape(8192),
    "smollm3:3b": Shape(11_008),
    "yi:6b": Shape(11_008),
    "yi:9b": Shape(11_008),
    "yi:34b": Shape(20_480),
    "falcon3:1b": Shape(8192),
    "falcon3:3b": Shape(9216),
    "falcon3:7b": Shape(23_040),
    "falcon3:10b": Shape(23_040),
    "olmo2:7b": Shape(11_008, wide_norms=True),
    "olmo2:13b": Shape(13_824, wide_norms=True),
    "glm4:9b": Shape(13_696, bias=True, norms=4),
    "seed-oss:36b": Shape(27_648, bias=True),
}
