"""Why a vLLM ended: the telling lines of its processes, and what the tables say of them.

The root cause is with the deepest process: a worker's exception ends the engine core, whose exception ends the API
server, and each writes a traceback of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmdeploy.engines import diagnosis
from llmdeploy.engines.diagnosis import Diagnosis, FailureRule
from llmdeploy.engines.vllm.failure_rules_machine import ENDS, MACHINE, MODEL
from llmdeploy.engines.vllm.failure_rules_settings import MEMORY, SETTINGS
from llmdeploy.engines.vllm.log import Line, parse

CAUSES = (*MEMORY, *SETTINGS, *MODEL, *MACHINE)
VLLM = (*CAUSES, *ENDS)
LAST_WORDS = 250
"""Lines before an end by SIGKILL that may tell of it: three tracebacks."""
TELLING_LINES = 3
LONGEST = 200
"""Characters of a line that is shown: some list all architectures."""

_DEPTHS = (r"(?:Vllm|Ray)?Worker", r"EngineCore", r"")
_WRAPPERS = re.compile(
    r"|".join(
        (
            r"Engine core initialization failed",
            r"(?:EngineCore|WorkerProc) (?:failed to start|hit an exception|encountered)",
            r"WorkerProc initialization failed",
            r"EngineCore encountered an issue",
            r"\d+ validation errors? for ",
            r"Worker proc \S+ died unexpectedly \(exit code: 0\)",
            r"leaked \w+ objects",
            r"AsyncLLM output_handler failed",
        )
    )
)
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*_?[A-Z]\w*(?:Error|Exception|OutOfResources|NotFound|Exit)(?::\s+\S|$)")
_PYDANTIC = re.compile(r"\s+Value error, (?P<words>.+?)(?: \[type=\w+, .*)?$")  # on the line after its exception
_NAME = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?=_?[A-Z]\w*:)")


def diagnose(log: Sequence[str], exit_status: int) -> Diagnosis | None:
    """What the log of a vLLM that ended with `exit_status` (negative: by that signal) says.

    None when nothing in it tells.
    """
    if by_signal := diagnosis.killed(exit_status):
        # A vLLM whose start fails kills what is left of itself, so a cause that it named goes before.
        return _first(CAUSES, log[-LAST_WORDS:]) or by_signal
    ended = [f"vLLM ended (exit code: {exit_status})"]  # in the words of a worker's end: the same rows hold for it
    for texts in (*_by_depth(log), ended):
        if found := diagnosis.first(VLLM, texts, log):
            return found
    words = telling_lines(log) if exit_status > 0 else ()
    return Diagnosis(f"vLLM says: {'; '.join(words)}", "`llmdeploy logs` has the rest") if words else None


def _first(table: Sequence[FailureRule], log: Sequence[str]) -> Diagnosis | None:
    return next((found for texts in _by_depth(log) if (found := diagnosis.first(table, texts, log))), None)


def telling_lines(log: Sequence[str]) -> tuple[str, ...]:
    """The exceptions of the deepest process that has any, else its errors: at most three, and short."""
    lines = [line for line in _lines(log) if not _WRAPPERS.search(line.text)]
    exceptions = [line for line in lines if line.level in {None, "ERROR", "CRITICAL"} and _EXCEPTION.match(line.text)]
    errors = [line for line in lines if line.level in {"ERROR", "CRITICAL"} and not line.text.startswith("Traceback")]
    for texts in _deepest_first(exceptions or errors):
        shown = dict.fromkeys(_shortened(_NAME.sub("", text)) for text in texts)
        return tuple(shown)[:TELLING_LINES]
    return ()


def _by_depth(log: Sequence[str]) -> Iterator[list[str]]:
    """What may name a cause, the deepest process first. What vLLM calls information or a warning does not."""
    return _deepest_first([line for line in _lines(log) if line.level not in {"DEBUG", "INFO", "WARNING"}])


def _deepest_first(lines: Sequence[Line]) -> Iterator[list[str]]:
    rest = list(lines)
    for process in _DEPTHS:
        if texts := [line.text for line in rest if re.match(process, line.process or "")]:
            yield texts
        rest = [line for line in rest if not re.match(process, line.process or "")]


def _lines(log: Sequence[str]) -> Iterator[Line]:
    """All that may tell: without progress bars and the frames of tracebacks, which are indented."""
    for raw in log:
        for line in parse(raw):
            if match := _PYDANTIC.match(line.text):
                yield replace(line, text=f"ValueError: {match['words']}")
            elif line.percent is None and line.text and not line.text[0].isspace():
                yield line


def _shortened(text: str) -> str:
    text = " ".join(text.split()).removesuffix(".")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
