"""Plan of the context, the parallel requests and the memory that fit this machine. Pure functions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Generic, TypeVar

from llmdeploy.errors import DoesNotFit
from llmdeploy.hardware import Hardware
from llmdeploy.models.facts import ModelFacts
from llmdeploy.units import GIB, MIB, in_gib

V = TypeVar("V")

DEFAULT_CONTEXT = 8192
"""Default number of tokens per request: enough for documents, small enough for laptops."""
SMALLEST_CONTEXT = 2048
"""Smallest context, in tokens, that the plan chooses: below it a chat model is of little use."""
DEFAULT_PARALLEL = (4, 2, 1)
"""Numbers of parallel requests to try, in order of preference."""
RESERVE_BYTES = 512 * MIB
"""Bytes of memory left to the rest of the machine."""
BOUND_SHARE = 1.5
"""Times the memory of its plan that a server may take: an estimate is not a measurement."""
BOUND_BYTES = 2 * GIB
"""Bytes that a server may take in any case beside its share: what it allocates for long requests."""
IMAGES_BYTES = GIB
"""Bytes for each slot of a server that sees images: 100 megapixels in one request, of six bytes each, and a reserve.

llama.cpp also decodes the images of requests that wait for a slot.
"""
VISION = "vision"
"""The part of the memory that a vision projector takes."""
LEFT_BYTES = GIB
"""Bytes of memory that no server's bound reaches into."""
MICRO_BATCH = 512
"""Tokens computed in one step: the default `--ubatch-size` of llama.cpp, which Ollama runs too."""
KV_CACHE = "KV cache"
LOWERED = "lowered to fit the memory that is free"


@dataclass(frozen=True)
class Wishes:
    """Settings that the user asked for; None leaves the choice to the plan."""

    context: int | None = None
    parallel: int | None = None


@dataclass(frozen=True)
class Setting(Generic[V]):
    """A value, and the reason for it."""

    value: V
    reason: str


@dataclass(frozen=True)
class MemoryPart:
    """An amount of memory in bytes, and the reason for it."""

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class MemoryBound:
    """The memory at which a server is ended, so that one request cannot take the whole machine."""

    bytes: int
    reason: str
    is_hard: bool
    """Whether the system is to refuse allocations beyond it too. It is not with GPUs, whose drivers reserve far more
    addresses than they use."""


@dataclass(frozen=True)
class Plan:
    """Settings for one model on one machine, the memory they need and the memory that is free."""

    context: Setting[int]
    """Tokens that one request may use, prompt and answer together."""
    parallel: Setting[int]
    """Parallel requests; the engine's KV cache holds `parallel` x `context` tokens."""
    memory: tuple[MemoryPart, ...]
    available: MemoryPart | None
    """Free memory; None if it is unknown, as on another machine."""
    settings: Mapping[str, Setting[Any]] = field(default_factory=dict)
    """Settings of this engine alone, under the engine's own names."""
    takes: int | None = None
    """Bytes that the server allocates at its start, if not `needed_bytes`: vLLM takes a share of each GPU."""

    @property
    def needed_bytes(self) -> int:
        return sum(part.bytes for part in self.memory)

    @property
    def fits(self) -> bool:
        return self._fits(self.needed_bytes)

    def _fits(self, needed: int) -> bool:
        return self.available is None or needed <= self.available.bytes

    def _needed_with(self, tokens: int) -> int:
        """Return the memory that the plan would need with a KV cache of `tokens` tokens, in bytes."""
        cache = next(part.bytes for part in self.memory if part.name == KV_CACHE)
        return self.needed_bytes - cache + cache * tokens // (self.context.value * self.parallel.value)

    def require_fit(self, model: str) -> None:
        """Raise DoesNotFit, with the numbers and a way out, unless the plan fits."""
        if self.fits or self.available is None:
            return
        parts = ", ".join(f"{part.name} {in_gib(part.bytes)}" for part in self.memory)
        least = min(SMALLEST_CONTEXT, self.context.value)
        less = (
            f", or ask for less: `llmdeploy serve {shlex.quote(model)} --context {least} --parallel 1`"
            if self._fits(self._needed_with(least))
            else ""
        )
        raise DoesNotFit(
            f"`{model}` needs {in_gib(self.needed_bytes)} ({parts}) and {in_gib(self.available.bytes)} is free",
            f"free memory, or take a smaller model{less}",
        )


def make_plan(
    facts: ModelFacts,
    wishes: Wishes,
    available: MemoryPart | None,
    *,
    overhead: tuple[MemoryPart, ...] = (),
    parallels: Sequence[Setting[int]] = (),
    settings: Mapping[str, Setting[Any]] | None = None,
) -> Plan:
    """Choose the largest context and number of parallel requests that fit.

    A smaller number of requests is tried before a smaller context. `wishes` are never changed. If nothing fits, the
    smallest plan is returned, with `fits` False. `overhead` is the engine's memory besides weights and KV cache;
    `parallels` are the numbers of requests to try, if the engine restricts them; `settings` are the engine's own.
    Raises DoesNotFit for a context longer than the model was trained for.
    """
    require_length(facts, wishes.context)
    candidates = [
        Plan(context, parallel, _memory(facts, context.value * parallel.value, overhead), available, settings or {})
        for context, parallel in product(_contexts(facts, wishes), parallels or _parallels(wishes))
    ]
    return next((plan for plan in candidates if plan.fits), candidates[-1])


def require_length(facts: ModelFacts, context: int | None) -> None:
    """Raise DoesNotFit for a context longer than the model was trained for."""
    if context is not None and context > facts.context_length:
        raise DoesNotFit(
            f"a context of {context} tokens is longer than the model's own, {facts.context_length}",
            f"ask for at most that: `--context {facts.context_length}`",
        )


def _contexts(facts: ModelFacts, wishes: Wishes) -> list[Setting[int]]:
    if wishes.context is not None:
        return [Setting(wishes.context, "as asked for")]
    largest = min(DEFAULT_CONTEXT, facts.context_length)
    reason = "the default" if largest == DEFAULT_CONTEXT else "the model's own"
    settings = [Setting(largest, reason)]
    while (half := settings[-1].value // 2) >= SMALLEST_CONTEXT:
        settings.append(Setting(half, LOWERED))
    return settings


def _parallels(wishes: Wishes) -> list[Setting[int]]:
    if wishes.parallel is not None:
        return [Setting(wishes.parallel, "as asked for")]
    first, *fewer = DEFAULT_PARALLEL
    return [Setting(first, "the default"), *(Setting(n, LOWERED) for n in fewer)]


def _memory(facts: ModelFacts, tokens: int, overhead: tuple[MemoryPart, ...]) -> tuple[MemoryPart, ...]:
    vision = (MemoryPart(VISION, facts.mmproj_bytes, "size of the mmproj file"),) if facts.mmproj_bytes else ()
    return (
        MemoryPart("weights", facts.weights_bytes, facts.source),
        *vision,
        MemoryPart(
            KV_CACHE,
            facts.kv_bytes_per_token() * tokens,
            f"{facts.kv_bytes_per_token()} bytes a token (f16) x {tokens} tokens",
        ),
        *overhead,
    )


def free_memory(hardware: Hardware, *, on_gpu: bool) -> MemoryPart:
    """Return the memory that an engine may use: the machine's less a reserve and, with `on_gpu`, the GPUs'."""
    ram = max(0, hardware.memory_available - RESERVE_BYTES)
    reason = f"free memory less {in_gib(RESERVE_BYTES)} for the rest of the machine"
    if not on_gpu:
        return MemoryPart("available", ram, reason)
    free = sum(gpu.memory_free or 0 for gpu in hardware.gpus)
    return MemoryPart("available", ram + free, f"{reason}, and {in_gib(free)} free on GPUs")


def memory_bound(plan: Plan, *, on_gpu: bool) -> MemoryBound:
    """Return the bound of a server with that plan.

    It is the plan's memory and a headroom, and leaves the machine `LEFT_BYTES` of what is free; but it is never less
    than what the plan promises.
    """
    sees_images = any(part.name == VISION for part in plan.memory)
    headroom = BOUND_BYTES + (plan.parallel.value * IMAGES_BYTES if sees_images else 0)
    bound = int(plan.needed_bytes * BOUND_SHARE) + headroom
    reason = f"{BOUND_SHARE} x the plan's {in_gib(plan.needed_bytes)} and {in_gib(headroom)}"
    if plan.available is not None:
        free = plan.available.bytes + RESERVE_BYTES - LEFT_BYTES
        if free < bound:
            bound, reason = free, f"free memory less {in_gib(LEFT_BYTES)}"
    least = plan.needed_bytes + RESERVE_BYTES
    if bound < least:
        bound, reason = least, f"the plan's {in_gib(plan.needed_bytes)} and {in_gib(RESERVE_BYTES)}"
    return MemoryBound(bound, reason, is_hard=not on_gpu)


def compute_buffer(facts: ModelFacts) -> MemoryPart:
    """Return the memory of one step of llama.cpp's computation.

    It is `n_ubatch x (n_vocab + 2 n_embd) x 4` bytes with flash attention: within 5 % on 30 of 44 start-up logs of
    fully offloaded models.
    """
    size = MICRO_BATCH * (facts.vocabulary_size + 2 * facts.embedding_length) * 4
    return MemoryPart("compute", size, f"{MICRO_BATCH} x (vocabulary + 2 x embedding) x 4 bytes")
