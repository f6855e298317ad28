"""Failed starts of vLLM: complete recordings of real ones, and every message that only other machines bring out."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.cli.app import COMMANDS
from llmdeploy.config import keys
from llmdeploy.engines import diagnosis
from llmdeploy.engines.diagnosis import Diagnosis
from llmdeploy.engines.vllm.failures import LAST_WORDS, VLLM, diagnose, telling_lines
from llmdeploy.errors import Remedy
from tests.vllm_messages_machine import MACHINE, MODEL, NEWER
from tests.vllm_messages_settings import MEMORY, SETTINGS, config_set

MESSAGES: list[tuple[list[str], Diagnosis]] = [*MEMORY, *SETTINGS, *MODEL, *MACHINE]
RECORDINGS = Path(__file__).parent / "recordings" / "vllm"
NO_PAIR = "take the model from its own repository: these weights and their `config.json` do not belong together"
FOLDER = "give a folder with a `config.json`, or `owner/name` at the Hub"


def recording(name: str) -> list[str]:
    return (RECORDINGS / name).read_text(encoding="utf-8").split("\n")


RECORDED = {
    "kvsmall": Diagnosis(
        "a context of 4096 tokens needs 0.01 GiB of KV cache and 0.0 GiB are left for it",
        f"`--context 384` fits; for more, {config_set('gpu_memory_utilization 0.95')} "
        f"or {config_set('kv_cache_dtype fp8')}",
        Remedy("max_model_len", 384),
    ),
    "maxlen": Diagnosis(
        "a context of 100000 tokens is longer than the model's own",
        "ask for at most that: `--context 4096`",
        Remedy("max_model_len", 4096),
    ),
    "util": Diagnosis(
        "17.54 of this machine's 20.96 GiB are free and vLLM wants 19.29 of them",
        f"ask for less: {config_set('gpu_memory_utilization 0.5')} (on a CPU it is main memory)",
        Remedy("gpu_memory_utilization", 0.5, lasts=False),
    ),
    "tinyutil": Diagnosis(
        "vLLM may use 0.21 GiB, which leaves -0.4 GiB for the KV cache (17.28 GiB of memory are free)",
        f"{config_set('gpu_memory_utilization 0.08')} (on a CPU it is main memory)",
        Remedy("gpu_memory_utilization", 0.08, lasts=False),
    ),
    "nopath": Diagnosis("the folder of the model does not exist: `/no/such/model`", FOLDER),
    "noconfig": Diagnosis(
        "`m_noconfig` is neither a model folder (it has no `config.json`) nor a repository on the Hub", FOLDER
    ),
    "hfoffline": Diagnosis(
        "the model is not on this machine and vLLM may not use the network",
        "`llmdeploy serve` fetches it by its name at the Hub",
    ),
    "port": Diagnosis(
        "another program took the port while the server started", "give another with `--port`"
    ),
    "badarch": Diagnosis(
        "this vLLM does not know the architecture `FooBarForCausalLM`",
        f"{NEWER}, or add `--model-impl transformers` to `engines.vllm.extra_args`",
    ),
    "badtype": Diagnosis(
        "this vLLM does not know models of the type `foobar_xyz`",
        f"{NEWER}, or `pip install --upgrade transformers`",
    ),
    "remote": Diagnosis(
        "the model comes with Python code, which vLLM does not run without permission",
        "read that code; if you trust it: `llmdeploy serve` again with `--trust-remote-code`",
    ),
    "remotetrust": Diagnosis(
        "the model's own code is not complete: `modeling_foo.py` is missing", "fetch the model again"
    ),
    "trunc": Diagnosis(
        "a file of the weights is truncated or damaged: incomplete metadata, file not fully covered",
        "fetch the model again",
    ),
    "noweights": Diagnosis("the folder `m_noweights` has no weights", "fetch the model again"),
    "shape": Diagnosis("a tensor of the weights has 256 rows where `config.json` asks for 512", NO_PAIR),
    "extralayer": Diagnosis(
        "the weights lack tensors that `config.json` asks for, one of them `model.layers.4.input_layernorm.weight`",
        NO_PAIR,
    ),
    "quant": Diagnosis(
        "the model is not quantised with `awq`",
        "take `quantization` out of `engines.vllm`: vLLM sees a quantised model by itself",
    ),
    "badflag": Diagnosis(
        "this vLLM does not know `--no-such-flag 3`",
        "take it out of `engines.vllm.extra_args`, or update vLLM: `pip install --upgrade vllm`",
    ),
    "badtool": Diagnosis(
        "this vLLM has no tool call parser `nope`",
        "correct it in `engines.vllm.extra_args`; `vllm serve --help=tool-call-parser` lists them",
    ),
    "badchattpl": Diagnosis(
        "the chat template does not exist: `/no/such.jinja`", "correct it in `engines.vllm.extra_args`"
    ),
    "sleepcpu": Diagnosis(
        "vLLM's sleep mode needs a GPU", "take `--enable-sleep-mode` out of `engines.vllm.extra_args`"
    ),
    "gguf": Diagnosis(
        "vLLM reads no GGUF without a plugin, so not `/srv/x.gguf`",
        "run it on llama.cpp: `llmdeploy serve --engine llamacpp`, or `pip install vllm-gguf-plugin`",
    ),
    "tp2": Diagnosis(
        "without GPUs vLLM wants a NUMA node for each of its 2 workers, and this machine has fewer",
        config_set("tensor_parallel_size 1"),
    ),
    "ray": Diagnosis(
        "Ray is asked for and not installed",
        "`pip install ray`, or take `--distributed-executor-backend` out of `engines.vllm.extra_args`",
    ),
}  # fmt: skip
CAME_UP = ["auto.log", "eager.log", "warm.log", "notok.log", "nobatched.log", "json-formatter.stdout.jsonl",
           "json-formatter.stderr.log"]  # fmt: skip


def test_every_recording_has_an_expected_diagnosis() -> None:
    assert {file.name for file in RECORDINGS.iterdir()} == {f"{name}.log" for name in RECORDED} | set(CAME_UP)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_failures_are_diagnosed(name: str) -> None:
    assert diagnose(recording(f"{name}.log"), 2 if name == "badflag" else 1) == RECORDED[name]


@pytest.mark.parametrize("name", RECORDED)
def test_the_last_400_lines_are_enough_for_a_diagnosis(name: str) -> None:
    # The service keeps 400 lines.
    assert diagnose(recording(f"{name}.log")[-400:], 1) == RECORDED[name]


@pytest.mark.parametrize("name", CAME_UP)
@pytest.mark.parametrize("status", [0, 1])
def test_log_without_a_failure_has_no_diagnosis(name: str, status: int) -> None:
    assert diagnose(recording(name), status) is None


# Messages embedded in the log of several processes, in the formats of several releases.


def prefixed(worker: str, core: str, color: str = "") -> Callable[[list[str]], list[str]]:
    """`(Worker pid=9) ERROR ...` since 0.10; `color` is an escape sequence around the prefix."""

    def log(message: list[str]) -> list[str]:
        reset = color and "\x1b[0;0m"
        in_worker = f"{color}({worker} pid=901){reset} ERROR 11-22 16:11:26 [multiproc_executor.py:953] "
        in_core = f"{color}({core} pid=900){reset} ERROR 11-22 16:11:29 [core.py:1510] "
        return [
            "(APIServer pid=899) INFO 11-22 16:11:08 [model.py:733] Resolved architecture: Qwen3ForCausalLM",
            *(in_worker + line for line in ["WorkerProc failed to start.", *traceback(message)]),
            "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]",
            *(in_core + line for line in ["EngineCore failed to start.", *WORKER_FAILED]),
            f"Process {core}:",
            *WORKER_FAILED,
            *CORE_FAILED,
        ]

    return log


def traceback(message: list[str]) -> list[str]:
    return [
        "Traceback (most recent call last):",
        '  File "/opt/vllm/lib/python3.12/site-packages/vllm/v1/worker/gpu_worker.py", line 594, in load_model',
        "    raise ValueError(",
        *message,
    ]


WORKER_FAILED = traceback(
    [
        "Exception: WorkerProc initialization failed due to an exception in a background process. "
        "See stack trace for root cause."
    ]
)
CORE_FAILED = [
    *traceback(
        [
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
            "{'EngineCore': 1}"
        ]
    ),
    "resource_tracker: There appear to be 1 leaked shared_memory objects to clean up at shutdown",
]


def bare(message: list[str]) -> list[str]:
    """Up to 0.9 a single process's log has no prefixes."""
    lines = ["EngineCore hit an exception: Traceback (most recent call last):", *traceback(message)[1:]]
    return [*(f"ERROR 03-11 10:00:00 [core.py:390] {line}" for line in lines), *CORE_FAILED]


def in_json(message: list[str]) -> list[str]:
    record = {"levelname": "ERROR", "process": 901, "vllm_process_name": "Worker_TP0", "message": "WorkerProc failed."}
    return [json.dumps(record | {"exc_info": "\n".join(traceback(message))}), *CORE_FAILED]


FORMATS = {
    "0.33": prefixed("Worker_TP0", "EngineCore"),
    "0.11": prefixed("Worker_TP0_EP0", "EngineCore_DP0"),
    "colours": prefixed("Worker", "EngineCore", "\x1b[1;36m"),
    "0.9": prefixed("VllmWorker rank=0", "EngineCore_0"),
    "bare": bare,
    "json": in_json,
}


@pytest.mark.parametrize("embed", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("message", "expected"), MESSAGES, ids=[message[0][:50] for message, _ in MESSAGES])
def test_messages_are_diagnosed_in_every_log_format(
    embed: Callable[[list[str]], list[str]], message: list[str], expected: Diagnosis
) -> None:
    assert diagnose(embed(message), 1) == expected


def test_commands_and_keys_in_hints_exist() -> None:
    commands = {command for row in VLLM for command in re.findall(r"`(?:\w+=\S+ )*llmdeploy (\w+)", row.fix)}
    assert commands <= COMMANDS.keys()
    settings = {key for row in VLLM for key in re.findall(r"config set (\S+)", row.fix)}
    assert settings <= {key.name for key in keys()}


def test_every_rule_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[diagnosis.FailureRule] = []
    original = diagnosis._diagnosis

    def spy(failure: diagnosis.FailureRule, *rest: object) -> Diagnosis | None:
        found = original(failure, *rest)  # type: ignore[arg-type]
        told.extend([failure] if found else [])
        return found

    monkeypatch.setattr(diagnosis, "_diagnosis", spy)
    for name in RECORDED:
        diagnose(recording(f"{name}.log"), 1)
    for message, _ in MESSAGES:
        diagnose(FORMATS["0.33"](message), 1)
    assert [failure.pattern for failure in VLLM if failure not in told] == []


# Whose words count.


def test_the_worker_comes_before_the_core_and_the_core_before_the_server() -> None:
    server = "OSError: [Errno 98] Address already in use"
    prefix = "ERROR 11-22 16:11:29 [x.py:1]"
    core = f"(EngineCore pid=2) {prefix} ValueError: Sleep mode is not supported on current platform."
    worker = f"(Worker pid=3) {prefix} RuntimeError: Cannot find any model weights with `m`"
    causes = [
        found.cause
        for log in ([server], [server, core], [server, core, worker])
        if (found := diagnose([*log, *CORE_FAILED], 1))
    ]
    assert causes == [
        "another program took the port while the server started",
        "vLLM's sleep mode needs a GPU",
        "the folder `m` has no weights",
    ]


def test_core_that_quotes_a_worker_is_enough() -> None:
    quote = "RuntimeError: Worker failed with error 'it is sad', please check the stack trace above for the root cause"
    log = [f"(EngineCore pid=2) ERROR 11-22 16:11:29 [core.py:1] {quote}", *CORE_FAILED]
    assert telling_lines(log) == (quote,)


def test_texts_that_are_not_errors_are_not_a_cause() -> None:
    said = ["INFO", "WARNING"]
    log = [f"(Worker pid=3) {level} 11-22 16:11:29 [x.py:1] CUDA out of memory, trying again" for level in said]
    assert diagnose(log, 1) is None


def test_out_of_memory_during_graph_capture_is_fixed_by_eager_mode() -> None:
    message = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."]
    bar = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  51%|█████▏    | 26/51 [00:01<00:01]"
    found = diagnose([bar, *FORMATS["0.33"](message)], 1)
    assert found == Diagnosis(
        "the GPU's memory ran out, and CUDA graphs take a part of it",
        f"turn them off: {config_set('enforce_eager true')}",
        Remedy("enforce_eager", True),
    )


def test_eager_mode_is_not_suggested_twice() -> None:
    message = ["ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"]
    config = "(EngineCore pid=900) INFO 11-22 16:11:16 [core.py:1] Initializing a V1 LLM engine: enforce_eager=True,"
    found = diagnose([config, *FORMATS["0.33"](message)], 1)
    assert found is not None
    assert (found.cause, found.remedy) == ("the weights and vLLM's work space leave no memory for the KV cache", None)
    assert found.fix.startswith(config_set("gpu_memory_utilization 0.95"))


# Signals, and what nobody knows.


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (-9, "the server was killed from outside (SIGKILL)"),
        (-signal.SIGTERM, "the server was killed from outside (SIGTERM)"),
        (-signal.SIGILL, "vLLM used an instruction that this processor lacks or may not use (SIGILL)"),
        (-signal.SIGSEGV, "a process of vLLM crashed (SIGSEGV)"),
        (-signal.SIGBUS, "a process of vLLM could not get memory (SIGBUS): "
         "most likely `/dev/shm` is full"),
    ],
)  # fmt: skip
def test_end_by_a_signal(status: int, cause: str) -> None:
    found = diagnose(recording("eager.log"), status)
    assert found is not None
    assert found.cause == cause


UNKNOWN = [
    "(EngineCore pid=2) ERROR 11-22 16:11:29 [core.py:1510] EngineCore failed to start.",
    "(EngineCore pid=2) ERROR 11-22 16:11:29 [core.py:1510] a.b.SomeError: the engine is sad.",
    *CORE_FAILED,
]


def test_unknown_failure_quotes_its_exception() -> None:
    assert diagnose(UNKNOWN, 1) == Diagnosis("vLLM says: SomeError: the engine is sad", "`llmdeploy logs` has the rest")
    assert diagnose(UNKNOWN, 0) is None


def test_quoted_lines_are_few_short_and_from_the_deepest_process() -> None:
    prefix = "(Worker_TP0 pid=3) ERROR 11-22 16:11:29 [x.py:1] "
    lines = [f"{prefix}x.OneError: one", f"{prefix}x.OneError: one", f"{prefix}TwoError: {'two ' * 99}"]
    lines += [f"{prefix}ThreeError: 3", f"{prefix}FourError: 4"]
    shown = telling_lines([*UNKNOWN, *lines])
    assert shown == ("OneError: one", f"TwoError: {'two ' * 46}two...", "ThreeError: 3")
    assert telling_lines(UNKNOWN) == ("SomeError: the engine is sad",)


def test_errors_are_quoted_without_an_exception() -> None:
    log = ["(Worker pid=3) INFO 11-22 16:11:29 [x.py:1] fine", "(Worker pid=3) ERROR 11-22 16:11:29 [x.py:1] it hangs."]
    assert telling_lines(log) == ("it hangs",)


def test_log_without_errors_has_no_diagnosis() -> None:
    assert diagnose([], 1) is None
    assert diagnose(["", "Loading", *CORE_FAILED], 1) is None


@given(
    st.lists(st.text() | st.sampled_from([line for message, _ in MESSAGES for line in message])),
    st.integers(-64, 255),
)
def test_any_log_is_accepted(log: list[str], status: int) -> None:
    found = diagnose(log, status)
    assert found is None or (found.cause and found.fix and "{" not in found.fix)


@given(st.sampled_from([message for message, _ in MESSAGES]), st.from_regex(r"\A[0-9.]{1,14}\Z"))
def test_any_number_in_a_known_message_is_accepted(message: list[str], number: str) -> None:
    # Numbers that vLLM never writes must not raise an exception.
    changed = ["".join(number if char.isdigit() else char for char in line) for line in message]
    found = diagnose(FORMATS["0.33"](changed), 1)
    assert found is None or found.remedy is None or "{" not in found.fix


def test_cause_in_the_log_comes_before_the_signal() -> None:
    log = recording("trunc.log")
    by_itself = diagnose(log, -9)
    assert by_itself == diagnose(log, 1)
    assert by_itself is not None
    assert "truncated" in by_itself.cause
    old = [*log, *["(APIServer pid=1) INFO:     127.0.0.1:5 - GET /health 200"] * LAST_WORDS]
    assert diagnose(old, -9) == diagnosis.killed(-9), "a line long before the end is not a cause"
