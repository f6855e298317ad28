"""vLLM's log: its lines, and the progress of a start in complete recordings of real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.engines.log_reader import Step
from llmdeploy.engines.vllm.log import PHASES, Learned, Line, Progress, parse

RECORDINGS = Path(__file__).parent / "recordings" / "vllm"
"""Complete logs of vLLM 0.32.0 (CPU build) with tiny models."""


def recording(name: str) -> list[str]:
    return (RECORDINGS / name).read_text(encoding="utf-8").split("\n")


def watched(lines: list[str]) -> tuple[list[str], Learned]:
    """Return the phases that were reported, in order, and the facts in the log."""
    progress = Progress()
    phases: list[str] = []
    for line in lines:
        if (event := progress.feed(line)) and event.phase not in phases[-1:]:
            phases.append(event.phase)
    return phases, progress.learned


LINES = [
    ("(APIServer pid=9087) INFO 11-22 16:19:22 [model.py:733] Resolved architecture: Qwen3ForCausalLM",
     Line("APIServer", 9087, "INFO", "Resolved architecture: Qwen3ForCausalLM")),
    ("(Worker_TP0_EP0 pid=7) ERROR 11-22 16:19:22 [multiproc_executor.py:953]     raise ValueError(",
     Line("Worker_TP0_EP0", 7, "ERROR", "    raise ValueError(")),
    ("(VllmWorker rank=1 pid=504) ERROR 05-04 12:23:00 [multiproc_executor.py:380] ValueError: x",
     Line("VllmWorker", 504, "ERROR", "ValueError: x")),
    ("(EngineCore_DP0 pid=5) Traceback (most recent call last):",
     Line("EngineCore_DP0", 5, None, "Traceback (most recent call last):")),
    ("(EngineCore pid=5) (Worker pid=6) WARNING 11-22 16:19:22 [a.py:1] slow", Line("Worker", 6, "WARNING", "slow")),
    ("INFO 03-11 10:00:00 [core.py:53] Initializing a V1 LLM engine (v0.8.4)",
     Line(None, None, "INFO", "Initializing a V1 LLM engine (v0.8.4)")),
    ("INFO 01-20 10:00:00 model_runner.py:1115] Loading model weights took 14.9888 GB",
     Line(None, None, "INFO", "Loading model weights took 14.9888 GB")),
    ("\x1b[1;36m(Worker pid=6)\x1b[0;0m \x1b[32mINFO\x1b[0m 12-02 15:47:51 \x1b[90m[a.py:93]\x1b[0m ready\r",
     Line("Worker", 6, "INFO", "ready")),
    ("INFO:     Application startup complete.", Line(None, None, "INFO", "Application startup complete.")),
    ("(APIServer pid=1) INFO:     Shutting down", Line("APIServer", 1, "INFO", "Shutting down")),
    ("[W1122 16:19:43.921641932 utils.cpp:68] Warning: NUMA", Line(None, None, "WARNING", "Warning: NUMA")),
    ("[rank0]:[E509 10:11:12.1 ProcessGroupNCCL.cpp:6] it hangs", Line(None, None, "ERROR", "it hangs")),
    ("[rank0]: torch.distributed.DistBackendError: NCCL error",
     Line(None, None, None, "torch.distributed.DistBackendError: NCCL error")),
    ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:03<00:03]",
     Line(None, None, None, "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:03<00:03]", 50)),
    ("(Worker_TP0 pid=7) \rCapturing CUDA graphs (decode, FULL):   3%|▎| 1/35\rCapturing CUDA graphs (decode, FULL):  "
     "6%|▌| 2/35 [00:00<00:09]",
     Line("Worker_TP0", 7, None, "Capturing CUDA graphs (decode, FULL):  6%|▌| 2/35 [00:00<00:09]", 6)),
    (" 40%|████      | 2/5 [00:00<00:00]", Line(None, None, None, " 40%|████      | 2/5 [00:00<00:00]", 40)),
    ('{"levelname": "ERROR", "process": 5, "message": "it failed", "vllm_process_name": "EngineCore"}',
     Line("EngineCore", 5, "ERROR", "it failed")),
    ("{'a': 1}", Line(None, None, None, "{'a': 1}")),
    ('{"a": 1}', Line(None, None, None, '{"a": 1}')),
    ("", Line(None, None, None, "")),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "line"), LINES, ids=[raw[:40] for raw, _ in LINES])
def test_line_is_parsed(raw: str, line: Line) -> None:
    assert parse(raw) == [line]


def test_json_message_of_several_lines_with_a_traceback() -> None:
    record = {"levelname": "ERROR", "process": 5, "message": "one\ntwo", "vllm_process_name": "W", "exc_info": "E: x"}
    assert parse(json.dumps(record)) == [Line("W", 5, "ERROR", text) for text in ("one", "two", "E: x")]


TO_WEIGHTS = [
    "starting vLLM",
    "reading the model's configuration",
    "starting the engine",
    "building the model",
    "loading the weights",
]
FROM_KV_CACHE = ["sizing the KV cache", "starting the HTTP server", "ready"]

STARTS = [
    ("eager.log", [*TO_WEIGHTS, *FROM_KV_CACHE], Learned("0.32.0", 2048, None, 32768, 16.0)),
    ("auto.log", [*TO_WEIGHTS, *FROM_KV_CACHE], Learned("0.32.0", 896, None, 1024, 1.14)),
    ("notok.log", [*TO_WEIGHTS, *FROM_KV_CACHE], Learned("0.32.0", 1024, None, 32768, 32.0)),
    ("nobatched.log", [*TO_WEIGHTS, *FROM_KV_CACHE], Learned("0.32.0", 4096, None, 32768, 8.0)),
    ("warm.log", [*TO_WEIGHTS, "compiling", *FROM_KV_CACHE],
     Learned("0.32.0", 2048, None, 32768, 16.0)),
    ("json-formatter.stdout.jsonl", [*TO_WEIGHTS, "compiling", *FROM_KV_CACHE[:-1]],
     Learned("0.32.0", 1024, None, 32768, 32.0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "phases", "learned"), STARTS, ids=[name for name, _, _ in STARTS])
def test_recorded_starts(name: str, phases: list[str], learned: Learned) -> None:
    assert watched(recording(name)) == (phases, learned)


def test_recorded_start_with_the_json_formatter_on_both_streams() -> None:
    phases, _ = watched(recording("json-formatter.stdout.jsonl") + recording("json-formatter.stderr.log"))
    assert phases == [*TO_WEIGHTS, "compiling", *FROM_KV_CACHE]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("port.log", "starting vLLM"),
        ("maxlen.log", "reading the model's configuration"),
        ("util.log", "starting the engine"),
        ("noweights.log", "building the model"),
        ("trunc.log", "loading the weights"),
        ("kvsmall.log", "sizing the KV cache"),
    ],
)
def test_recorded_failures_stop_at_their_phase(name: str, last: str) -> None:
    assert watched(recording(name))[0][-1] == last


# A start on a GPU: lines from vLLM's sources and users' reports, because no recording exists.
GPU_START = [
    ("(APIServer pid=1) INFO 11-22 16:19:22 [api_utils.py:347]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.33.0",
     Step("starting vLLM")),
    ("(APIServer pid=1) INFO 11-22 16:19:23 [model.py:733] Resolved architecture: Qwen3ForCausalLM",
     Step("reading the model's configuration")),
    ("(EngineCore pid=2) INFO 11-22 16:19:33 [core.py:133] Initializing a V1 LLM engine (v0.33.0) with config: x",
     Step("starting the engine")),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:34 [model_runner.py:7] Loading model from scratch...",
     Step("building the model")),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:34 [weight_utils.py:9] Time spent downloading weights for X: 12.34 seconds",
     Step("fetching the weights")),
    ("Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]", Step("loading the weights", 0)),
    ("Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:03<00:03,  3.05s/it]",
     Step("loading the weights", 50)),
    ("Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:03<00:03,  3.05s/it]", None),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:40 [default_loader.py:1] Loading weights took 3.21 seconds", None),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:40 [x.py:1] Model loading took 14.2 GiB memory and 5.123456 seconds", None),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:41 [x.py:1] Encoder cache will be initialized with a budget of 16384 tokens, "
     "and profiled with 1 image items of the maximum feature size.", Step("trying the largest image")),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:42 [backends.py:1] [backbone] Dynamo bytecode transform time: 4.2 s",
     Step("compiling")),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:50 [x.py:1] Profiling CUDA graph memory: PIECEWISE=76 (largest=512)",
     Step("sizing the KV cache")),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:51 [x.py:1] Available KV cache memory: 18.65 GiB", None),
    ("(Worker_TP1 pid=4) INFO 11-22 16:19:51 [x.py:1] Available KV cache memory: 18.35 GiB", None),
    ("(Worker_TP2 pid=5) INFO 11-22 16:19:51 [x.py:1] Available KV cache memory: 18.95 GiB", None),
    ("(EngineCore pid=2) INFO 11-22 16:19:52 [kv_cache_utils.py:1] GPU KV cache size: 643,232 tokens, "
     "Maximum concurrency for 40,960 tokens per request: 15.70x", None),
    ("Capturing CUDA graphs (PIECEWISE):  51%|█████▏    | 26/51 [00:01<00:01, 20.0it/s]",
     Step("capturing CUDA graphs", 51)),
    ("(Worker_TP0 pid=3) INFO 11-22 16:19:59 [x.py:1] Free memory on device (78.66/79.2 GiB) on startup. Desired GPU "
     "memory utilization is (0.92, 72.86 GiB). Replace gpu_memory_utilization config with "
     "`--kv-cache-memory=20025170944` (18.65 GiB) to fit into requested memory", None),
    ("(EngineCore pid=2) INFO 11-22 16:20:00 [core.py:402] init engine (profile, create kv cache, warmup model) took "
     "27.68 s (compilation: 17.57 s)", Step("starting the HTTP server")),
    ("(APIServer pid=1) INFO 11-22 16:20:00 [launcher.py:1] Starting vLLM server on http://0.0.0.0:8000", None),
    ("(APIServer pid=1) INFO:     Application startup complete.", Step("ready")),
    ("(EngineCore pid=2) INFO 11-22 16:29:33 [core.py:133] Initializing a V1 LLM engine (v0.33.0) with", None),
]  # fmt: skip


def test_gpu_start_line_by_line() -> None:
    progress = Progress()
    assert [progress.feed(line) for line, _ in GPU_START] == [event for _, event in GPU_START]
    assert progress.phase == "ready"
    assert progress.learned == Learned("0.33.0", None, 14.2, 643232, 15.7)


def test_gpu_start_passes_every_phase() -> None:
    assert watched([line for line, _ in GPU_START])[0] == [phase.name for phase in PHASES]


# The same steps in the words of older releases.
OLD_SPELLINGS = [
    ("INFO 03-11 10:00:00 [api_server.py:1043] vLLM API server version 0.8.4", "starting vLLM"),
    ("INFO 03-11 10:00:00 [api_server.py:1044] args: Namespace(model='x')", "starting vLLM"),
    ("INFO 03-11 10:00:00 [config.py:689] This model supports multiple tasks: {'generate'}",
     "reading the model's configuration"),
    ("INFO 01-20 10:00:00 llm_engine.py:237] Initializing an LLM engine (v0.6.4) with", "starting the engine"),
    ("INFO 03-11 10:00:00 [cuda.py:221] Using Flash Attention backend on V1 engine.", "building the model"),
    ("INFO 01-20 10:00:00 model_runner.py:1115] Loading model weights took 14.9888 GB", "loading the weights"),
    ("INFO 03-11 10:00:00 [gpu_model_runner.py:1347] Model loading took 7.1217 GiB and 170.700889 seconds",
     "loading the weights"),
    ("INFO 03-11 10:00:00 [backends.py:415] Using cache directory: /c/rank_0_0 for vLLM's torch.compile", "compiling"),
    ("INFO 03-11 10:00:00 [kv_cache_utils.py:634] GPU KV cache size: 473,184 tokens", "sizing the KV cache"),
    ("INFO 03-11 10:00:00 [kv_cache_utils.py:637] Maximum concurrency for 32,768 tokens per request: 14.44x",
     "sizing the KV cache"),
    ("INFO 01-20 10:00:00 gpu_executor.py:122] # GPU blocks: 27445, # CPU blocks: 2340", "sizing the KV cache"),
    ("INFO 01-20 10:00:00 model_runner.py:1400] Capturing the model for CUDA graphs.", "capturing CUDA graphs"),
    ("Capturing CUDA graph shapes: 100%|██████████| 35/35 [00:13<00:00]", "capturing CUDA graphs"),
    ("INFO 03-11 10:00:00 [core.py:159] init engine (profile, create kv cache, warmup model) took 3.96 seconds",
     "starting the HTTP server"),
    ("INFO 03-11 10:00:00 [api_server.py:1081] Starting vLLM API server on http://0.0.0.0:8000",
     "starting the HTTP server"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "phase"), OLD_SPELLINGS, ids=[line[:70] for line, _ in OLD_SPELLINGS])
def test_spellings_of_older_releases(line: str, phase: str) -> None:
    event = Progress().feed(line)
    assert event is not None
    assert event.phase == phase


@pytest.mark.parametrize(
    "line",
    [
        # Said in the first seconds of a start without compilation.
        "(APIServer pid=1) WARNING 11-22 16:19:22 [vllm.py:1] Enforce eager set, disabling torch.compile, CUDAGraphs",
        "(EngineCore pid=1) WARNING 11-22 16:19:22 [vllm.py:1] Inductor compilation was disabled by user settings",
        "(EngineCore pid=2) INFO 11-22 16:19:44 [utils.py:347] Using LBHNC KV cache layout.",
        # A name that the user chose may look like a phase.
        "(APIServer pid=1) INFO 11-22 16:19:22 [x.py:1] the model is called 'Application startup complete'",
    ],
)
def test_line_that_only_mentions_a_phase_is_ignored(line: str) -> None:
    assert Progress().feed(line) is None


@given(st.lists(st.text() | st.sampled_from([line for line, _ in GPU_START]) | st.sampled_from([x for x, _ in LINES])))
def test_progress_never_goes_back(lines: list[str]) -> None:
    names = [phase.name for phase in PHASES]
    progress = Progress()
    told = [event for line in lines if (event := progress.feed(line))]
    steps = [(names.index(event.phase), event.percent or 0) for event in told]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("line", "doomed"),
    [
        ("(EngineCore pid=1) ERROR 11-22 16:06:15 [multiproc_executor.py:315] Worker proc W died unexpectedly", True),
        ("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", True),
        ('(APIServer pid=1) INFO:     127.0.0.1:5 - "GET /EngineDeadError HTTP/1.1" 404 Not Found', False),
        ("(APIServer pid=1) INFO 11-22 16:06:15 [logger.py:1] prompt: 'why has it died unexpectedly?'", False),
    ],
)
def test_text_of_a_request_does_not_doom_the_server(line: str, doomed: bool) -> None:
    progress = Progress()
    progress.feed(line)
    assert progress.is_doomed == doomed
