"""One model of the catalog: the weights that each engine takes, and their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmdeploy.errors import ModelNotFound
from llmdeploy.models.reference import HubFile
from llmdeploy.models.weights import GGUF, HF, OLLAMA, Format
from llmdeploy.paths import selftest_dir

BITS = {
    # llama.cpp, tools/quantize/README.md: a Llama 3.1 8B, all tensors counted.
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818,
    "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_M": 3.9960, "Q3_K_L": 4.2979, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944,
    "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005, "BF16": 16.0005,
    # From the size of one block: 18 and 22 bytes for 32 weights, and 17 for the experts of gpt-oss.
    "Q4_0": 4.5, "Q5_0": 5.5, "MXFP4": 4.25,
    # For the layers' matrices, with a scale and a zero point for each group of 128; the embeddings stay at 16 bits.
    "AWQ": 4.15625, "GPTQ": 4.15625, "GPTQ-INT8": 8.15625, "FP8": 8.0, "NVFP4": 4.5,
}  # fmt: skip
"""Bits of a weight in each quantization."""
UNQUANTIZED_EMBEDDINGS = frozenset({"AWQ", "GPTQ", "GPTQ-INT8", "FP8", "NVFP4"})
FORM: Mapping[Format, str] = {
    GGUF: "as a GGUF file",
    OLLAMA: "in Ollama's registry",
    HF: "in Hugging Face form",
}
"""A phrase for each format, as messages name it."""
NAMES_ALIKE = {"FP16": "F16", "GPTQ-INT4": "GPTQ", "INT4": "GPTQ", "W4A16": "GPTQ", "INT8": "GPTQ-INT8"}


def plain_quant(quant: str) -> str:
    """Return the common spelling of a quantization: `Q4_K_M` for `q4_K_M`, `F16` for `fp16`."""
    name = quant.upper()
    return NAMES_ALIKE.get(name, name)


@dataclass(frozen=True)
class GgufFiles:
    """A model's files for llama.cpp; sizes in bytes."""

    file: str
    """The path in the repository, with `{quant}` in place of the quantization; the first part of a split file."""
    quants: tuple[str, ...]
    """The quantizations as the names of the files spell them; the first is the default."""
    repo: str | None = None
    """The Hub repository; None if the files are in this package."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The exact sizes that are known, by quantization."""
    mmproj: str | None = None
    mmproj_bytes: int = 0
    """The size of the vision projector's file; 0 if unknown."""


@dataclass(frozen=True)
class CatalogEntry:
    """A model that is known by name, in one quantization if the name has one."""

    name: str
    license: str = ""
    capabilities: tuple[str, ...] = ("text",)
    context: int = 0
    """The longest context that the model was trained for, in tokens; 0, as in all numbers below, if unknown."""
    parameters: int = 0
    """The number of parameters of the whole model, vision tower included."""
    embedding: int = 0
    vocabulary: int = 0
    active: int = 0
    """The number of parameters that one token uses; 0 for all of them."""
    vision: int = 0
    """The number of parameters of the vision tower and its projector."""
    gguf_files: GgufFiles | None = None
    tag: str = ""
    """The tag in Ollama's registry; empty if there is none."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The tags of all quantizations, by quantization, as Ollama spells both."""
    repositories: Mapping[str, str] = field(default_factory=dict)
    """The Hub repositories in Hugging Face form, by quantization; the first is the default."""
    gated: bool = False
    """Whether the Hub requires a login and an agreement before a download of the original weights."""
    tied: bool = False
    """Whether the last layer shares the embeddings' weights."""
    aliases: tuple[str, ...] = ()
    shipped: bool = False
    hf_folder: str | None = None
    quant: str = ""
    """The quantization that the name asks for; empty for the default of each engine."""
    own: bool = False
    """Whether the entry comes from the user's catalog."""

    def __str__(self) -> str:
        return f"{self.name}-{self.quant.lower()}" if self.quant else self.name

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def gguf(self) -> GgufFiles:
        """The GGUF files. Raises ModelNotFound if there are none."""
        if self.gguf_files is None:
            raise ModelNotFound(f"the catalog has no GGUF file of `{self.name}`", self._hint())
        return self.gguf_files

    @property
    def weights(self) -> Path | HubFile:
        """The GGUF file, in this package or at the Hub. Raises ModelNotFound if it does not have the quantization."""
        return self._located(self.gguf.file.replace("{quant}", self.chosen(GGUF)))

    @property
    def mmproj(self) -> Path | HubFile | None:
        """The vision projector, in this package or at the Hub; None for a model without vision."""
        return None if self.gguf.mmproj is None else self._located(self.gguf.mmproj)

    @property
    def ollama(self) -> str | None:
        """The tag in Ollama's registry, or None. Raises ModelNotFound if it does not have the quantization."""
        return self.tags[self.chosen(OLLAMA)] if self.tag and self.quant else self.tag or None

    @property
    def hub(self) -> str | None:
        """The repository in Hugging Face form, or None. Raises ModelNotFound if it does not have the quantization."""
        return self.repositories[self.chosen(HF)] if self.repositories else None

    def quants(self, format: Format) -> tuple[str, ...]:
        """Return its quantizations in that format, as files, tags or repositories spell them; the default first."""
        if format == HF:
            return tuple(self.repositories)
        if format == OLLAMA:
            return tuple(self.tags)
        return self.gguf_files.quants if format == GGUF and self.gguf_files else ()

    def preferred(self, formats: Sequence[Format]) -> Format:
        """Return the first of these formats that the catalog has it in; without one, the last."""
        has = {GGUF: self.gguf_files, OLLAMA: self.tag, HF: self.repositories or self.hf_folder}
        return next((one for one in formats if has.get(one)), formats[-1])

    def chosen(self, format: Format) -> str:
        """Return its quantization in that format: what the name says, or the default; empty if it is not known.

        Raises ModelNotFound, with the quantizations that there are.
        """
        quants = self.quants(format)
        if not self.quant:
            return quants[0] if quants else ""
        wished = plain_quant(self.quant)
        if found := next((one for one in quants if plain_quant(one) == wished), None):
            return found
        there = ", ".join(f"`{one}`" for one in (self.name, *(f"{self.name}-{one.lower()}" for one in quants[1:])))
        others = [one for one in FORM if wished in map(plain_quant, self.quants(one))]
        elsewhere = f"; `{self}` is {FORM[others[0]]}" if others else ""
        raise ModelNotFound(
            f"the catalog has no `{self.quant.lower()}` of `{self.name}` {FORM[format]}",
            f"there is {there}{elsewhere}",
        )

    def size(self, format: Format) -> tuple[int, bool]:
        """Return its bytes in that format, 0 if unknown, and whether that is the exact size and not an estimate.

        Raises ModelNotFound for a quantization that the format does not have.
        """
        quant = self.chosen(format)
        if format in (HF, OLLAMA):
            return self._estimate(quant or "Q4_K_M") + 2 * self.vision, False
        files = self.gguf
        exact = files.sizes.get(quant, 0)
        complete = files.mmproj is None or files.mmproj_bytes > 0
        return (exact or self._estimate(quant)) + self._projector(), exact > 0 and complete

    def _estimate(self, quant: str) -> int:
        """Estimate the bytes of the language model in a quantization from its number of parameters."""
        plain = plain_quant(quant).removeprefix("UD-")
        # `UD-Q4_K_XL` is Unsloth's mix; the `_M` of the same bits is the nearest in the table.
        bits = BITS.get(re.sub("_XL$", "_M", plain), BITS["BF16"])
        count = self.parameters - self.vision
        kept = self.vocabulary * self.embedding * (1 if self.tied else 2) if plain in UNQUANTIZED_EMBEDDINGS else 0
        return round(((count - kept) * bits + kept * 16) / 8) if count > kept else 0

    def _projector(self) -> int:
        """Return the bytes of the vision projector's file, estimated if they are unknown."""
        eight = "q8_0" in (self.gguf.mmproj or "").lower()
        return self.gguf.mmproj_bytes or round(self.vision * BITS["Q8_0" if eight else "F16"] / 8)

    def _located(self, file: str) -> Path | HubFile:
        return selftest_dir() / file if self.gguf.repo is None else HubFile(self.gguf.repo, file)

    def _hint(self) -> str:
        return f"`llmdeploy models show {self.name}` tells what each engine would get"
