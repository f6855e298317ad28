"""The diagnosis of a vLLM that ended: the relevant lines of its processes, and the rules that match them.

The root cause is in the deepest process: the exception of a worker ends the engine core, whose exception ends the API
server, and each of them writes a traceback.
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
"""Lines before a SIGKILL that may contain its cause: three tracebacks."""
TELLING_LINES = 3
LONGEST = 200
"""The longest line in a message, in characters: some lines list all architectures."""

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
_PYDANTIC = re.compile(r"\s+Value error, (?P<words>.+?)(?: \[type=\w+, .*)?$")  # on the line after the exception
_NAME = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?=_?[A-Z]\w*:)")


def diagnose(log: Sequence[str], exit_status: int) -> Diagnosis | None:
    """Return why vLLM ended, from its log and its exit status (negative: the number of a signal).

    None if nothing in the log explains it.
    """
    if by_signal := diagnosis.killed(exit_status):
        # A vLLM whose start fails kills its own processes, so a cause in the log comes first.
        return _first(CAUSES, log[-LAST_WORDS:]) or by_signal
    ended = [f"vLLM ended (exit code: {exit_status})"]  # worded as the end of a worker, so that the same rules match
    for texts in (*_by_depth(log), ended):
        if found := diagnosis.first(VLLM, texts, log):
            return found
    words = telling_lines(log) if exit_status > 0 else ()
    return Diagnosis(f"vLLM says: {'; '.join(words)}", "`llmdeploy logs` has the rest") if words else None


def _first(table: Sequence[FailureRule], log: Sequence[str]) -> Diagnosis | None:
    return next((found for texts in _by_depth(log) if (found := diagnosis.first(table, texts, log))), None)


def telling_lines(log: Sequence[str]) -> tuple[str, ...]:
    """Return the exceptions, or else the errors, of the deepest process that has some: at most three, shortened."""
    lines = [line for line in _lines(log) if not _WRAPPERS.search(line.text)]
    exceptions = [line for line in lines if line.level in {None, "ERROR", "CRITICAL"} and _EXCEPTION.match(line.text)]
    errors = [line for line in lines if line.level in {"ERROR", "CRITICAL"} and not line.text.startswith("Traceback")]
    for texts in _deepest_first(exceptions or errors):
        shown = dict.fromkeys(_shortened(_NAME.sub("", text)) for text in texts)
        return tuple(shown)[:TELLING_LINES]
    return ()


def _by_depth(log: Sequence[str]) -> Iterator[list[str]]:
    """Yield the lines that may contain a cause, the deepest process first: no information and no warnings."""
    return _deepest_first([line for line in _lines(log) if line.level not in {"DEBUG", "INFO", "WARNING"}])


def _deepest_first(lines: Sequence[Line]) -> Iterator[list[str]]:
    rest = list(lines)
    for process in _DEPTHS:
        if texts := [line.text for line in rest if re.match(process, line.process or "")]:
            yield texts
        rest = [line for line in rest if not re.match(process, line.process or "")]


def _lines(log: Sequence[str]) -> Iterator[Line]:
    """Yield the relevant lines: no progress bars, and no frames of tracebacks, which are indented."""
    for raw in log:
        for line in parse(raw):
            if match := _PYDANTIC.match(line.text):
                yield replace(line, text=f"ValueError: {match['words']}")
            elif line.percent is None and line.text and not line.text[0].isspace():
                yield line


def _shortened(text: str) -> str:
    text = " ".join(text.split()).removesuffix(".")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
