"""The settings of vLLM: the table `engines.vllm` of the configuration, under vLLM's own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmdeploy.config_types import Arguments, Fraction, Length, Program, Switch, Text, Whole, setting

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class VllmSettings:
    python: str | None = setting(Program(), None, "the path of the Python that has vLLM (none: found)")
    max_model_len: int | str | None = setting(Length(1), None, "the context of vLLM, where `context` names none")
    gpu_memory_utilization: float | None = setting(
        Fraction(), None, "the part of a GPU that vLLM takes (none: what is free)"
    )
    kv_cache_memory_bytes: str | None = setting(
        Text(), None, "the size of vLLM's KV cache, such as `4G` (none: the rest)"
    )
    kv_cache_dtype: str | None = setting(Text(), None, "the type of vLLM's KV cache, such as `fp8` (none: the model's)")
    tensor_parallel_size: int | None = setting(Whole(1, 1024), None, "the GPUs that share each layer (none: as needed)")
    pipeline_parallel_size: int | None = setting(Whole(1, 1024), None, "the groups of GPUs that share layers (none: 1)")
    dtype: str | None = setting(Text(), None, "the type vLLM computes in (none: the model's)")
    quantization: str | None = setting(Text(), None, "the quantization of the weights (none: the model's)")
    max_num_seqs: int | None = setting(Whole(1), None, "the requests in one step of vLLM's (none: its own)")
    limit_mm_per_prompt: str | None = setting(Text(), None, 'the images a request may hold, as JSON: `{"image": 4}`')
    enforce_eager: bool | None = setting(Switch(), None, "whether to start without compiling and graphs (none: no)")
    extra_args: Sequence[str] | None = setting(Arguments(), None, "arguments that `vllm serve` gets as they are")
