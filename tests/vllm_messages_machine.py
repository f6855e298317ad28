"""Messages of vLLM at the end of a failing process, from its sources and from reports, with the expected diagnosis.

The model or the machine is at fault here. Most failures need GPUs, drivers or clusters, which no test run has.
"""

from __future__ import annotations

from llmdeploy.engines.diagnosis import Diagnosis

NEWER = "take a newer one: `pip install --upgrade vllm`"
DRIVER = "update the driver, or install the vLLM that suits it: `uv pip install --upgrade vllm --torch-backend=auto`"
TOKEN = "accept its terms on its page at the Hub, then set `HF_TOKEN` to an access token of that account"
SHARED_MEMORY = "give the container more: `docker run --ipc=host`, or `--shm-size=16g`"
COMPILER = "install it: `sudo apt install build-essential python3-dev`"

MODEL = [
    (
        ["OSError: It looks like the config file at '/srv/m/config.json' is not a valid JSON file."],
        Diagnosis("the model's `/srv/m/config.json` is damaged", "fetch the model again"),
    ),
    (
        ["RuntimeError: Failed to load the model config. If the model is a custom model not yet available in the "
         "HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM or using the "
         "`--trust-remote-code` flag in the CLI."],
        Diagnosis(
            "the model comes with Python code, which vLLM does not run without permission",
            "read that code; if you trust it: `llmdeploy serve` again with `--trust-remote-code`",
        ),
    ),
    (
        ["  Value error, Model architectures ['Qwen9ForCausalLM'] failed to be inspected. Please check the logs "
         "for more "
         "details. [type=value_error]"],
        Diagnosis(
            "vLLM cannot load its own code for the architecture `Qwen9ForCausalLM`",
            "`llmdeploy logs` has the reason, above this error",
        ),
    ),
    (
        ["  Value error, Model architecture MotifForCausalLM was supported in vLLM until v0.10.2, and is not supported "
         "anymore. Please use an older version of vLLM if you want to use this model architecture. [type=value_error]"],
        Diagnosis(
            "vLLM knew the architecture `MotifForCausalLM` up to 0.10.2 only",
            "install that one: `pip install vllm==0.10.2`",
        ),
    ),
    (
        ["huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)", "",
         "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.1-8B/resolve/main/config.json.",
         "Access to model meta-llama/Llama-3.1-8B is restricted. You must have access to it and be authenticated to "
         "access it. Please log in."],
        Diagnosis("the Hub gives `meta-llama/Llama-3.1-8B` only to those who accept its terms", TOKEN),
    ),
    (
        ["OSError: You are trying to access a gated repo.", "Make sure to have access to it at "
         "https://huggingface.co/meta-llama/Llama-3.1-8B."],
        Diagnosis("the Hub gives this model only to those who accept its terms", TOKEN),
    ),
    (
        ["huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-6)", "",
         "Repository Not Found for url: https://huggingface.co/api/models/some-org/some-model/revision/main.",
         "Please make sure you specified the correct `repo_id` and `repo_type`."],
        Diagnosis(
            "the Hub has no `some-org/some-model`, or it is private",
            "check the name; for a private repository set `HF_TOKEN` to an access token",
        ),
    ),
]  # fmt: skip

MACHINE = [
    (
        ["RuntimeError: The NVIDIA driver on your system is too old (found version 12040). Please update your "
         "GPU driver"],
        Diagnosis("the NVIDIA driver is too old for this vLLM", DRIVER),
    ),
    (
        ["RuntimeError: CUDA driver version is insufficient for CUDA runtime version"],
        Diagnosis("the NVIDIA driver is too old for this vLLM", DRIVER),
    ),
    (
        ["torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported toolchain."],
        Diagnosis("the NVIDIA driver is too old for this vLLM's kernels", DRIVER),
    ),
    (
        ["torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device"],
        Diagnosis(
            "this vLLM was not built for this GPU",
            "a new GPU needs a newer vLLM (`pip install --upgrade vllm`), an old one an older",
        ),
    ),
    (
        ["ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"],
        Diagnosis(
            "the NVIDIA driver is missing (`libcuda.so.1`)",
            "install the driver; in a container: `docker run --gpus all`",
        ),
    ),
    (
        ["RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to "
         "turn on verbose logging to help debug the issue."],
        Diagnosis(
            "vLLM finds no GPU that it can use",
            "see what `nvidia-smi` says; without a GPU: `llmdeploy serve --engine llamacpp`",
        ),
    ),
    (
        ["RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use "
         "the 'spawn' start method"],
        Diagnosis(
            "vLLM started its workers in a way that CUDA does not allow",
            "`VLLM_WORKER_MULTIPROC_METHOD=spawn llmdeploy serve`",
        ),
    ),
    (
        ["torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
         "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5",
         "Error while creating shared memory segment /dev/shm/nccl-dGkq6x (size 9637888), error: No space left "
         "on device"],
        Diagnosis("the shared memory that GPUs talk through is full (`/dev/shm`)", SHARED_MEMORY),
    ),
    (
        ["RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"],
        Diagnosis(
            "the GPUs cannot talk to each other (NCCL: unhandled system error)",
            f"`NCCL_DEBUG=INFO llmdeploy serve` tells why; in a container {SHARED_MEMORY}",
        ),
    ),
    (
        ["RuntimeError: CUDA error: peer access is not supported between these two devices"],
        Diagnosis("these GPUs cannot talk to each other directly", "`NCCL_P2P_DISABLE=1 llmdeploy serve`"),
    ),
    (
        ["/tmp/tmp0abc/cuda_utils.c:5:10: fatal error: Python.h: No such file or directory",
         "subprocess.CalledProcessError: Command '['/usr/bin/gcc', '/tmp/tmp0abc/cuda_utils.c', '-O3']' "
         "returned non-zero "
         "exit status 1."],
        Diagnosis("Triton compiles for this GPU, but Python's header files are missing", COMPILER),
    ),
    (
        ["RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set "
         "triton.knobs.build.impl."],
        Diagnosis("Triton compiles for this GPU, but the C compiler is missing", COMPILER),
    ),
    (
        ["ptxas fatal   : Value 'sm_110a' is not defined for option 'gpu-name'"],
        Diagnosis(
            "Triton's assembler is too old for this GPU (`sm_110a`)",
            "`TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas llmdeploy serve`",
        ),
    ),
    (
        ["RuntimeError: Cannot provide a placement group requiring 8 GPUs (placement_group_specs=[]) within "
         "1800 seconds. "
         "Tensor parallel size may exceed available GPUs in your cluster. Check resources with `ray status`"],
        Diagnosis("the Ray cluster does not have 8 GPUs free", "`ray status` shows what it has"),
    ),
    (
        ["ValueError: current platform cpu does not support ray."],
        Diagnosis(
            "vLLM cannot use Ray on this kind of device (`cpu`)",
            "take `--distributed-executor-backend` out of `engines.vllm.extra_args`",
        ),
    ),
    (
        ["RuntimeError: operator torchvision::nms does not exist"],
        Diagnosis(
            "torch and torchvision are not of the same build",
            "`pip uninstall torchvision torchaudio torchcodec`: models of text work without",
        ),
    ),
    (
        ["importlib.metadata.PackageNotFoundError: No package metadata was found for vllm"],
        Diagnosis(
            "the package `vllm` is installed under another name, so its own program cannot start",
            "take an environment that llmdeploy makes: `llmdeploy engines install vllm`, without a GPU `--cpu` too",
        ),
    ),
    (
        ["Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."],
        Diagnosis(
            "a process of vLLM was killed (SIGKILL): most likely this machine's memory ran out",
            "`dmesg` shows whether it did; free memory, or take a smaller model",
        ),
    ),
    (
        ["RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
         "{'EngineCore_DP0': -9}"],
        Diagnosis(
            "a process of vLLM was killed (SIGKILL): most likely this machine's memory ran out",
            "`dmesg` shows whether it did; free memory, or take a smaller model",
        ),
    ),
    (
        ["Worker proc VllmWorker-0 died unexpectedly (exit code: -4), shutting down executor."],
        Diagnosis(
            "vLLM used an instruction that this processor lacks or may not use (SIGILL)",
            "where `enforce_eager` is set, set it to `false`; else `llmdeploy config set engines.vllm.dtype float32`",
        ),
    ),
    (
        ["Worker proc VllmWorker-0 died unexpectedly (exit code: -7), shutting down executor."],
        Diagnosis(
            "a process of vLLM could not get memory (SIGBUS): most likely `/dev/shm` is full",
            SHARED_MEMORY,
        ),
    ),
    (
        ["Worker proc VllmWorker-0 died unexpectedly (exit code: -11), shutting down executor."],
        Diagnosis(
            "a process of vLLM crashed (SIGSEGV)",
            "`llmdeploy logs` has its last lines; a newer vLLM or driver may help",
        ),
    ),
    (
        ["Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor."],
        Diagnosis(
            "a process of vLLM died without a reason in the log",
            "if memory ran out, `dmesg` shows it; `llmdeploy logs` has its last lines",
        ),
    ),
]  # fmt: skip
