"""Messages of vLLM at the end of a failing process, from its sources and from reports, with the expected diagnosis.

Other settings fix these failures. Most need GPUs, which no test run has.
"""

from __future__ import annotations

from llmdeploy.engines.diagnosis import Diagnosis
from llmdeploy.errors import Remedy


def config_set(words: str) -> str:
    return f"`llmdeploy config set engines.vllm.{words}`"


SMALLER = f"take a smaller or a quantised model, or more GPUs: {config_set('tensor_parallel_size 2')}"
MORE = f"{config_set('gpu_memory_utilization 0.95')}; where that is not enough, {SMALLER}"
ON_CPU = "(on a CPU it is main memory)"
OOM = (
    "CUDA out of memory. Tried to allocate 112.00 MiB. GPU 0 has a total capacity of 31.36 GiB of which 53.06 MiB is "
    "free. Including non-PyTorch memory, this process has 31.30 GiB memory in use."
)
KV_CACHE_NEEDED = (
    "ValueError: To serve at least one request with the models's max seq len (16384), ({needed} GiB KV cache is "
    "needed, "
    "which is larger than the available KV cache memory ({available} GiB). {estimate}Try increasing "
    "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
)
FREE = (
    "ValueError: Free memory on device {device}({free} GiB) on startup is less than desired GPU memory utilization "
    "({wanted} GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
KV_ON_CPU = (
    "ValueError: Available memory on node 0 (7.00/16.00 GiB) on kv cache allocation is less than requested memory for "
    "kv ({kv} GiB). Reduce CPU memory used by other processes."
)

MEMORY = [
    (
        [KV_CACHE_NEEDED.format(
            needed="2.00", available="1.50",
            estimate="Based on the available memory, the estimated maximum model length is 12288. ",
        )],
        Diagnosis(
            "a context of 16384 tokens needs 2.00 GiB of KV cache and 1.50 GiB are left for it",
            f"`--context 12288` fits; for more, {config_set('gpu_memory_utilization 0.95')} "
            f"or {config_set('kv_cache_dtype fp8')}",
            Remedy("max_model_len", 12288),
        ),
    ),
    (
        [KV_CACHE_NEEDED.format(needed="2.00", available="1.50", estimate="")],
        Diagnosis(
            "a context of 16384 tokens needs 2.00 GiB of KV cache and 1.50 GiB are left for it",
            f"halve it: {config_set('kv_cache_dtype fp8')}; or ask for less with `--context`",
            Remedy("kv_cache_dtype", "fp8"),
        ),
    ),
    (
        [KV_CACHE_NEEDED.format(needed="8.00", available="0.10", estimate="")],
        Diagnosis("a context of 16384 tokens needs 8.00 GiB of KV cache and 0.10 GiB are left for it", MORE),
    ),
    (  # an estimate that `--context` does not take
        [KV_CACHE_NEEDED.format(
            needed="8.00", available="0.10",
            estimate="Based on the available memory, the estimated maximum model length is 128. ",
        )],
        Diagnosis("a context of 16384 tokens needs 8.00 GiB of KV cache and 0.10 GiB are left for it", MORE),
    ),
    (
        ["ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be "
         "stored in "
         "KV cache (12352). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when "
         "initializing the "
         "engine."],
        Diagnosis(
            "a context of 32768 tokens is longer than the KV cache, 12352 tokens",
            f"`--context 12352` fits; for more, {config_set('gpu_memory_utilization 0.95')}",
            Remedy("max_model_len", 12352),
        ),
    ),
    (
        ["ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
         "initializing the engine."],
        Diagnosis(
            "the weights and vLLM's work space leave no memory for the KV cache",
            f"save the memory of CUDA graphs: {config_set('enforce_eager true')}; or {MORE}",
            Remedy("enforce_eager", True),
        ),
    ),
    (  # what `test_eager_mode_is_not_suggested_twice` checks in detail
        ["enforce_eager=True", "ValueError: No available memory for the cache blocks."],
        Diagnosis("the weights and vLLM's work space leave no memory for the KV cache", MORE),
    ),
    (
        ["ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token. Try "
         "increasing `gpu_memory_utilization`."],
        Diagnosis("the weights leave no memory for the KV cache of a single token", MORE),
    ),
    (
        [FREE.format(device="cuda:0 ", free="20.15/23.6", wanted="0.92, 21.7")],
        Diagnosis(
            "20.15 of the GPU's 23.6 GiB are free and vLLM wants 21.7 of them",
            f"ask for less: {config_set('gpu_memory_utilization 0.83')}, "
            "or end what holds the rest: `nvidia-smi` lists it",
            Remedy("gpu_memory_utilization", 0.83, lasts=False),
        ),
    ),
    (  # up to 0.11 without the device's name
        [FREE.format(device="", free="13.27/15.98", wanted="0.9, 14.39")],
        Diagnosis(
            "13.27 of the GPU's 15.98 GiB are free and vLLM wants 14.39 of them",
            f"ask for less: {config_set('gpu_memory_utilization 0.81')}, "
            "or end what holds the rest: `nvidia-smi` lists it",
            Remedy("gpu_memory_utilization", 0.81, lasts=False),
        ),
    ),
    (
        [FREE.format(device="cuda:0 ", free="3.1/23.6", wanted="0.92, 21.7")],
        Diagnosis(
            "other programs hold the GPU: 3.1 of its 23.6 GiB are free",
            "end them (`nvidia-smi` lists them), or take another GPU with `CUDA_VISIBLE_DEVICES`",
        ),
    ),
    (
        ["ValueError: Available memory on node 0 (4.85/18.0 GiB) on startup is less than desired CPU memory "
         "utilization "
         "(0.92, 16.56 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction of "
         "CPU memory "
         "reserved (despite its name)."],
        Diagnosis(
            "4.85 of this machine's 18.0 GiB are free and vLLM wants 16.56 of them",
            f"ask for less: {config_set('gpu_memory_utilization 0.24')} {ON_CPU}",
            Remedy("gpu_memory_utilization", 0.24, lasts=False),
        ),
    ),
    (
        [KV_ON_CPU.format(kv="9.0/10.0")],
        Diagnosis(
            "vLLM may use 10.0 GiB, which leaves 9.0 GiB for the KV cache (7.00 GiB of memory are free)",
            f"{config_set('gpu_memory_utilization 0.13')} {ON_CPU}",
            Remedy("gpu_memory_utilization", 0.13, lasts=False),
        ),
    ),
    (
        [KV_ON_CPU.format(kv="64.0")],
        Diagnosis(
            "the KV cache needs 64.0 GiB and 7.00 GiB are free",
            "ask for less with `--kv-cache-memory-bytes` in `engines.vllm.extra_args`",
        ),
    ),
    (
        ["ValueError: The worker already uses 2.61 GiB (model weights and runtime), more than the 1.60 GiB of "
         "CPU memory "
         "reserved. To resolve: increase `--gpu-memory-utilization` to more than 0.17."],
        Diagnosis(
            "the weights and vLLM itself use 2.61 GiB, more than the 1.60 GiB that it may use",
            f"{config_set('gpu_memory_utilization 0.22')} {ON_CPU}",
            Remedy("gpu_memory_utilization", 0.22, lasts=False),
        ),
    ),
    (
        ["AssertionError: Error in memory profiling. Initial free memory 20.58 GiB, current free memory 22.54 "
         "GiB. This "
         "happens when other processes sharing the same container release GPU memory while vLLM is profiling during "
         "initialization."],
        Diagnosis(
            "another program freed the GPU's memory while vLLM measured it (20.58 before, 22.54 after)",
            "start it again",
        ),
    ),
    (
        [f"torch.OutOfMemoryError: {OOM}",
         "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please "
         "try lowering "
         "`max_num_seqs` or `gpu_memory_utilization` when initializing the engine."],
        Diagnosis(
            "the GPU's memory ran out with 1024 requests at once",
            f"answer fewer at once: {config_set('max_num_seqs 512')}",
            Remedy("max_num_seqs", 512),
        ),
    ),
    (
        ["ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (854). Each decode sequence "
         "requires one "
         "Mamba cache block, so CUDA graph capture cannot proceed."],
        Diagnosis(
            "1024 requests at once need as many Mamba cache blocks and there are 854",
            f"answer fewer at once: {config_set('max_num_seqs 854')}",
            Remedy("max_num_seqs", 854),
        ),
    ),
    (
        ["RuntimeError: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:163"],
        Diagnosis(
            "the GPU's memory is taken by another server, so this one cannot wake up",
            "stop the other first: `llmdeploy stop`",
        ),
    ),
    (
        ["Capturing CUDA graphs (decode, FULL):   3%|▎         | 1/35", f"torch.OutOfMemoryError: {OOM}"],
        Diagnosis(
            "the GPU's memory ran out, and CUDA graphs take a part of it",
            f"turn them off: {config_set('enforce_eager true')}",
            Remedy("enforce_eager", True),
        ),
    ),
    (
        ["Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free memory "
         "for weights, "
         "increasing --tensor-parallel-size, or using --quantization. See "
         "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more tips. "
         f"(original error: {OOM})"],
        Diagnosis("the weights do not fit into the GPU's 31.36 GiB: 112.00 MiB more were asked for", SMALLER),
    ),
    (
        ["Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free memory "
         "for weights"],
        Diagnosis("the weights do not fit into the GPU's memory", SMALLER),
    ),
    (
        [f"torch.OutOfMemoryError: {OOM}"],
        Diagnosis("the GPU's memory ran out: 112.00 MiB more were asked for and 53.06 MiB of 31.36 GiB were "
        "free", SMALLER),
    ),
    (["RuntimeError: CUDA error: out of memory"], Diagnosis("the GPU's memory ran out", SMALLER)),
]  # fmt: skip

SETTINGS = [
    (
        ["pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
         "  Value error, max_num_batched_tokens (16) must be greater than or equal to max_num_seqs (128). "
         "[type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]"],
        Diagnosis(
            "`max_num_batched_tokens`, 16, is less than one token for each of 128 requests",
            f"answer fewer at once: {config_set('max_num_seqs 16')}",
            Remedy("max_num_seqs", 16),
        ),
    ),
    (
        ["  Value error, Total number of attention heads (14) must be divisible by tensor parallel size (4). "
         "[type=value_error]"],
        Diagnosis(
            "the model's 14 attention heads cannot be shared evenly by 4 GPUs",
            config_set("tensor_parallel_size 2"),
            Remedy("tensor_parallel_size", 2),
        ),
    ),
    (
        ["  Value error, World size (4) is larger than the number of available GPUs (1) in this node. If this is "
         "intentional and you are using:", "- ray, set '--distributed-executor-backend ray'.",
         "- multiprocessing, set '--nnodes' appropriately. [type=value_error]"],
        Diagnosis(
            "4 GPUs are asked for and this machine has 1",
            config_set("tensor_parallel_size 1"),
            Remedy("tensor_parallel_size", 1),
        ),
    ),
    (
        ["ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 "
         "GPU has "
         "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI, "
         "for example: "
         "--dtype=half."],
        Diagnosis(
            "this GPU (Tesla T4, compute capability 7.5) cannot compute in bfloat16",
            config_set("dtype half"),
            Remedy("dtype", "half"),
        ),
    ),
    (
        ["  Value error, The quantization method modelopt_mxfp8 is not supported for the current GPU. Minimum "
         "capability: "
         "100. Current capability: 90. [type=value_error]"],
        Diagnosis(
            "this GPU is too old for the quantisation `modelopt_mxfp8`, which needs compute capability 10.0",
            "take the model in another quantisation",
        ),
    ),
    (
        ["  Value error, Quantization method specified in the model config (fp8) does not match the "
         "quantization method "
         "specified in the `quantization` argument (awq). [type=value_error]"],
        Diagnosis(
            "the model is quantised with `fp8` and not with `awq`",
            "take `quantization` out of `engines.vllm`: vLLM sees a quantised model by itself",
        ),
    ),
    (
        ["ValueError: No common block size for 16 (CPU_ATTN: [MultipleOf(32)])"],
        Diagnosis(
            "the KV cache's blocks cannot hold 16 tokens on this device",
            "take `--block-size` out of `engines.vllm.extra_args`",
        ),
    ),
    (
        ["api_server.py: error: argument --dtype: invalid choice: 'nope' (choose from 'auto', 'half')"],
        Diagnosis(
            "vLLM does not take its arguments: argument --dtype: invalid choice: 'nope' (choose from 'auto', 'half')",
            "`llmdeploy config show` tells where it is set",
        ),
    ),
    (
        ["TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser"],
        Diagnosis(
            "`--enable-auto-tool-choice` needs the parser of the model's tool calls",
            "add `--tool-call-parser` to `engines.vllm.extra_args`",
        ),
    ),
    (
        ["ValueError: As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat "
         "template if the tokenizer does not define one."],
        Diagnosis(
            "the model's tokenizer has no chat template",
            "take the model's `-Instruct` version, or add `--chat-template` to `engines.vllm.extra_args`",
        ),
    ),
    (
        ["TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow "
         "weight loading "
         "for large models. Waited 600s (configured by VLLM_ENGINE_READY_TIMEOUT_S)."],
        Diagnosis(
            "vLLM gave up on its own start after 600 seconds",
            "give it longer: `llmdeploy serve --timeout 1800`",
        ),
    ),
]  # fmt: skip
