"""The variables of vLLM's process: those of the user that it gets, and those that llmdeploy sets."""

from __future__ import annotations

import math
import os
from pathlib import Path

IN_VLLM = Path(__file__).with_name("in_vllm")
"""The folder of the module that vLLM imports; nothing else is in it."""
KEY = "VLLM_API_KEY"
"""The variable with the server's key, which vLLM and `llmdeploy_key` read."""

INHERITED = (
    # Caches and compilers. No token of the Hub: the weights are on this machine.
    *("HF_HOME", "HF_HUB_*", "HF_MODULES_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_*", "TOKENIZERS_PARALLELISM"),
    *("SAFETENSORS_*", "CC", "CXX", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "MAX_JOBS"),
    *("NVCC_*", "TORCH_*", "TORCHINDUCTOR_*", "PYTORCH_*", "TRITON_*", "FLASHINFER_*", "CUTE_*", "XLA_*", "TPU_*"),
    *("GLOO_*", "TP_SOCKET_IFNAME", "RAY_*"),
    # vLLM's own: how it computes, compiles, caches and logs.
    *("VLLM_LOGGING_*", "VLLM_LOG_*", "VLLM_CONFIGURE_LOGGING", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"),
    *(
        "VLLM_ASSETS_CACHE*",
        "VLLM_TUNED_CONFIG_FOLDER",
        "VLLM_PLUGINS",
        "VLLM_ATTENTION_BACKEND",
        "VLLM_BATCH_INVARIANT",
    ),
    *("VLLM_USE_*", "VLLM_CPU_*", "VLLM_CUDA*", "VLLM_ROCM_*", "VLLM_XPU_*", "VLLM_XLA_*", "VLLM_TPU_*", "VLLM_HPU_*"),
    *("VLLM_FLASH*", "VLLM_TRITON_*", "VLLM_DEEP*", "VLLM_MOE_*", "VLLM_FUSED_MOE_*", "VLLM_MLA_*", "VLLM_MARLIN_*"),
    *("VLLM_NVFP4_*", "VLLM_MXFP*", "VLLM_BLOCKSCALE_*", "VLLM_ALLREDUCE_*", "VLLM_ALL2ALL_BACKEND", "VLLM_NCCL_*"),
    *("VLLM_ENABLE_*", "VLLM_DISABLE_*", "VLLM_DISABLED_KERNELS", "VLLM_COMPILE_*", "VLLM_FORCE_AOT_LOAD"),
    *("VLLM_WORKER_*", "VLLM_PP_*", "VLLM_SKIP_P2P_CHECK", "VLLM_WSL2_*", "VLLM_WEIGHT_OFFLOADING_*", "VLLM_MEMORY_*"),
    *("VLLM_MM_*", "VLLM_V1_*", "VLLM_XGRAMMAR_CACHE_MB", "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "VLLM_RPC_TIMEOUT"),
    *("VLLM_ENGINE_ITERATION_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"),
    # A front end without the key, other sources of models, further routes, and answers that are kept without a bound.
    *("-VLLM_USE_RUST_FRONTEND", "-VLLM_USE_MODELSCOPE", "-VLLM_USE_PRECOMPILED*", "-VLLM_ENABLE_COHERE_API"),
    *("-VLLM_ENABLE_RESPONSES_API_STORE", "-HF_HUB_*TOKEN*"),
)
"""Patterns of the user's variables that vLLM gets: see `engines.environment`."""


def variables(device: str, timeout: float) -> dict[str, str]:
    """Return the variables that llmdeploy sets, which go before the user's; `timeout`: seconds of a start."""
    ours = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        # The weights are on this machine; asking the Hub would only take time.
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        # The server must not import modules of the current folder.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(IN_VLLM), os.environ.get("PYTHONPATH")))),
        # vLLM must not give up before llmdeploy does.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(max(timeout, 600))),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        # The plan and vLLM must count GPUs in the same order; CUDA by itself counts the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    return {**ours, "VLLM_TARGET_DEVICE": "cpu"} if device == "cpu" else ours
