"""The failures that llama.cpp reports in its log. The special rules stand before the general ones."""

from __future__ import annotations

from llmdeploy.engines.diagnosis import FailureRule

RULES = (
    FailureRule(
        r"unknown model architecture: '(?P<name>[^']*)'",
        "this llama.cpp does not know the architecture `{name}`",
        "take a newer one: `pip install --upgrade xllamacpp`, or put a newer `llama-server` on PATH",
    ),
    FailureRule(
        r"wrong number of tensors; expected (?P<expected>\d+), got (?P<got>\d+)",
        "the GGUF has {expected} tensors, and this architecture has {got}: it was made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    FailureRule(
        r"tensor '(?P<name>[^']*)' not found",
        "the GGUF lacks the tensor `{name}`: it was made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    FailureRule(
        r"tensor '(?P<name>[^']*)' has wrong shape",
        "the GGUF's tensor `{name}` has the wrong shape: it was made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    FailureRule(
        r"clip_init: .*failed to (?:seek for|read) tensor",
        "the vision projector is truncated or damaged",
        "fetch the file again",
    ),
    FailureRule(
        r"unknown projector type: (?P<name>.+)",
        "this llama.cpp does not know the vision projector's type `{name}`",
        "take a newer one: `pip install --upgrade xllamacpp`, or put a newer `llama-server` on PATH",
    ),
    FailureRule(
        r"mismatch between text model \(n_embd = (?P<model>\d+)\) and mmproj \(n_embd = (?P<mmproj>\d+)\)",
        "the vision projector belongs to another model: it is {mmproj} wide and the model {model}",
        "give the right one with `--mmproj`",
    ),
    FailureRule(
        r"data is not within the file bounds|failed to read tensor|unexpectedly reached end of file",
        "the GGUF is truncated or damaged",
        "fetch the file again",
    ),
    FailureRule(
        r"couldn't bind|[Aa]ddress already in use",
        "another program took the port while the server started",
        "give another with `--port`",
    ),
    FailureRule(
        r"insufficient memory|failed to allocate|out of memory|[Oo]utOfMemory|std::bad_alloc",
        "llama.cpp could not get the memory it needs",
        "ask for less: `--context 2048 --parallel 1`, or take a smaller model",
    ),
    FailureRule(
        r"invalid argument: (?P<flag>\S+)",
        "this `llama-server` does not know the flag `{flag}`: it is too old",
        "update it, or set `engines.llamacpp.server` to a newer one",
    ),
    FailureRule(
        r"clip_init: failed to load model '[^']*': (?P<words>.+)",
        "llama.cpp cannot load the vision projector: {words}",
        "give another with `--mmproj`",
    ),
    FailureRule(
        r"[Ff]ailed to load (?:CLIP|multimodal) model",
        "llama.cpp cannot load the vision projector",
        "give another with `--mmproj`",
    ),
    FailureRule(
        r"error loading model: (?P<words>.+)", "llama.cpp cannot load the model: {words}", "try another GGUF of it"
    ),
    FailureRule(
        r"(?P<words>GGML_ASSERT\(.+\) failed)",
        "an internal check of llama.cpp failed: {words}",
        "`llmdeploy logs` has the rest; another GGUF or a newer llama.cpp may work",
    ),
)

ANY_ERROR = FailureRule(
    r"^[\d.]+ E (?:\w+ +)?(?P<words>\S.*)", "llama.cpp says: {words}", "`llmdeploy logs` has the rest"
)
"""Any line that llama.cpp marks as an error. The first one is the cause of an orderly end; after a crash it may be
an old and unimportant one."""
