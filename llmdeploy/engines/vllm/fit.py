"""The plan of vLLM's settings for a model on a machine. Pure.

vLLM takes a fixed part of each GPU's memory at its start. What the weights and the computation leave becomes the KV
cache, which all requests share. vLLM reports the exact sizes itself; the plan avoids starts that must fail.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmdeploy.plan import MemoryBound, MemoryPart, Plan, Setting, Wishes, free_memory, make_plan, memory_bound
from llmdeploy.units import GIB, MIB, in_gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.config import Settings
    from llmdeploy.hardware import Gpu, Hardware
    from llmdeploy.models.facts import ModelFacts

UTILIZATION = 0.92
"""The default of vLLM's `gpu_memory_utilization` since 0.20."""
SLACK = 0.02
"""The part of a GPU's memory that is left free: the use by other programs changes."""
COMPUTE_BYTES = 1536 * MIB
"""Bytes on each GPU for activations at 2048 to 8192 tokens a step, for CUDA graphs and for CUDA itself. In logs of 7B
to 8B models activations take 0.5 to 1.5 GiB, and CUDA graphs 0.1 to 2 GiB."""
PROCESSES_BYTES = 2 * GIB
"""Bytes of the API server, the engine core and a worker on a CPU, without weights."""
CACHE_STEP = 64 * MIB
OWN_MEMORY = ("kv_cache_memory_bytes", "gpu_memory_utilization", "quantization", "dtype")
"""The settings by which the user decides on memory that the plan does not know."""
NOT_FLAGS = ("python", "extra_args")


def named(settings: Settings) -> dict[str, Any]:
    """Return the settings of vLLM that the user has set, by their names in vLLM."""
    # `context` takes precedence over `max_model_len`.
    others = NOT_FLAGS if settings.context is None else (*NOT_FLAGS, "max_model_len")
    return {name: value for name, value in settings.of_engine("vllm").items() if name not in others}


def plan(facts: ModelFacts, hardware: Hardware, wishes: Wishes, wanted: dict[str, Any], device: str) -> Plan:
    """Return the plan. The settings that the user `wanted` are kept as they are. Raises DoesNotFit."""
    length = wanted.get("max_model_len")
    if isinstance(length, int) and (wishes.context is None or length < wishes.context):
        wishes = replace(wishes, context=length)
    if str(wanted.get("kv_cache_dtype", "")).startswith("fp8"):  # one byte for each element instead of two
        facts = replace(facts, key_length=(facts.key_length + facts.value_length) // 2, value_length=0)
    return _on_cpu(facts, hardware, wishes, wanted) if device == "cpu" else _on_gpus(facts, hardware, wishes, wanted)


def bound(plan: Plan, wanted: dict[str, Any], extra: Sequence[str], device: str) -> MemoryBound | None:
    """Return the memory at which the server is ended; None where the plan does not tell what it may take.

    It does not with GPUs, whose weights pass through the machine's memory, nor with flags or a KV cache of the user's.
    """
    if device != "cpu" or extra or not wanted.keys().isdisjoint(OWN_MEMORY):
        return None
    return memory_bound(plan, on_gpu=False)


def _on_cpu(facts: ModelFacts, hardware: Hardware, wishes: Wishes, wanted: dict[str, Any]) -> Plan:
    """Plan for the CPU build, which is for trials: without compilation it starts in half the time."""
    wide = wanted.get("dtype", "float32") in {"float32", "float", "auto"}
    weights = replace(facts, weights_bytes=facts.weights_bytes * (2 if wide else 1))
    processes = MemoryPart("processes", PROCESSES_BYTES, "three of Python and torch")
    found = make_plan(weights, wishes, free_memory(hardware, on_gpu=False), overhead=(processes,))
    tokens = found.context.value * found.parallel.value
    cache = math.ceil(facts.kv_bytes_per_token(4 if wide else 2) * tokens * 1.1 / CACHE_STEP) * CACHE_STEP
    settings: dict[str, Setting[Any]] = {
        "dtype": Setting("float32", "exact, and right on every CPU"),
        "enforce_eager": Setting(True, "a quicker start"),
        "kv_cache_memory_bytes": Setting(cache, f"{tokens} tokens; a part of all memory would be most of it"),
    }
    return replace(found, settings=_without(settings, wanted))


def _on_gpus(facts: ModelFacts, hardware: Hardware, wishes: Wishes, wanted: dict[str, Any]) -> Plan:
    if not hardware.gpus:  # GPUs of another maker, which are not detected
        return make_plan(facts, wishes, None)
    gpus = [_memory(gpu, hardware) for gpu in hardware.gpus]
    pipeline = wanted.get("pipeline_parallel_size") or 1
    tensor = wanted.get("tensor_parallel_size") or _gpus_needed(facts, gpus, pipeline, wanted)
    used = tensor * pipeline
    free, total = _least(gpus[:used])
    utilization = _utilization(free, total, wanted)
    share = int(total * utilization)
    reason = f"{utilization:.2f} of {in_gib(total)} on {used} GPU" + ("s" if used > 1 else "")
    if free < share:
        reason += f", and {in_gib(free)} of it free"
    found = make_plan(
        facts,
        wishes,
        MemoryPart("available", min(share, free) * used, reason),
        overhead=(MemoryPart("compute", COMPUTE_BYTES * used, f"{in_gib(COMPUTE_BYTES)} for each GPU"),),
    )
    settings: dict[str, Setting[Any]] = {
        "gpu_memory_utilization": Setting(utilization, f"{in_gib(free)} of {in_gib(total)} is free"),
        "tensor_parallel_size": Setting(tensor, "the fewest GPUs that hold the weights and one request"),
    }
    if wishes.parallel is not None:
        settings["max_num_seqs"] = Setting(wishes.parallel, "as asked for")
    return replace(found, settings=_without(settings, wanted), takes=share * used)


def _gpus_needed(facts: ModelFacts, gpus: list[tuple[int, int]], pipeline: int, wanted: dict[str, Any]) -> int:
    """Return the smallest tensor parallel size that holds the weights and one request; the largest if none does."""
    heads = max(facts.kv_heads, default=1) or 1
    possible = [size for size in (1, 2, 4, 8, 16) if size * pipeline <= len(gpus)]
    sizes = [size for size in possible if heads % size == 0 or size % heads == 0]
    request = facts.kv_bytes_per_token() * min(8192, facts.context_length)
    for size in sizes:
        free, total = _least(gpus[: size * pipeline])  # vLLM uses the first GPUs
        each = (facts.weights_bytes / size * 1.02 + request / min(size, heads)) / pipeline
        if each + COMPUTE_BYTES <= total * _utilization(free, total, wanted):
            return size
    return sizes[-1] if sizes else 1


def _utilization(free: int, total: int, wanted: dict[str, Any]) -> float:
    found: float | None = wanted.get("gpu_memory_utilization")
    return found or max(0.05, math.floor(100 * min(UTILIZATION, free / total - SLACK)) / 100)


def _least(gpus: list[tuple[int, int]]) -> tuple[int, int]:
    return min(free for free, _ in gpus), min(total for _, total in gpus)


def _memory(gpu: Gpu, hardware: Hardware) -> tuple[int, int]:
    """Return the free and total bytes. For a GPU that shares the machine's memory NVML reports none."""
    if gpu.memory_free is None or not gpu.memory_total:
        return hardware.memory_available, max(hardware.memory_total, 1)
    return gpu.memory_free, gpu.memory_total


def _without(settings: dict[str, Setting[Any]], wanted: dict[str, Any]) -> dict[str, Setting[Any]]:
    return {name: setting for name, setting in settings.items() if name not in wanted}
