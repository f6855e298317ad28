"""Ollama's words for a failure -> our sentence and hint: the first row that matches speaks.

Ollama has two dialects: before 0.30 it ran models in its own `llama runner`, since then in llama.cpp's `llama-server`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmdeploy.errors import (
    DoesNotFit,
    DownloadFailed,
    EngineMissing,
    ImageInvalid,
    LlmdeployError,
    ModelInvalid,
    ModelNotFound,
    PortInUse,
    RequestFailed,
    ServerDied,
    StartFailed,
    TimedOut,
)

AGAIN = "run it again: what is there is kept"
_LESS = "ask for less: `--context 2048`, or take a smaller model"
_SEES = "take a model that sees, such as `qwen2.5vl:7b`"
_CHATS = "take a model that chats, such as `qwen3:8b`"
_ABLE = "`ollama show {name}` lists what it can do"


@dataclass(frozen=True)
class Row:
    """`pattern` is searched in the words on one line, in any case.

    Its groups and the fields of `failures` fill `sentence` and `hint`.
    """

    pattern: str
    error: type[LlmdeployError]
    sentence: str
    hint: str


PULL = (
    Row(
        r"412:.*newer version of Ollama.*pre-release",
        DownloadFailed,
        "{model} needs an Ollama server that may not be released yet{versions}",
        "{on}take a pre-release: https://github.com/ollama/ollama/releases",
    ),
    Row(
        r"412:.*newer version of Ollama",
        DownloadFailed,
        "{model} needs a newer Ollama server than the one that runs{versions}",
        "{newer}",
    ),
    Row(
        r"sharded GGUF",
        ModelInvalid,
        "{model} is split into several files, which Ollama does not take from the Hub",
        "name a quantization that is one file, such as `{repo}:Q4_K_M`, or serve it with `--engine llamacpp`",
    ),
    Row(
        r"manifest: .*file does not exist|pull model manifest: 404",
        ModelNotFound,
        "Ollama's registry has no {model}",
        "{near}",
    ),
    Row(
        r"invalid model name",
        ModelNotFound,
        "Ollama allows no such name as {model}",
        "the form is `name:tag`, such as `qwen3:8b`",
    ),
    Row(
        r"manifest: 407|Proxy Authentication Required",
        DownloadFailed,
        "the proxy of Ollama's server asks for a password",
        "{on}write it into `HTTPS_PROXY` in the environment of the server's process: {environment}",
    ),
    Row(
        r"proxyconnect",
        DownloadFailed,
        "Ollama's server does not reach its proxy",
        "{on}correct `HTTPS_PROXY` in the environment of the server's process: {environment}",
    ),
    Row(
        r"x509: certificate has expired or is not yet valid",
        DownloadFailed,
        "to Ollama's server the certificate of {registry} is out of date",
        "{on}check the clock: `date`",
    ),
    Row(
        r"x509|failed to verify certificate|tls: (?!handshake timeout)",
        DownloadFailed,
        "Ollama's server does not trust the certificate of {registry}: a proxy opens the connection",
        "{on}{trust}",
    ),
    Row(
        r"no such host|server misbehaving|name resolution|getaddrinfow",
        DownloadFailed,
        "Ollama's server cannot look up the address of {registry}",
        "{on}check the network and its DNS; behind a proxy set `HTTPS_PROXY` for the server's process: {environment}",
    ),
    Row(
        r"dial tcp.*(?:connection refused|actively refused)",
        DownloadFailed,
        "{registry} refuses Ollama's server",
        "{on}check the network; behind a proxy set `HTTPS_PROXY` for the server's process: {environment}",
    ),
    Row(
        r"connection timed out|i/o timeout|handshake timeout|deadline exceeded|network is unreachable|no route to host",
        DownloadFailed,
        "Ollama's server cannot reach {registry}: a firewall, or no network",
        "{on}check the network; behind a proxy set `HTTPS_PROXY` for the server's process: {environment}",
    ),
    Row(
        r"invalid character '(?:<|\\u003c)' looking for beginning of value",
        DownloadFailed,
        "a web page answers in the place of Ollama's registry: a network that wants a login, or a proxy",
        "{on}log in to the network with a browser, then run it again",
    ),
    Row(
        r"no space left on device|not enough space on the disk|disk quota exceeded",
        DownloadFailed,
        "the disk of Ollama's store{store} is full{room}",
        "{on}free some space: `ollama list`, `ollama rm NAME`; or set `OLLAMA_MODELS` to a larger disk: {environment}",
    ),
    Row(
        r"digest mismatch, file must be downloaded again",
        DownloadFailed,
        "what arrived is not what Ollama's registry sent: a proxy or a virus scanner changed it",
        "run it again: Ollama has deleted the broken part",
    ),
    Row(
        r"max retries exceeded|unexpected EOF|connection reset by peer|stream error|: EOF$",
        DownloadFailed,
        "the connection broke off too often",
        AGAIN,
    ),
    Row(
        r"^unauthorized$",
        RequestFailed,
        "{model} runs in Ollama's cloud, and its server is not signed in there",
        "{on}`ollama signin`, or take a model that runs on the machine",
    ),
    Row(
        r"cloud is disabled",
        RequestFailed,
        "{model} runs in Ollama's cloud, which its server has switched off (`OLLAMA_NO_CLOUD`)",
        "take a model that runs on the machine: a tag without `cloud`",
    ),
    Row(
        r"unauthorized|access denied|manifest: 40[13]",
        DownloadFailed,
        "{registry} does not let Ollama's server have {model}: it is private, or its terms are to be accepted first",
        "{on}add the key of the user who runs the server ({key}) at {keys_page}",
    ),
    Row(
        r"insecure protocol http",
        DownloadFailed,
        "Ollama fetches nothing over plain HTTP",
        "name the registry with `https://`",
    ),
    Row(
        r"requires MLX support",
        ModelInvalid,
        "{model} is made for MLX, which this Ollama does not have",
        "take a tag without `mlx` or `nvfp4` in its name",
    ),
    Row(r"manifest: 429", DownloadFailed, "Ollama's registry refuses for now: too many requests", "wait some minutes"),
    Row(
        r"manifest: (?P<status>5\d\d)(?:: (?P<words>.+))?",
        DownloadFailed,
        "Ollama's registry is out of order ({status}): {words}",
        "try again later",
    ),
    Row(
        r"manifest: (?P<status>4\d\d): (?P<words>.+)",
        DownloadFailed,
        "Ollama's registry refuses {model} ({status}): {words}",
        "check the name",
    ),
)

MEMORY = (
    Row(
        r"requires more system memory \((?P<need>[^)]+)\) than is available \((?P<have>[^)]+)\)",
        DoesNotFit,
        "{model} needs {need} of memory and {have} are free",
        _LESS,
    ),
    Row(
        r"attempted to allocate (?P<size>[\d.]+ [KMGT]?i?B)",
        DoesNotFit,
        "{model} does not fit: Ollama could not get {size} of memory",
        _LESS,
    ),
    Row(
        r"signal: killed",
        DoesNotFit,
        "the system killed Ollama's process for {model}: mostly for want of memory, then `dmesg` says so",
        _LESS,
    ),
    Row(
        r"insufficient memory|out of memory|failed to allocate|unable to allocate|cudaMalloc failed|bad_alloc"
        r"|OutOfDeviceMemory|unable to load full model on GPU|0xc0000409",
        DoesNotFit,
        "Ollama could not get the memory that {model} needs",
        _LESS,
    ),
)

LOAD = (
    Row(
        r"unknown model architecture: 'mllama'",
        ModelInvalid,
        "no Ollama since 0.30 can run {model} (architecture `mllama`)",
        _SEES,
    ),
    Row(
        r"unknown model architecture: '(?P<architecture>[^']*)'",
        ModelInvalid,
        "this Ollama does not know the architecture `{architecture}`{versions}",
        "{newer}",
    ),
    Row(
        r"wrong number of tensors; expected (?P<expected>\d+), got (?P<got>\d+)",
        ModelInvalid,
        "the file of {model} holds {expected} tensors where its architecture has {got}: it is made for another program",
        "take a GGUF made by llama.cpp's own converter",
    ),
    Row(
        r"no longer compatible with your version of Ollama",
        ModelInvalid,
        "{model} is in an old form that this Ollama no longer runs",
        "fetch it again: `ollama pull {name}`; if that does not load either, take another, such as `qwen2.5vl:7b`",
    ),
    Row(
        r"may be incompatible with your version of Ollama",
        ModelInvalid,
        "{model} is in a form that this Ollama cannot run",
        "fetch it again: `ollama pull {name}`",
    ),
    Row(
        r"llama-(?P<program>server|quantize)(?: binary)? not found",
        EngineMissing,
        "this Ollama is installed in part: it lacks its `llama-{program}`",
        "{on}install it again: {install}",
    ),
    Row(
        r"exit status 127|error while loading shared libraries|cannot open shared object",
        EngineMissing,
        "this Ollama is a mix of two versions: its libraries do not belong to it",
        "{on}remove its folder `lib/ollama` (under `/usr/local` or `/usr`), then install it again: {install}",
    ),
    Row(
        r"0xc000001d|illegal instruction",
        StartFailed,
        "the processor lacks instructions that Ollama's build uses (AVX)",
        "{on}install the newest Ollama: {install}",
    ),
    Row(
        r"0xe06d7363",
        StartFailed,
        "Ollama's `llama-server` broke down in Windows' C++ runtime or the graphics driver",
        "{on}update both: `winget install Microsoft.VCRedist.2015+.x64`, and the driver from its maker",
    ),
    Row(
        r"failed to validate GGUF",
        ModelInvalid,
        "Ollama's llama.cpp cannot load this GGUF",
        "take a GGUF made by llama.cpp's own converter, or a newer Ollama: {install}",
    ),
    Row(
        r"blobs[/\\]sha256-\w+: no such file|blobs[/\\]sha256-\w+: The system cannot find",
        ModelInvalid,
        "a file of {model} is gone from Ollama's store",
        "fetch it again: `ollama pull {name}`",
    ),
    Row(
        r"digest mismatch, expected",
        ModelInvalid,
        "the file is not what it was: it changed, or broke on its way to Ollama",
        "run it again",
    ),
    Row(
        r"timed out waiting for (?:llama-server|llama runner)",
        TimedOut,
        "{model} did not load in the time that Ollama allows (`OLLAMA_LOAD_TIMEOUT`, 5 minutes without progress)",
        "{on}allow more in the environment of the server's process: {environment}",
    ),
    Row(
        r"runner has unexpectedly stopped|runner process no longer running",
        ServerDied,
        "Ollama's process for {model} ended while it answered",
        "{log} tells why; it may be memory: `--context 2048`",
    ),
    Row(
        r"error loading model: (?P<words>.+?)(?: error loading model: .+)?$",  # llama.cpp says it twice
        ModelInvalid,
        "Ollama cannot load {model}: {words}",
        "take another file of it; {log} has the rest",
    ),
    Row(
        r"(?:llama-server|llama runner) process has terminated: (?P<words>.+)",
        StartFailed,
        "Ollama's process for {model} ended before it was ready: {words}",
        "{log} has the rest",
    ),
)

SERVE = (
    Row(
        r"address already in use|only one usage of each socket address",
        PortInUse,
        "another program listens at Ollama's address: mostly an Ollama that runs already",
        "use that one, or stop it: {stop}",
    ),
    Row(
        r"forbidden by its access permissions",
        PortInUse,
        "Windows keeps Ollama's port for itself",
        "take another: `setx OLLAMA_HOST 127.0.0.1:11500`, then start Ollama again",
    ),
    Row(
        r"could not connect to (?:ollama|a running)|^connection refused$",
        EngineMissing,
        "no Ollama answers",
        "start it: {start}; is `OLLAMA_HOST` the same for the server and here?",
    ),
    Row(
        r"timed out waiting for server to start",
        TimedOut,
        "Ollama's server did not start in time",
        "{log} tells why",
    ),
    Row(
        r"client version is (?P<client>[^\s,]+)",
        EngineMissing,
        "the Ollama server that runs is not the version that is installed ({client})",
        "{on}restart it: {restart}",
    ),
    Row(
        r"could not create directory.*permission denied",
        StartFailed,
        "Ollama's server cannot write its own folder `.ollama` in the home of its user",
        "{on}give its process a `HOME` that it may write to: {environment}",
    ),
    Row(
        r"(?:mkdir|open|write|rename|stat|remove|chmod|link) (?P<path>(?:[A-Z]:)?[^:]+): "
        r"(?:permission denied|Access is denied)",
        StartFailed,
        "Ollama's server may not use its store: no permission for `{path}`",
        "{on}`sudo chown -R ollama:ollama {folder}`; every folder above it needs `chmod o+x` too",
    ),
)

REQUEST = (
    Row(r"^model \"?'?(?P<model>[^'\"]+)'?\"? not found", ModelNotFound, "Ollama has no model {model}", "{fetch}"),
    Row(r"does not support tools", RequestFailed, "{model} does not support tools", _ABLE),
    Row(r"does not support thinking", RequestFailed, "{model} does not support thinking", _ABLE),
    Row(
        r"does not support (?:chat|generate|completion)",
        ModelInvalid,
        "{model} cannot chat: it makes embeddings",
        _CHATS,
    ),
    Row(
        r"does not support embeddings",
        RequestFailed,
        "{model} makes no embeddings: it chats",
        "take a model for embeddings, such as `nomic-embed-text`",
    ),
    Row(
        r"invalid think value: \"?(?P<value>[^\"]*)\"?",
        RequestFailed,
        "`{value}` is no way to think that Ollama knows",
        "it knows `high`, `medium`, `low`, `max`, `true` and `false`",
    ),
    Row(
        r"image input is not supported|does not support multimodal",
        RequestFailed,
        "{model} sees no images",
        _SEES,
    ),
    Row(r"failed to load image", ImageInvalid, "Ollama cannot read the image", "send a PNG or a JPEG"),
    Row(
        r"illegal base64 data",
        ImageInvalid,
        "the image did not reach Ollama whole: its base64 is broken",
        "send it again",
    ),
    Row(
        r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+) tokens\)",
        RequestFailed,
        "the request has {prompt} tokens and the context holds {context}",
        "ask for less, or serve it again with a larger `--context`",
    ),
    Row(
        r"^invalid character|cannot unmarshal|unexpected end of JSON",
        RequestFailed,
        "Ollama cannot read the request as JSON",
        "correct the request",
    ),
    Row(r"server busy", RequestFailed, "Ollama's queue is full", "try again in a moment"),
    Row(r"request canceled", RequestFailed, "the request was ended before Ollama had answered it", "send it again"),
    Row(
        r"missing request body|^model is required",
        RequestFailed,
        "the request reached Ollama without its content",
        "something on the way drops it: check the proxy variables (`env | grep -i proxy`)",
    ),
    Row(
        r"^option \"(?P<option>\w+)\" must be of type (?P<type>\w+)",
        RequestFailed,
        "Ollama wants the option `{option}` to be of type {type}",
        "correct the request",
    ),
    Row(
        r"^status 40[13]\b",
        RequestFailed,
        "something refuses us before Ollama does: it does not allow this address, or a proxy wants a password",
        "connect to `localhost:11434`, or let the proxy send `Host: localhost:11434`; for browsers: `OLLAMA_ORIGINS`",
    ),
    Row(
        r"^status (?P<status>\d+)",
        RequestFailed,
        "the server answers with status {status} and no reason: mostly a proxy that stands before Ollama",
        "connect to Ollama itself with `OLLAMA_HOST`",
    ),
    Row(
        r"^404 page not found|^405 method not allowed",
        RequestFailed,
        "the server does not know this request: it is another program, or an Ollama that is too old{versions}",
        "{newer}",
    ),
)

TABLE = (*PULL, *MEMORY, *LOAD, *SERVE, *REQUEST)
