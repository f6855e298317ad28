"""The reader of vLLM's log: lines of several processes in several formats, and the phases of a start.

The texts differ between releases, so each phase has all spellings from 0.6 to 0.33.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from llmdeploy.engines.log_reader import Loaded, Step
from llmdeploy.rules import LONGEST


@dataclass(frozen=True)
class Line:
    """A line of the log, split into its parts."""

    process: str | None
    """The process, such as `APIServer`, `EngineCore`, `Worker_TP0`; None if the line does not name it."""
    pid: int | None
    level: str | None
    """The level, such as `INFO`, `WARNING`, `ERROR`; None for tracebacks, progress bars and output of C++."""
    text: str
    percent: int | None = None
    """The percentage of a progress bar of tqdm."""


_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"\((?P<process>[A-Za-z][\w.\-]*)(?: rank=\d+)? pid=(?P<pid>\d{1,19})\) ?")
_LEVEL = r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_LOGGED = re.compile(rf"{_LEVEL} \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \[?[^\s\]]+:\d+\] ?")  # without `[` up to 0.7
_UVICORN = re.compile(rf"{_LEVEL}:\s+")
_TORCH = re.compile(r"\[(?P<letter>[IWEF])\d+ [\d:.]+ [^\]]*\] ")
_TORCH_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}
_RANK = re.compile(r"\[rank\d+\]: ?")
_BAR = re.compile(r"(?P<what>[^|%]*?):\s+(?P<percent>\d{1,3})%(?: Completed )?\|| *(?P<alone>\d{1,3})%\|")


def parse(raw: str) -> list[Line]:
    """Return the lines in one line of the log: the line itself, or the lines in the message of a JSON object."""
    raw = _ANSI.sub("", raw)
    return (_json_lines(raw) if raw.startswith("{") else None) or [_line(raw)]


def _line(raw: str) -> Line:
    process = pid = level = None
    rest = raw[:LONGEST]
    while match := _PROCESS.match(
        rest
    ):  # a line of a child in its parent's stream has two names: the last is that of the child
        process, pid, rest = match["process"], int(match["pid"]), rest[match.end() :]
    if "\r" in raw.rstrip("\r\n"):  # a progress bar redraws itself: only the last state counts
        rest = raw.rstrip("\r\n").rpartition("\r")[2][:LONGEST]
    rest = rest.rstrip("\r\n")
    rest = rest[match.end() :] if (match := _RANK.match(rest)) else rest
    if match := _LOGGED.match(rest) or _UVICORN.match(rest):
        level = match["level"]
    elif match := _TORCH.match(rest):
        level = _TORCH_LEVELS[match["letter"]]
    text = rest[match.end() :] if match else rest
    return Line(process, pid, level, text, _percent(text))


def _percent(text: str) -> int | None:
    match = _BAR.match(text)
    return min(int(match["percent"] or match["alone"]), 100) if match else None


def _json_lines(raw: str) -> list[Line] | None:
    """Return the lines in the message of a JSON object; None if the text is not such an object."""
    try:
        record: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    message, process, pid = record.get("message"), record.get("vllm_process_name"), record.get("process")
    if not isinstance(message, str):
        return None
    traceback = record.get("exc_info") or record.get("exc_text")
    texts = [*message.splitlines(), *(traceback.splitlines() if isinstance(traceback, str) else [])]
    level = record.get("levelname")
    return [
        Line(
            process if isinstance(process, str) else None,
            pid if isinstance(pid, int) else None,
            level if isinstance(level, str) else None,
            text[:LONGEST],
        )
        for text in texts or [""]
    ]


@dataclass(frozen=True)
class StartPhase:
    """A phase of a start. A line belongs to it if its text begins with one of `spellings`."""

    name: str
    spellings: tuple[str, ...]


LOADING = "loading the weights"
CAPTURING = "capturing CUDA graphs"
READY = "ready"

PHASES = (
    StartPhase(
        "starting vLLM", (r".*█\s+version \S", r"vLLM (?:API )?server version", r"non-default args: ", r"args: ")
    ),
    StartPhase(
        "reading the model's configuration",
        (r"Resolved architecture: ", r"Using max model len \d", r"Chunked prefill is enabled", r"This model supports "),
    ),
    StartPhase(
        "starting the engine",
        (r"Initializing an? (?:V\d )?LLM engine", r"world_size=\d", r"DP group leader: ", r"Using V2 Model Runner"),
    ),
    StartPhase(
        "building the model",
        (
            r"Starting to load model ",
            r"Loading model from scratch",
            r"Initializing model took",
            r"Using \S+ attention backend",
            r"Using (?:Flash Attention|FlashInfer|XFormers|Triton) backend",
        ),
    ),
    StartPhase("fetching the weights", (r"Fetching \d+ files:", r"Time spent downloading weights")),
    StartPhase(
        LOADING,
        (
            r"Filesystem type for checkpoints",
            r"Loading \w+ checkpoint shards",
            r"Loading safetensors using ",
            r"Multi-thread loading shards",
            r"Loading weights took",
            r"(?:Model loading|Loading model weights) took",
        ),
    ),
    StartPhase("trying the largest image", (r"Encoder cache will be initialized",)),
    StartPhase(
        "compiling",
        (
            r"Using cache directory: .*torch\.compile",
            r"Start compiling function",
            r"Dynamo bytecode transform time",
            r"(?:Compiling|Cache) (?:a|the) graph ",
            r"Compiling model again",
            r"Directly load ",
            r"saved AOT compiled function",
            r"torch\.compile (?:takes|took)",
            r"Warming up model for the compilation",
            r"Initial profiling/warmup run took",
        ),
    ),
    StartPhase(
        "sizing the KV cache",
        (
            r"Memory profiling (?:takes|took|results)",
            r"Profiling CUDA graph memory",
            r"Estimated CUDA graph memory",
            r"Available KV cache memory",
            r"(?:Explicitly|Auto) set \(",
            r"Auto-fit max_model_len",
            r"\w+ KV cache size: ",
            r"Maximum concurrency for ",
            r"# \w+ blocks: \d",
        ),
    ),
    StartPhase(
        CAPTURING,
        (
            r"Capturing (?:the model for )?(?:CUDA graph|cudagraph)",
            r"\[AutoTuner\]",
            r"Graph capturing finished",
            r"CUDA graph pool memory",
        ),
    ),
    StartPhase(
        "starting the HTTP server",
        (
            r"init engine \(profile",
            r"Supported[_ ]tasks: ",
            r"Starting vLLM (?:API )?server",
            r"Started server process",
            r"Waiting for application startup",
        ),
    ),
    StartPhase(READY, (r"Application startup complete",)),
)

_DOOM = re.compile(r"died unexpectedly|EngineDeadError|Engine core proc \S+ died|shutting down the engine")
"""The texts for the end of a worker or the engine core. The API server then fails its requests and ends in seconds."""
_PREFIX = re.compile(r"^(?:\[\w+\] )+")  # `[backbone] `, before the compiler's lines since 0.32
_SPELLINGS = tuple(re.compile("|".join(phase.spellings)) for phase in PHASES)


@dataclass(frozen=True)
class Learned:
    """The facts in the log of a start; None until vLLM logs them. Memory is that of one device, as vLLM rounds it."""

    version: str | None = None
    max_model_len: int | None = None
    weights_gib: float | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    """The number of requests of `max_model_len` tokens that fit into the KV cache."""


_SCARCE = {"kv_cache_tokens", "max_concurrency"}
"""The facts that each worker logs; the smallest value counts."""

_FACTS = tuple(
    re.compile(pattern)
    for pattern in (
        r".*█\s+version\s+(?P<version>\d[\w.+\-]*)",
        r"vLLM (?:API )?server version (?P<version>\d[\w.+\-]*)",
        r"Initializing an? (?:V\d )?LLM engine \(v(?P<version>\d[\w.+\-]*)\)",
        r"Using max model len (?P<max_model_len>\d{1,12})",
        r"Auto-fit max_model_len: reduced from \d+ to (?P<max_model_len>\d{1,12})",
        r"(?:Model loading|Loading model weights) took (?P<weights_gib>\d{1,9}\.?\d{0,9}) Gi?B",
        r"\w+ KV cache size: (?P<kv_cache_tokens>\d[\d,]{0,15}) tokens",
        r"(?:\w+ KV cache size: [\d,]+ tokens, )?"
        r"Maximum concurrency for \d[\d,]{0,15} tokens per request: (?P<max_concurrency>\d{1,9}\.?\d{0,9})x",
    )
)


def _learn(learned: Learned, text: str) -> Learned:
    found: dict[str, Any] = {}
    for fact in _FACTS:
        for name, word in match.groupdict().items() if (match := fact.match(text)) else ():
            found[name] = _value(name, word)
    for name in found.keys() & _SCARCE:
        before = getattr(learned, name)
        found[name] = found[name] if before is None else min(before, found[name])
    return replace(learned, **found)


def _value(name: str, word: str) -> str | int | float:
    if name == "version":
        return word
    return float(word) if name.endswith(("_gib", "_concurrency")) else int(word.replace(",", ""))


class Progress:
    """The progress of a start. Phases only go forward, and so does the percentage within each phase."""

    def __init__(self) -> None:
        self.is_doomed = False
        self.learned = Learned()
        self._at = -1
        self._percent: int | None = None

    @property
    def phase(self) -> str | None:
        return PHASES[self._at].name if self._at >= 0 else None

    def feed(self, raw: str) -> Step | None:
        """Take one line of the log. None when it brought nothing new."""
        before = self._at, self._percent
        for line in parse(raw):
            self._take(line)
        if (self._at, self._percent) == before:
            return None
        return Step(PHASES[self._at].name, self._percent)

    def outcome(self) -> Loaded | None:
        learned = self.learned
        if learned.kv_cache_tokens is None:
            return None
        words = [f"a KV cache of {learned.kv_cache_tokens:,} tokens"]
        if learned.weights_gib is not None:
            words.insert(0, f"weights of {learned.weights_gib:.1f} GiB")
        if learned.max_concurrency is not None:
            words.append(f"{learned.max_concurrency:.1f} requests of full length at a time")
        return Loaded(learned.max_model_len, ", ".join(words))

    def _take(self, line: Line) -> None:
        text = _PREFIX.sub("", line.text)
        # Lines of level INFO may quote a request: its address, its prompt.
        if line.level in {None, "ERROR", "CRITICAL"} and _DOOM.search(text):
            self.is_doomed = True
        self.learned = _learn(self.learned, text)
        for at in range(max(self._at, 0), len(PHASES)):
            if _SPELLINGS[at].match(text):
                if at > self._at:
                    self._at, self._percent = at, None
                if line.percent is not None:
                    self._percent = max(self._percent or 0, line.percent)
                return
