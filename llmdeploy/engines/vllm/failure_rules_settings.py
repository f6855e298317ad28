"""The failures of vLLM that come from settings that do not suit the model or the machine: other settings fix them.

The special rules stand before the general ones. Messages change between releases, so a pattern is the part of a message
that stayed the same from 0.6 to 0.33.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from llmdeploy.engines.diagnosis import FailureRule
from llmdeploy.errors import Remedy

Words = Mapping[str, str]

MOST_UTILIZATION = 0.95
UTILIZATION_MARGIN = 0.02
"""The part of the memory that is left free: the free memory changes a little while vLLM starts."""
CPU_UTILIZATION = 0.5
"""The part of the memory of a machine without a GPU: other programs need the rest."""
SMALLEST_CONTEXT = 256
"""The smallest value of `--context`."""


def _number(key: str, group: str) -> Callable[[Words], Remedy]:
    """Return a remedy that takes the number in vLLM's message."""
    return lambda words: Remedy(key, int(words[group]))


def _always(key: str, value: str | bool) -> Callable[[Words], Remedy]:
    return lambda words: Remedy(key, value)


def _estimated_context(words: Words) -> Remedy | None:
    estimate = int(words["estimate"])
    return Remedy("max_model_len", estimate) if estimate >= SMALLEST_CONTEXT else None


def _half_as_wide(words: Words) -> Remedy | None:
    """Halve the KV cache with 8-bit numbers, if that is enough."""
    return Remedy("kv_cache_dtype", "fp8") if float(words["needed"]) <= 2 * float(words["available"]) else None


def _utilization(fraction: float) -> Remedy | None:
    """Return a remedy that uses this fraction of a device's memory, rounded down because it must be free."""
    value = math.floor(min(fraction, MOST_UTILIZATION) * 100) / 100
    return Remedy("gpu_memory_utilization", value, lasts=False) if value > 0 else None


def _free_on_gpu(words: Words) -> Remedy | None:
    """Use the free memory. None if it is less than half of what vLLM wanted: the weights would not fit."""
    free, total, wanted = (float(words[name]) for name in ("free", "total", "wanted"))
    return _utilization(free / total - UTILIZATION_MARGIN) if total and free >= wanted / 2 else None


def _free_on_cpu(words: Words) -> Remedy | None:
    free, total = float(words["free"]), float(words["total"])
    return _utilization(min(CPU_UTILIZATION, free / total - UTILIZATION_MARGIN)) if total else None


def _more_than_used(words: Words) -> Remedy | None:
    """Use the memory that the worker holds, plus a KV cache of 1 GiB or half of the free memory."""
    free, total, kv_cache, requested = (float(words[name]) for name in ("free", "total", "kv", "requested"))
    return _utilization((requested - kv_cache + min(1, free / 2)) / total + 0.01) if total else None


def _beyond(words: Words) -> Remedy | None:
    return _utilization(float(words["least"]) + 0.05)


def _fewer_sequences(words: Words) -> Remedy | None:
    half = int(words["sequences"]) // 2
    return Remedy("max_num_seqs", half) if half else None


def _dividing(words: Words) -> Remedy | None:
    """Use the largest number of GPUs, up to the requested one, that divides the number of heads."""
    heads, gpus = int(words["heads"]), int(words["gpus"])
    shares = [count for count in range(1, min(heads, gpus, 1024) + 1) if heads % count == 0]
    return Remedy("tensor_parallel_size", shares[-1]) if shares else None


def _set(key: str, value: str) -> str:
    return f"`llmdeploy config set engines.vllm.{key} {value}`"


SMALLER = "take a smaller or a quantised model, or more GPUs: " + _set("tensor_parallel_size", "2")
MORE_KV_MEMORY = f"{_set('gpu_memory_utilization', '0.95')}; where that is not enough, {SMALLER}"


def _numbers(pattern: str) -> str:
    """Return a pattern in which each `#name` is a group that matches a number."""
    return re.sub(r"#(\w+)", r"(?P<\1>-?\\d{1,9}\\.?\\d{0,9})", pattern)


KV_CACHE_NEEDED = _numbers(
    r"max seq len \((?P<context>\d+)\), \(#needed GiB KV cache is needed.* available KV cache memory \(#available GiB\)"
)
FREE_ON_GPU = _numbers(
    r"Free memory on device (?:\S+ )?\(#free/#total GiB\) on startup is less than desired "
    r"GPU memory utilization \(#utilization, #wanted GiB\)"
)

NEWER = "update vLLM: `pip install --upgrade vllm`"
EXTRA_ARGS = "correct it in `engines.vllm.extra_args`"

MEMORY = (
    FailureRule(
        KV_CACHE_NEEDED + r".*estimated maximum model length is (?P<estimate>\d{1,12})",
        "a context of {context} tokens needs {needed} GiB of KV cache and {available} GiB are left for it",
        "`--context {value}` fits; for more, " + _set("gpu_memory_utilization", "0.95") + " or "
        + _set("kv_cache_dtype", "fp8"),
        _estimated_context,
    ),
    FailureRule(
        KV_CACHE_NEEDED,
        "a context of {context} tokens needs {needed} GiB of KV cache and {available} GiB are left for it",
        "halve it: " + _set("kv_cache_dtype", "fp8") + "; or ask for less with `--context`",
        _half_as_wide,
    ),
    FailureRule(
        KV_CACHE_NEEDED,
        "a context of {context} tokens needs {needed} GiB of KV cache and {available} GiB are left for it",
        MORE_KV_MEMORY,
    ),
    FailureRule(
        r"max seq len \((?P<context>\d+)\) is larger than the maximum number of tokens that can be stored in "
        r"(?:the )?KV cache \((?P<tokens>\d{1,12})\)",
        "a context of {context} tokens is longer than the KV cache, {tokens} tokens",
        "`--context {value}` fits; for more, " + _set("gpu_memory_utilization", "0.95"),
        _number("max_model_len", "tokens"),
    ),
    FailureRule(
        r"No available memory for the cache blocks",
        "the weights and vLLM's work space leave no memory for the KV cache",
        MORE_KV_MEMORY,
        log_pattern=r"enforce_eager=True|'enforce_eager': True",
    ),
    FailureRule(
        r"No available memory for the cache blocks",
        "the weights and vLLM's work space leave no memory for the KV cache",
        "save the memory of CUDA graphs: " + _set("enforce_eager", "true") + "; or " + MORE_KV_MEMORY,
        _always("enforce_eager", True),
    ),
    FailureRule(
        r"Cannot auto-fit max_model_len",
        "the weights leave no memory for the KV cache of a single token",
        MORE_KV_MEMORY,
    ),
    FailureRule(
        FREE_ON_GPU,
        "{free} of the GPU's {total} GiB are free and vLLM wants {wanted} of them",
        "ask for less: " + _set("gpu_memory_utilization", "{value}") + ", or end what holds the rest: `nvidia-smi` "
        "lists it",
        _free_on_gpu,
    ),
    FailureRule(
        FREE_ON_GPU,
        "other programs hold the GPU: {free} of its {total} GiB are free",
        "end them (`nvidia-smi` lists them), or take another GPU with `CUDA_VISIBLE_DEVICES`",
    ),
    FailureRule(
        _numbers(
            r"Available memory on node \S+ \(#free/#total GiB\) on startup is less than desired "
            r"CPU memory utilization \(#utilization, #wanted GiB\)"
        ),
        "{free} of this machine's {total} GiB are free and vLLM wants {wanted} of them",
        "ask for less: " + _set("gpu_memory_utilization", "{value}") + " (on a CPU it is main memory)",
        _free_on_cpu,
    ),
    FailureRule(
        _numbers(
            r"Available memory on node \S+ \(#free/#total GiB\) on kv cache allocation is less than "
            r"requested memory for kv \(#kv/#requested GiB\)"
        ),
        "vLLM may use {requested} GiB, which leaves {kv} GiB for the KV cache ({free} GiB of memory are free)",
        _set("gpu_memory_utilization", "{value}") + " (on a CPU it is main memory)",
        _more_than_used,
    ),
    FailureRule(
        _numbers(
            r"Available memory on node \S+ \(#free/#total GiB\) on kv cache allocation is less than "
            r"requested memory for kv \(#kv GiB\)"
        ),
        "the KV cache needs {kv} GiB and {free} GiB are free",
        "ask for less with `--kv-cache-memory-bytes` in `engines.vllm.extra_args`",
    ),
    FailureRule(
        _numbers(
            r"The worker already uses #used GiB.{0,300}more than the #reserved GiB of CPU memory reserved"
            r".{0,300}to more than #least"
        ),
        "the weights and vLLM itself use {used} GiB, more than the {reserved} GiB that it may use",
        _set("gpu_memory_utilization", "{value}") + " (on a CPU it is main memory)",
        _beyond,
    ),
    FailureRule(
        _numbers(
            r"Error in memory profiling\. Initial free memory #before(?: GiB)?, current free memory "
            r"#after"
        ),
        "another program freed the GPU's memory while vLLM measured it ({before} before, {after} after)",
        "start it again",
    ),
    FailureRule(
        r"out of memory occurred when warming up (?:the )?\w+ with (?P<sequences>\d{1,9}) dummy requests",
        "the GPU's memory ran out with {sequences} requests at once",
        "answer fewer at once: " + _set("max_num_seqs", "{value}"),
        _fewer_sequences,
    ),
    FailureRule(
        r"max_num_seqs \((?P<sequences>\d+)\) exceeds available Mamba cache blocks \((?P<blocks>[1-9]\d{0,9})\)",
        "{sequences} requests at once need as many Mamba cache blocks and there are {blocks}",
        "answer fewer at once: " + _set("max_num_seqs", "{value}"),
        _number("max_num_seqs", "blocks"),
    ),
    FailureRule(
        r"CUDA Error: out of memory at \S*cumem_allocator",
        "the GPU's memory is taken by another server, so this one cannot wake up",
        "stop the other first: `llmdeploy stop`",
    ),
    FailureRule(
        r"[Oo]ut ?[Oo]f ?[Mm]emory",
        "the GPU's memory ran out, and CUDA graphs take a part of it",
        "turn them off: " + _set("enforce_eager", "true"),
        _always("enforce_eager", True),
        log_pattern=r"Capturing (?:the model for )?(?:CUDA graph|cudagraph)",
    ),
    FailureRule(
        r"not enough GPU memory.*Tried to allocate (?P<more>\d{1,9}\.?\d* \wiB)\. GPU \d+ has a total capacity of "
        r"(?P<total>\d{1,9}\.?\d* GiB)",
        "the weights do not fit into the GPU's {total}: {more} more were asked for",
        SMALLER,
    ),
    FailureRule(
        r"Failed to load model - not enough GPU memory", "the weights do not fit into the GPU's memory", SMALLER
    ),
    FailureRule(
        r"OutOfMemoryError: .*Tried to allocate (?P<more>\d{1,9}\.?\d* \wiB)\. GPU \d+ has a total capacity of "
        r"(?P<total>\d{1,9}\.?\d* GiB) of which (?P<free>\d{1,9}\.?\d* \wiB) is free",
        "the GPU's memory ran out: {more} more were asked for and {free} of {total} were free",
        SMALLER,
    ),
    FailureRule(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory", "the GPU's memory ran out", SMALLER),
)  # fmt: skip

SETTINGS = (
    FailureRule(
        r"User-specified max_model_len \((?P<context>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<own>\d{1,9})",
        "a context of {context} tokens is longer than the model's own",
        "ask for at most that: `--context {value}`",
        _number("max_model_len", "own"),
    ),
    FailureRule(
        r"max_num_batched_tokens \((?P<tokens>[1-9]\d{0,9})\) must be greater than or equal to max_num_seqs "
        r"\((?P<sequences>\d+)\)",
        "`max_num_batched_tokens`, {tokens}, is less than one token for each of {sequences} requests",
        "answer fewer at once: " + _set("max_num_seqs", "{value}"),
        _number("max_num_seqs", "tokens"),
    ),
    FailureRule(
        r"Total number of attention heads \((?P<heads>\d{1,9})\) must be divisible by tensor parallel size "
        r"\((?P<gpus>\d{1,9})\)",
        "the model's {heads} attention heads cannot be shared evenly by {gpus} GPUs",
        _set("tensor_parallel_size", "{value}"),
        _dividing,
    ),
    FailureRule(
        r"World size \((?P<asked>\d+)\) is larger than the number of available GPUs \((?P<gpus>[1-9]\d{0,5})\)",
        "{asked} GPUs are asked for and this machine has {gpus}",
        _set("tensor_parallel_size", "{value}"),
        _number("tensor_parallel_size", "gpus"),
    ),
    FailureRule(
        r"Bfloat16 is only supported on GPUs.{0,300}Your (?P<gpu>.{1,80}) GPU has compute capability (?P<has>\d+\.\d+)",
        "this GPU ({gpu}, compute capability {has}) cannot compute in bfloat16",
        _set("dtype", "{value}"),
        _always("dtype", "half"),
    ),
    FailureRule(
        r"quantization method (?P<name>.+?) is not supported for the current GPU\. Minimum capability: "
        r"(?P<major>\d+)(?P<minor>\d)\b",
        "this GPU is too old for the quantisation `{name}`, which needs compute capability {major}.{minor}",
        "take the model in another quantisation",
    ),
    FailureRule(
        r"Cannot find the config file for (?P<name>\w+)",
        "the model is not quantised with `{name}`",
        "take `quantization` out of `engines.vllm`: vLLM sees a quantised model by itself",
    ),
    FailureRule(
        r"Quantization method specified in the model config \((?P<own>[^)]{0,80})\) does not match"
        r".{0,200}\((?P<asked>[^)]{0,80})\)",
        "the model is quantised with `{own}` and not with `{asked}`",
        "take `quantization` out of `engines.vllm`: vLLM sees a quantised model by itself",
    ),
    FailureRule(
        r"No common block size for (?P<size>\d+)",
        "the KV cache's blocks cannot hold {size} tokens on this device",
        "take `--block-size` out of `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"error: unrecognized arguments: (?P<words>.+)",
        "this vLLM does not know `{words}`",
        "take it out of `engines.vllm.extra_args`, or " + NEWER,
    ),
    FailureRule(
        r"error: (?P<words>argument -.+)",
        "vLLM does not take its arguments: {words}",
        "`llmdeploy config show` tells where it is set",
    ),
    FailureRule(
        r"invalid tool call parser: (?P<name>\S+)",
        "this vLLM has no tool call parser `{name}`",
        EXTRA_ARGS + "; `vllm serve --help=tool-call-parser` lists them",
    ),
    FailureRule(
        r"--enable-auto-tool-choice requires --tool-call-parser",
        "`--enable-auto-tool-choice` needs the parser of the model's tool calls",
        "add `--tool-call-parser` to `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"supplied chat template(?: string)? \((?P<file>.*?)\) (?:appears path-like|looks like a file path)",
        "the chat template does not exist: `{file}`",
        EXTRA_ARGS,
    ),
    FailureRule(
        r"default chat template is no longer allowed",
        "the model's tokenizer has no chat template",
        "take the model's `-Instruct` version, or add `--chat-template` to `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"Sleep mode is not supported on current platform",
        "vLLM's sleep mode needs a GPU",
        "take `--enable-sleep-mode` out of `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"[Aa]ddress already in use|error while attempting to bind",
        "another program took the port while the server started",
        "give another with `--port`",
    ),
    FailureRule(
        r"Timed out waiting for engine core processes to start.*Waited (?P<seconds>\d+)s",
        "vLLM gave up on its own start after {seconds} seconds",
        "give it longer: `llmdeploy serve --timeout 1800`",
    ),
)  # fmt: skip
