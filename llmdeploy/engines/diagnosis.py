"""An engine's last words -> the cause in one sentence, and the fix. Tables: the first row that matches speaks."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmdeploy.errors import Remedy


@dataclass(frozen=True)
class Diagnosis:
    cause: str
    fix: str
    remedy: Remedy | None = None


@dataclass(frozen=True)
class Failure:
    """`pattern` is searched in each line; its groups fill `cause` and `fix`."""

    pattern: str
    cause: str
    fix: str
    remedy: Callable[[Mapping[str, str]], Remedy | None] | None = None
    """Works a remedy out of the groups; its value is `{value}` in `fix`. When none helps, the row is passed over."""
    seen: str = ""
    """What a line of the whole log must match too; its groups fill `cause` and `fix` as well."""


LLAMACPP = (
    Failure(
        r"unknown model architecture: '(?P<name>[^']*)'",
        "this llama.cpp does not know the architecture `{name}`",
        "take a newer one: `pip install --upgrade xllamacpp`, or put a newer `llama-server` on PATH",
    ),
    Failure(
        r"wrong number of tensors; expected (?P<expected>\d+), got (?P<got>\d+)",
        "the GGUF holds {expected} tensors where this architecture has {got}: it was made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    Failure(
        r"tensor '(?P<name>[^']*)' not found",
        "the GGUF lacks the tensor `{name}`: it was made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    Failure(
        r"tensor '(?P<name>[^']*)' has wrong shape",
        "the GGUF's tensor `{name}` has the wrong shape: it was made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    Failure(
        r"clip_init: .*failed to (?:seek for|read) tensor",
        "the vision projector is truncated or damaged",
        "fetch the file again",
    ),
    Failure(
        r"unknown projector type: (?P<name>.+)",
        "this llama.cpp does not know the vision projector's type `{name}`",
        "take a newer one: `pip install --upgrade xllamacpp`, or put a newer `llama-server` on PATH",
    ),
    Failure(
        r"mismatch between text model \(n_embd = (?P<model>\d+)\) and mmproj \(n_embd = (?P<mmproj>\d+)\)",
        "the vision projector belongs to another model: it is {mmproj} wide and the model {model}",
        "give the right one with `--mmproj`",
    ),
    Failure(
        r"data is not within the file bounds|failed to read tensor|unexpectedly reached end of file",
        "the GGUF is truncated or damaged",
        "fetch the file again",
    ),
    Failure(
        r"couldn't bind|[Aa]ddress already in use",
        "the port was taken by another program while the server started",
        "give another with `--port`",
    ),
    Failure(
        r"insufficient memory|failed to allocate|out of memory|[Oo]utOfMemory|std::bad_alloc",
        "llama.cpp could not get the memory it needs",
        "ask for less: `--context 2048 --parallel 1`, or take a smaller model",
    ),
    Failure(
        r"invalid argument: (?P<flag>\S+)",
        "this `llama-server` does not know the flag `{flag}`: it is too old",
        "update it, or set `engines.llamacpp.server` to another",
    ),
    Failure(
        r"clip_init: failed to load model '[^']*': (?P<words>.+)",
        "llama.cpp cannot load the vision projector: {words}",
        "give another with `--mmproj`",
    ),
    Failure(
        r"[Ff]ailed to load (?:CLIP|multimodal) model",
        "llama.cpp cannot load the vision projector",
        "give another with `--mmproj`",
    ),
    Failure(
        r"error loading model: (?P<words>.+)", "llama.cpp cannot load the model: {words}", "try another GGUF of it"
    ),
    Failure(
        r"(?P<words>GGML_ASSERT\(.+\) failed)",
        "llama.cpp found an error of its own: {words}",
        "`llmdeploy logs` has the rest; another GGUF or a newer llama.cpp may do",
    ),
)

LLAMACPP_ERROR = Failure(
    r"^[\d.]+ E (?:\w+ +)?(?P<words>\S.*)", "llama.cpp says: {words}", "`llmdeploy logs` has the rest"
)
"""Any line that llama.cpp calls an error. The first is the cause where it ended in order; after a crash it may be an
old one of no weight."""


def diagnose(table: Sequence[Failure], log: Sequence[str], exit_status: int) -> Diagnosis | None:
    """What the log of a server that ended with `exit_status` (negative: by that signal) says.

    None when no line is known and the status tells nothing.
    """
    return by_signal(exit_status) or first(table, log)


def by_signal(exit_status: int) -> Diagnosis | None:
    """What the signal tells that ended a server; None where it tells nothing."""
    return _lacks_instructions(exit_status) or killed(exit_status)


def first(table: Sequence[Failure], lines: Sequence[str], log: Sequence[str] = ()) -> Diagnosis | None:
    """What the first row says that matches one of `lines`; `log` is all that was written."""
    for failure in table:
        for line in lines:
            if (match := re.search(failure.pattern, line)) and (found := _told(failure, match, log)):
                return found
    return None


def _told(failure: Failure, match: re.Match[str], log: Sequence[str]) -> Diagnosis | None:
    words = match.groupdict("")
    if failure.seen:
        seen = next(filter(None, (re.search(failure.seen, line) for line in log)), None)
        if seen is None:
            return None
        words |= seen.groupdict("")
    remedy = failure.remedy(words) if failure.remedy else None
    if remedy is not None:
        words["value"] = str(remedy.value)
    elif failure.remedy:
        return None
    return Diagnosis(failure.cause.format(**words), failure.fix.format(**words), remedy)


def killed(exit_status: int) -> Diagnosis | None:
    """What an end by a signal from outside says, whatever the log holds."""
    if exit_status in {-9, -signal.SIGTERM}:  # Windows has no SIGKILL to name
        name = "SIGKILL" if exit_status == -9 else "SIGTERM"
        return Diagnosis(
            f"the server was killed from outside ({name})",
            "look for who did; where memory ran out, `dmesg` says so",
        )
    return None


def _lacks_instructions(exit_status: int) -> Diagnosis | None:
    if exit_status == -signal.SIGILL:
        return Diagnosis(
            "this processor lacks instructions that the engine's build uses (AVX2)",
            "put a `llama-server` that was built for this machine on PATH",
        )
    return None
