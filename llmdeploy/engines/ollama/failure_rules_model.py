"""The failures of Ollama's server, its models and requests to it, recognized by its messages.

Ollama has two dialects: before 0.30 it ran models in its own `llama runner`, since then in llama.cpp's `llama-server`.
The special rules stand before the general ones.
"""

from __future__ import annotations

from llmdeploy.errors import (
    DoesNotFit,
    EngineMissing,
    ImageInvalid,
    ModelInvalid,
    ModelNotFound,
    PortInUse,
    RequestFailed,
    ServerDied,
    StartFailed,
    TimedOut,
)
from llmdeploy.rules import ErrorRule

_LESS = "ask for less: `--context 2048`, or take a smaller model"
_SEES = "take a model that sees, such as `qwen2.5vl:7b`"
_CHATS = "take a model that chats, such as `qwen3:8b`"
_ABLE = "`ollama show {name}` lists what it can do"

MEMORY = (
    ErrorRule(
        r"requires more system memory \((?P<need>[^)]+)\) than is available \((?P<have>[^)]+)\)",
        DoesNotFit,
        "{model} needs {need} of memory and {have} are free",
        _LESS,
    ),
    ErrorRule(
        r"attempted to allocate (?P<size>[\d.]+ [KMGT]?i?B)",
        DoesNotFit,
        "{model} does not fit: Ollama could not get {size} of memory",
        _LESS,
    ),
    ErrorRule(
        r"signal: killed",
        DoesNotFit,
        "the system killed Ollama's process for {model}: usually memory ran out, and `dmesg` shows it",
        _LESS,
    ),
    ErrorRule(
        r"insufficient memory|out of memory|failed to allocate|unable to allocate|cudaMalloc failed|bad_alloc"
        r"|OutOfDeviceMemory|unable to load full model on GPU|0xc0000409",
        DoesNotFit,
        "Ollama could not get the memory that {model} needs",
        _LESS,
    ),
)

LOAD = (
    ErrorRule(
        r"unknown model architecture: 'mllama'",
        ModelInvalid,
        "Ollama 0.30 and newer cannot run {model} (architecture `mllama`)",
        _SEES,
    ),
    ErrorRule(
        r"unknown model architecture: '(?P<architecture>[^']*)'",
        ModelInvalid,
        "this Ollama does not know the architecture `{architecture}`{versions}",
        "{newer}",
    ),
    ErrorRule(
        r"wrong number of tensors; expected (?P<expected>\d+), got (?P<got>\d+)",
        ModelInvalid,
        "the file of {model} has {expected} tensors, and its architecture has {got}: it is made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    ErrorRule(
        r"no longer compatible with your version of Ollama",
        ModelInvalid,
        "{model} is in an old form that this Ollama no longer runs",
        "fetch it again: `ollama pull {name}`; if that does not load either, take another, such as `qwen2.5vl:7b`",
    ),
    ErrorRule(
        r"may be incompatible with your version of Ollama",
        ModelInvalid,
        "{model} is in a form that this Ollama cannot run",
        "fetch it again: `ollama pull {name}`",
    ),
    ErrorRule(
        r"llama-(?P<program>server|quantize)(?: binary)? not found",
        EngineMissing,
        "this installation of Ollama is incomplete: it lacks its `llama-{program}`",
        "{on}install it again: {install}",
    ),
    ErrorRule(
        r"exit status 127|error while loading shared libraries|cannot open shared object",
        EngineMissing,
        "this Ollama is a mix of two versions: its libraries do not belong to it",
        "{on}remove its folder `lib/ollama` (under `/usr/local` or `/usr`), then install it again: {install}",
    ),
    ErrorRule(
        r"0xc000001d|illegal instruction",
        StartFailed,
        "the processor lacks instructions that Ollama's build uses (AVX)",
        "{on}install the newest Ollama: {install}",
    ),
    ErrorRule(
        r"0xe06d7363",
        StartFailed,
        "Ollama's `llama-server` broke down in Windows' C++ runtime or the graphics driver",
        "{on}update both: `winget install Microsoft.VCRedist.2015+.x64`, and the driver from its maker",
    ),
    ErrorRule(
        r"failed to validate GGUF",
        ModelInvalid,
        "Ollama's llama.cpp cannot load this GGUF",
        "take a GGUF made by llama.cpp's own converter, or a newer Ollama: {install}",
    ),
    ErrorRule(
        r"blobs[/\\]sha256-\w+: no such file|blobs[/\\]sha256-\w+: The system cannot find",
        ModelInvalid,
        "a file of {model} is gone from Ollama's store",
        "fetch it again: `ollama pull {name}`",
    ),
    ErrorRule(
        r"digest mismatch, expected",
        ModelInvalid,
        "the file is not what it was: it changed, or broke on its way to Ollama",
        "run it again",
    ),
    ErrorRule(
        r"timed out waiting for (?:llama-server|llama runner)",
        TimedOut,
        "{model} did not load in the time that Ollama allows (`OLLAMA_LOAD_TIMEOUT`, 5 minutes without progress)",
        "{on}allow more in the environment of the server's process: {environment}",
    ),
    ErrorRule(
        r"runner has unexpectedly stopped|runner process no longer running",
        ServerDied,
        "Ollama's process for {model} ended while it answered",
        "{log} tells why; it may be memory: `--context 2048`",
    ),
    ErrorRule(
        r"error loading model: (?P<words>.+?)(?: error loading model: .+)?$",  # llama.cpp says it twice
        ModelInvalid,
        "Ollama cannot load {model}: {words}",
        "take another file of it; {log} has the rest",
    ),
    ErrorRule(
        r"(?:llama-server|llama runner) process has terminated: (?P<words>.+)",
        StartFailed,
        "Ollama's process for {model} ended before it was ready: {words}",
        "{log} has the rest",
    ),
)

SERVE = (
    ErrorRule(
        r"address already in use|only one usage of each socket address",
        PortInUse,
        "another program listens at Ollama's address: usually an Ollama that runs already",
        "use that one, or stop it: {stop}",
    ),
    ErrorRule(
        r"forbidden by its access permissions",
        PortInUse,
        "Windows keeps Ollama's port for itself",
        "take another: `setx OLLAMA_HOST 127.0.0.1:11500`, then start Ollama again",
    ),
    ErrorRule(
        r"could not connect to (?:ollama|a running)|^connection refused$",
        EngineMissing,
        "no Ollama answers",
        "start it: {start}; is `OLLAMA_HOST` the same for the server and here?",
    ),
    ErrorRule(
        r"timed out waiting for server to start",
        TimedOut,
        "Ollama's server did not start in time",
        "{log} tells why",
    ),
    ErrorRule(
        r"client version is (?P<client>[^\s,]+)",
        EngineMissing,
        "the Ollama server that runs is not the version that is installed ({client})",
        "{on}restart it: {restart}",
    ),
    ErrorRule(
        r"could not create directory.*permission denied",
        StartFailed,
        "Ollama's server cannot write its own folder `.ollama` in the home of its user",
        "{on}give its process a `HOME` that it may write to: {environment}",
    ),
    ErrorRule(
        r"(?:mkdir|open|write|rename|stat|remove|chmod|link) (?P<path>(?:[A-Z]:)?[^:]+): "
        r"(?:permission denied|Access is denied)",
        StartFailed,
        "Ollama's server may not use its store: no permission for `{path}`",
        "{on}`sudo chown -R ollama:ollama {folder}`; every folder above it needs `chmod o+x` too",
    ),
)

REQUEST = (
    ErrorRule(
        r"^model \"?'?(?P<model>[^'\"]+)'?\"? not found", ModelNotFound, "Ollama has no model {model}", "{fetch}"
    ),
    ErrorRule(r"does not support tools", RequestFailed, "{model} does not support tools", _ABLE),
    ErrorRule(r"does not support thinking", RequestFailed, "{model} does not support thinking", _ABLE),
    ErrorRule(
        r"does not support (?:chat|generate|completion)",
        ModelInvalid,
        "{model} cannot chat: it makes embeddings",
        _CHATS,
    ),
    ErrorRule(
        r"does not support embeddings",
        RequestFailed,
        "{model} makes no embeddings: it chats",
        "take a model for embeddings, such as `nomic-embed-text`",
    ),
    ErrorRule(
        r"invalid think value: \"?(?P<value>[^\"]*)\"?",
        RequestFailed,
        "Ollama has no thinking level `{value}`",
        "its levels are `high`, `medium`, `low`, `max`, `true` and `false`",
    ),
    ErrorRule(
        r"image input is not supported|does not support multimodal",
        RequestFailed,
        "{model} sees no images",
        _SEES,
    ),
    ErrorRule(r"failed to load image", ImageInvalid, "Ollama cannot read the image", "send a PNG or a JPEG"),
    ErrorRule(
        r"illegal base64 data",
        ImageInvalid,
        "the image did not reach Ollama whole: its base64 is broken",
        "send it again",
    ),
    ErrorRule(
        r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+) tokens\)",
        RequestFailed,
        "the request has {prompt} tokens and the context holds {context}",
        "ask for less, or serve it again with a larger `--context`",
    ),
    ErrorRule(
        r"^invalid character|cannot unmarshal|unexpected end of JSON",
        RequestFailed,
        "Ollama cannot read the request as JSON",
        "correct the request",
    ),
    ErrorRule(r"server busy", RequestFailed, "Ollama's queue is full", "try again in a moment"),
    ErrorRule(
        r"request canceled", RequestFailed, "the request was cancelled before Ollama answered it", "send it again"
    ),
    ErrorRule(
        r"missing request body|^model is required",
        RequestFailed,
        "the request reached Ollama without its content",
        "a proxy on the way drops it: check the proxy variables (`env | grep -i proxy`)",
    ),
    ErrorRule(
        r"^option \"(?P<option>\w+)\" must be of type (?P<type>\w+)",
        RequestFailed,
        "Ollama wants the option `{option}` to be of type {type}",
        "correct the request",
    ),
    ErrorRule(
        r"^status 40[13]\b",
        RequestFailed,
        "the request was refused: Ollama does not allow this address, or a proxy in front of it wants a password",
        "connect to `localhost:11434`, or let the proxy send `Host: localhost:11434`; for browsers: `OLLAMA_ORIGINS`",
    ),
    ErrorRule(
        r"^status (?P<status>\d+)",
        RequestFailed,
        "the server answers with status {status} and no reason: usually a proxy in front of Ollama",
        "connect to Ollama itself with `OLLAMA_HOST`",
    ),
    ErrorRule(
        r"^404 page not found|^405 method not allowed",
        RequestFailed,
        "the server does not know this request: it is another program, or an Ollama that is too old{versions}",
        "{newer}",
    ),
)
