"""The failures of vLLM that come from the model or the machine: no setting of vLLM fixes them.

The special rules stand before the general ones.
"""

from __future__ import annotations

from llmdeploy.engines.diagnosis import FailureRule

NEWER = "take a newer one: `pip install --upgrade vllm`"
DRIVER = "update the driver, or install the vLLM that suits it: `uv pip install --upgrade vllm --torch-backend=auto`"
TOKEN = "accept its terms on its page at the Hub, then set `HF_TOKEN` to an access token of that account"
FETCH_AGAIN = "fetch the model again"
NO_PAIR = "take the model from its own repository: these weights and their `config.json` do not belong together"
CONFIG_FOLDER = "give a folder with a `config.json`, or `owner/name` at the Hub"
SHARED_MEMORY = "give the container more: `docker run --ipc=host`, or `--shm-size=16g`"
COMPILER = "install it: `sudo apt install build-essential python3-dev`"

MODEL = (
    FailureRule(
        r"config file at '(?P<file>[^']*\.gguf)' is not a valid JSON file",
        "vLLM reads no GGUF without a plugin, so not `{file}`",
        "run it on llama.cpp: `llmdeploy serve --engine llamacpp`, or `pip install vllm-gguf-plugin`",
    ),
    FailureRule(
        r"config file at '(?P<file>[^']*)' is not a valid JSON file",
        "the model's `{file}` is damaged",
        FETCH_AGAIN,
    ),
    FailureRule(
        r"contains custom code which must be executed|consider setting `trust_remote_code=True`",
        "the model comes with Python code, which vLLM does not run without permission",
        "read that code; if you trust it: `llmdeploy serve` again with `--trust-remote-code`",
    ),
    FailureRule(
        r"model type `(?P<name>[^`]*)` but Transformers does not recognize this architecture",
        "this vLLM does not know models of the type `{name}`",
        NEWER + ", or `pip install --upgrade transformers`",
    ),
    FailureRule(
        r"Model architectures \[.*(?:are not supported for now|failed to be inspected)",
        "the model's own code is not complete: `{file}` is missing",
        FETCH_AGAIN,
        log_pattern=r"does not appear to have a file named (?P<file>[\w./-]+\.py)",
    ),
    FailureRule(
        r"Model architectures \['(?P<name>[^']*)'.*failed to be inspected",
        "vLLM cannot load its own code for the architecture `{name}`",
        "`llmdeploy logs` has the reason, above this error",
    ),
    FailureRule(
        r"Model architectures? \W*(?P<name>\w+)\W* was supported in vLLM until v?(?P<version>[\d.]+\d)",
        "vLLM knew the architecture `{name}` up to {version} only",
        "install that one: `pip install vllm=={version}`",
    ),
    FailureRule(
        r"Model architectures \['(?P<name>[^']*)'.*are not supported for now",
        "this vLLM does not know the architecture `{name}`",
        NEWER + ", or add `--model-impl transformers` to `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"Cannot access gated repo for url \S+?(?:huggingface\.co|hf\.co)/(?:api/models/)?(?P<repo>[^/\s]+/[^/\s]+)",
        "the Hub gives `{repo}` only to those who accept its terms",
        TOKEN,
    ),
    FailureRule(
        r"GatedRepoError|trying to access a gated repo|Access to model \S+ is restricted",
        "the Hub gives this model only to those who accept its terms",
        TOKEN,
    ),
    FailureRule(
        r"Repository Not Found for url: \S+?(?:huggingface\.co|hf\.co)/(?:api/models/)?(?P<repo>[^/\s]+/[^/\s]+)",
        "the Hub has no `{repo}`, or it is private",
        "check the name; for a private repository set `HF_TOKEN` to an access token",
    ),
    FailureRule(
        r"Invalid repository ID or local directory specified: '(?P<name>[^']*)'",
        "`{name}` is neither a model folder (it has no `config.json`) nor a repository on the Hub",
        CONFIG_FOLDER,
    ),
    FailureRule(
        r"Repo id must be in the form .*: '(?P<name>[^']*)'",
        "the folder of the model does not exist: `{name}`",
        CONFIG_FOLDER,
    ),
    FailureRule(
        r"Cannot find an appropriate cached snapshot folder",
        "the model is not on this machine and vLLM may not use the network",
        "`llmdeploy serve` fetches it by its name at the Hub",
    ),
    FailureRule(
        r"SafetensorError: Error while deserializing header: (?P<words>.+)",
        "a file of the weights is truncated or damaged: {words}",
        FETCH_AGAIN,
    ),
    FailureRule(
        r"Cannot find any model weights with `(?P<name>[^`]*)`", "the folder `{name}` has no weights", FETCH_AGAIN
    ),
    FailureRule(
        r"Following weights were not initialized from checkpoint: \{'(?P<name>[^']*)'",
        "the weights lack tensors that `config.json` asks for, one of them `{name}`",
        NO_PAIR,
    ),
    FailureRule(
        r"start \((?P<start>\d+)\) \+ length \((?P<length>\d+)\) exceeds dimension size \((?P<size>\d+)\)",
        "a tensor of the weights has {size} rows where `config.json` asks for {length}",
        NO_PAIR,
    ),
)

MACHINE = (
    FailureRule(
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient",
        "the NVIDIA driver is too old for this vLLM",
        DRIVER,
    ),
    FailureRule(
        r"provided PTX was compiled with an unsupported toolchain",
        "the NVIDIA driver is too old for this vLLM's kernels",
        DRIVER,
    ),
    FailureRule(
        r"no kernel image is available for execution on the device",
        "this vLLM was not built for this GPU",
        "a new GPU needs a newer vLLM (`pip install --upgrade vllm`), an old one an older",
    ),
    FailureRule(
        r"libcuda\.so\.1: cannot open shared object file",
        "the NVIDIA driver is missing (`libcuda.so.1`)",
        "install the driver; in a container: `docker run --gpus all`",
    ),
    FailureRule(
        r"Failed to infer device type",
        "vLLM finds no GPU that it can use",
        "see what `nvidia-smi` says; without a GPU: `llmdeploy serve --engine llamacpp`",
    ),
    FailureRule(
        r"Cannot re-initialize CUDA in forked subprocess",
        "vLLM started its workers in a way that CUDA does not allow",
        "`VLLM_WORKER_MULTIPROC_METHOD=spawn llmdeploy serve`",
    ),
    FailureRule(
        r"No space left on device.*(?:/dev/shm|nccl)|/dev/shm/\S*.*No space left on device",
        "the shared memory that GPUs talk through is full (`/dev/shm`)",
        SHARED_MEMORY,
    ),
    FailureRule(
        r"peer access is not supported",
        "these GPUs cannot talk to each other directly",
        "`NCCL_P2P_DISABLE=1 llmdeploy serve`",
    ),
    FailureRule(
        r"NCCL error.*(?P<words>unhandled \w+ error|[Cc]all to \w+ failed)",
        "the GPUs cannot talk to each other (NCCL: {words})",
        f"`NCCL_DEBUG=INFO llmdeploy serve` tells why; in a container {SHARED_MEMORY}",
    ),
    FailureRule(
        r"Python\.h: No such file or directory",
        "Triton compiles for this GPU, but Python's header files are missing",
        COMPILER,
    ),
    FailureRule(
        r"Failed to find C compiler",
        "Triton compiles for this GPU, but the C compiler is missing",
        COMPILER,
    ),
    FailureRule(
        r"ptxas fatal\s*: Value '(?P<gpu>\w+)' is not defined",
        "Triton's assembler is too old for this GPU (`{gpu}`)",
        "`TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas llmdeploy serve`",
    ),
    FailureRule(
        r"Failed to import Ray|No module named 'ray'",
        "Ray is asked for and not installed",
        "`pip install ray`, or take `--distributed-executor-backend` out of `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"Cannot provide a placement group requiring (?P<gpus>\d+) GPUs",
        "the Ray cluster does not have {gpus} GPUs free",
        "`ray status` shows what it has",
    ),
    FailureRule(
        r"current platform (?P<name>\w+) does not support ray",
        "vLLM cannot use Ray on this kind of device (`{name}`)",
        "take `--distributed-executor-backend` out of `engines.vllm.extra_args`",
    ),
    FailureRule(
        r"Not enough allowed NUMA nodes to bind threads of (?P<workers>\d+) local CPUWorkers",
        "without GPUs vLLM wants a NUMA node for each of its {workers} workers, and this machine has fewer",
        "`llmdeploy config set engines.vllm.tensor_parallel_size 1`",
    ),
    FailureRule(
        r"operator torchvision::nms does not exist",
        "torch and torchvision are not of the same build",
        "`pip uninstall torchvision torchaudio torchcodec`: models of text work without",
    ),
    FailureRule(
        r"No package metadata was found for (?P<name>vllm\S*)",
        "the package `{name}` is installed under another name, so its own program cannot start",
        "take an environment that llmdeploy makes: `llmdeploy engines install vllm`, without a GPU `--cpu` too",
    ),
)

ENDS = (
    FailureRule(
        r"exit code: -9\)|'EngineCore\w*': -9\b",
        "a process of vLLM was killed (SIGKILL): most likely this machine's memory ran out",
        "`dmesg` shows whether it did; free memory, or take a smaller model",
    ),
    FailureRule(
        r"exit code: -4\)|'EngineCore\w*': -4\b",
        "vLLM used an instruction that this processor lacks or may not use (SIGILL)",
        "where `enforce_eager` is set, set it to `false`; else `llmdeploy config set engines.vllm.dtype float32`",
    ),
    FailureRule(
        r"exit code: -(?:7|10)\)|'EngineCore\w*': -(?:7|10)\b",
        "a process of vLLM could not get memory (SIGBUS): most likely `/dev/shm` is full",
        SHARED_MEMORY,
    ),
    FailureRule(
        r"exit code: -11\)|'EngineCore\w*': -11\b",
        "a process of vLLM crashed (SIGSEGV)",
        "`llmdeploy logs` has its last lines; a newer vLLM or driver may help",
    ),
    FailureRule(
        r"died unexpectedly(?: \(exit code: None\)|, )",
        "a process of vLLM died without a reason in the log",
        "if memory ran out, `dmesg` shows it; `llmdeploy logs` has its last lines",
    ),
)
"""Ends without an exception. They come last: a worker that is ended because another one failed ends like this too."""
