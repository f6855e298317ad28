"""How big: settings that fit this machine, each with its reason. Pure: the same facts give the same plan."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import product

from llmdeploy.errors import DoesNotFit
from llmdeploy.hardware import Hardware
from llmdeploy.models.facts import ModelFacts

MIB = 1024**2
GIB = 1024**3

DEFAULT_CONTEXT = 8192
"""Tokens per request where the user names no number: long enough for documents, small enough for laptops."""
SMALLEST_CONTEXT = 2048
"""Below this a chat model is of no use, so the plan says that it does not fit."""
DEFAULT_PARALLEL = (4, 2, 1)
"""Requests answered at once, from the wished for to the least."""
PROMPT_CACHE_BYTES = 512 * MIB
"""Given to llama.cpp's cache of earlier prompts, whose own limit of 8 GiB would take a laptop's memory over time."""
RESERVE_BYTES = 512 * MIB
"""Left to the rest of the machine."""
KV_CACHE = "KV cache"
MICRO_BATCH = 512
"""Tokens computed in one step: llama.cpp's default `--ubatch-size`."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None leaves the choice to the plan."""

    context: int | None = None
    parallel: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None


@dataclass(frozen=True)
class Setting:
    value: int
    reason: str


@dataclass(frozen=True)
class MemoryPart:
    name: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """The settings for one model on one machine, and the memory (bytes) they need beside what is free."""

    context: Setting
    """Tokens one request may use: prompt and answer together."""
    parallel: Setting
    """Requests answered at once; the engine's KV cache holds `parallel` x `context` tokens."""
    threads: Setting
    gpu_layers: Setting
    """Layers computed on a GPU; -1 leaves it to the engine."""
    memory: tuple[MemoryPart, ...]
    available: MemoryPart

    @property
    def needed_bytes(self) -> int:
        return sum(part.bytes for part in self.memory)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.available.bytes

    def _needed_with(self, tokens: int) -> int:
        """What it would need with a KV cache of so many tokens."""
        cache = next(part.bytes for part in self.memory if part.name == KV_CACHE)
        return self.needed_bytes - cache + cache * tokens // (self.context.value * self.parallel.value)

    def demand_fit(self, model: str) -> None:
        """Raises DoesNotFit with the numbers and the way out."""
        if self.fits:
            return
        parts = ", ".join(f"{part.name} {in_gib(part.bytes)}" for part in self.memory)
        least = min(SMALLEST_CONTEXT, self.context.value)
        less = (
            f", or ask for less: `llmdeploy serve {shlex.quote(model)} --context {least} --parallel 1`"
            if self._needed_with(least) <= self.available.bytes
            else ""
        )
        raise DoesNotFit(
            f"`{model}` needs {in_gib(self.needed_bytes)} ({parts}) and {in_gib(self.available.bytes)} is free",
            f"free memory, or take a smaller model{less}",
        )


def make_plan(facts: ModelFacts, hardware: Hardware, wishes: Wishes, *, on_gpu: bool = False) -> Plan:
    """The largest settings that fit: first all requests at once, then fewer, then a shorter context.

    What the user wished for is kept as it is. When nothing fits, the smallest plan is returned and says so.
    Raises DoesNotFit for a context longer than the model was trained for.
    """
    if wishes.context is not None and wishes.context > facts.context_length:
        raise DoesNotFit(
            f"a context of {wishes.context} tokens is longer than the model's own, {facts.context_length}",
            f"ask for at most that: `--context {facts.context_length}`",
        )
    candidates = [
        _plan(facts, hardware, wishes, context, parallel, on_gpu)
        for context, parallel in product(_contexts(facts, wishes), _parallels(wishes))
    ]
    return next((plan for plan in candidates if plan.fits), candidates[-1])


def _contexts(facts: ModelFacts, wishes: Wishes) -> list[Setting]:
    if wishes.context is not None:
        return [Setting(wishes.context, "as asked for")]
    largest = min(DEFAULT_CONTEXT, facts.context_length)
    reason = "the default" if largest == DEFAULT_CONTEXT else "the model's own"
    settings = [Setting(largest, reason)]
    while (half := settings[-1].value // 2) >= SMALLEST_CONTEXT:
        settings.append(Setting(half, "lowered to fit the memory that is free"))
    return settings


def _parallels(wishes: Wishes) -> list[Setting]:
    if wishes.parallel is not None:
        return [Setting(wishes.parallel, "as asked for")]
    first, *fewer = DEFAULT_PARALLEL
    return [Setting(first, "the default"), *(Setting(n, "lowered to fit the memory that is free") for n in fewer)]


def _plan(
    facts: ModelFacts, hardware: Hardware, wishes: Wishes, context: Setting, parallel: Setting, on_gpu: bool
) -> Plan:
    return Plan(
        context=context,
        parallel=parallel,
        threads=Setting(wishes.threads, "as asked for")
        if wishes.threads is not None
        else Setting(hardware.usable_cores, "physical cores that this process may use"),
        gpu_layers=Setting(wishes.gpu_layers, "as asked for")
        if wishes.gpu_layers is not None
        else Setting(-1, "the engine offloads what fits"),
        memory=_memory(facts, context.value * parallel.value),
        available=_available(hardware, on_gpu and wishes.gpu_layers != 0),
    )


def _memory(facts: ModelFacts, tokens: int) -> tuple[MemoryPart, ...]:
    """What llama.cpp allocates. The compute buffer is `n_ubatch x (n_vocab + 2 n_embd) x 4` bytes with flash attention:
    within 5 % on 30 of 44 start-up logs of fully offloaded models.
    """
    compute = MICRO_BATCH * (facts.vocabulary_size + 2 * facts.embedding_length) * 4
    vision = (MemoryPart("vision", facts.mmproj_bytes, "size of the mmproj file"),) if facts.sees_images else ()
    return (
        MemoryPart("weights", facts.weights_bytes, facts.source),
        *vision,
        MemoryPart(
            KV_CACHE,
            facts.kv_bytes_per_token() * tokens,
            f"{facts.kv_bytes_per_token()} bytes a token (f16) x {tokens} tokens",
        ),
        MemoryPart("compute", compute, f"{MICRO_BATCH} x (vocabulary + 2 x embedding) x 4 bytes"),
        MemoryPart("prompt cache", PROMPT_CACHE_BYTES, "its limit"),
    )


def _available(hardware: Hardware, on_gpu: bool) -> MemoryPart:
    ram = max(0, hardware.memory_available - RESERVE_BYTES)
    reason = f"free memory less {in_gib(RESERVE_BYTES)} for the rest of the machine"
    if not on_gpu:
        return MemoryPart("available", ram, reason)
    free = sum(gpu.memory_free or 0 for gpu in hardware.gpus)
    return MemoryPart("available", ram + free, f"{reason}, and {in_gib(free)} free on GPUs")


def in_gib(size: int) -> str:
    """A number of bytes for people: GiB, or MiB below one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
