"""Ollama's words for its failures, in both dialects, and what users are told. The words are Ollama's own."""

from __future__ import annotations

import json
from functools import cache

import pytest

from llmdeploy.engines.ollama.failures import RULES, Context, explain, find_rule, is_newer, one_line, unwrap
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
from llmdeploy.rules import ErrorRule
from tests.ollama_replay import exchanges

HERE = Context(model="qwen3:8b", platform="linux")
GET = 'pull model manifest: Get "https://registry.ollama.ai/v2/library/qwen3/manifests/8b": '
NEWER = (
    "\nThe model you are attempting to pull requires a newer version of Ollama{0}.\n\n"
    "Please download the latest version at:\n\n\thttps://ollama.com/download\n\n"
)
PRE_RELEASE = NEWER.format(" that may be in pre-release")
BLOB = "/usr/share/ollama/.ollama/models/blobs/sha256-ab"


def nested(message: str, code: int = 400) -> str:
    """Return an error of `llama-server` as Ollama forwards it."""
    return json.dumps({"error": {"code": code, "message": message, "type": "server_error"}})


INSTALL = "`curl -fsSL https://ollama.com/install.sh | sh`"
LOG = "`journalctl -u ollama` or `~/.ollama/logs/server.log`"
NETWORK = "check the network; behind a proxy set `HTTPS_PROXY` for the server's process: `sudo systemctl edit ollama`"
LESS = "ask for less: `--context 2048`, or take a smaller model"
SEES = "take a model that sees, such as `qwen2.5vl:7b`"
CONVERTED = "take a GGUF made by llama.cpp's own converter"

CASES: list[tuple[str, type[LlmdeployError], str, str]] = [
    # pull
    (
        f"pull model manifest: 412: {PRE_RELEASE}",
        DownloadFailed,
        "`qwen3:8b` needs an Ollama server that may not be released yet",
        "take a pre-release: https://github.com/ollama/ollama/releases",
    ),
    (
        "pull model manifest: 412: " + NEWER.format(""),
        DownloadFailed,
        "`qwen3:8b` needs a newer Ollama server than the one that runs",
        f"install the newest Ollama and restart its server: {INSTALL}",
    ),
    (
        'pull model manifest: 400: {"error":"The specified tag is a sharded GGUF. Ollama does not support this yet. '
        'Follow this issue for more info"}',
        ModelInvalid,
        "`qwen3:8b` is split into several files, which Ollama does not take from the Hub",
        "name a quantization that is one file, such as `qwen3:Q4_K_M`, or serve it with `--engine llamacpp`",
    ),
    (
        "pull model manifest: file does not exist",
        ModelNotFound,
        "Ollama's registry has no `qwen3:8b`",
        "https://ollama.com/search lists the names; `ollama list` those that are here",
    ),
    (
        "invalid model name",
        ModelNotFound,
        "Ollama does not allow the name `qwen3:8b`",
        "the form is `name:tag`, such as `qwen3:8b`",
    ),
    (
        GET + "Proxy Authentication Required",
        DownloadFailed,
        "the proxy of Ollama's server asks for a password",
        "write it into `HTTPS_PROXY` in the environment of the server's process: `sudo systemctl edit ollama`",
    ),
    (
        GET + "proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused",
        DownloadFailed,
        "Ollama's server does not reach its proxy",
        "correct `HTTPS_PROXY` in the environment of the server's process: `sudo systemctl edit ollama`",
    ),
    (
        GET + "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 1970",
        DownloadFailed,
        "for Ollama's server the certificate of `registry.ollama.ai` has expired or is not valid yet",
        "check the clock: `date`",
    ),
    (
        GET + "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        DownloadFailed,
        "Ollama's server does not trust the certificate of `registry.ollama.ai`: a proxy opens the connection",
        "add the proxy's certificate to the system's store (`sudo update-ca-certificates`), "
        "then `sudo systemctl restart ollama`",
    ),
    (
        GET + "dial tcp: lookup registry.ollama.ai on 127.0.0.53:53: no such host",
        DownloadFailed,
        "Ollama's server cannot look up the address of `registry.ollama.ai`",
        "check the network and its DNS; behind a proxy set `HTTPS_PROXY` for the server's process: "
        "`sudo systemctl edit ollama`",
    ),
    (
        'pull model manifest: Get "http://127.0.0.1:9/v2/library/tiny/manifests/ok": dial tcp 127.0.0.1:9: '
        "connect: connection refused",
        DownloadFailed,
        "`127.0.0.1:9` refuses Ollama's server",
        NETWORK,
    ),
    *(
        (
            GET + words,
            DownloadFailed,
            "Ollama's server cannot reach `registry.ollama.ai`: a firewall, or no network",
            NETWORK,
        )
        for words in (
            "dial tcp 104.21.75.227:443: i/o timeout",
            "dial tcp 104.21.75.227:443: connect: connection timed out",
            "net/http: TLS handshake timeout",
            "tls: handshake timeout",
            "context deadline exceeded",
            "dial tcp 104.21.75.227:443: connect: network is unreachable",
        )
    ),
    (
        "pull model manifest: invalid character '<' looking for beginning of value",
        DownloadFailed,
        "a web page answers instead of Ollama's registry: the network wants a login, or a proxy is in between",
        "log in to the network with a browser, then run it again",
    ),
    (
        f"write {BLOB}-partial: no space left on device",
        DownloadFailed,
        "the disk of Ollama's store `/usr/share/ollama/.ollama/models` is full",
        "free some space: `ollama list`, `ollama rm NAME`; or set `OLLAMA_MODELS` to a larger disk: "
        "`sudo systemctl edit ollama`",
    ),
    (
        r"write C:\Users\me\.ollama\models\blobs\sha256-ab-partial: There is not enough space on the disk.",
        DownloadFailed,
        r"the disk of Ollama's store `C:\Users\me\.ollama\models` is full",
        "free some space: `ollama list`, `ollama rm NAME`; or set `OLLAMA_MODELS` to a larger disk: "
        "`sudo systemctl edit ollama`",
    ),
    (
        "digest mismatch, file must be downloaded again: want sha256:ab, got sha256:cd",
        DownloadFailed,
        "what arrived is not what Ollama's registry sent: a proxy or a virus scanner changed it",
        "run it again: Ollama has deleted the broken part",
    ),
    *(
        (words, DownloadFailed, "the connection broke off too often", "run it again: what is there is kept")
        for words in (
            "max retries exceeded: EOF",
            "max retries exceeded: unexpected EOF",
            "unexpected EOF",
            GET + "EOF",
        )
    ),
    (
        '{"error":"unauthorized","signin_url":"https://ollama.com/connect?name=x"}',
        RequestFailed,
        "`qwen3:8b` runs in Ollama's cloud, and its server is not signed in there",
        "`ollama signin`, or take a model that runs on the machine",
    ),
    (
        "ollama cloud is disabled: remote model is unavailable",
        RequestFailed,
        "`qwen3:8b` runs in Ollama's cloud, which its server has switched off (`OLLAMA_NO_CLOUD`)",
        "take a model that runs on the machine: a tag without `cloud`",
    ),
    (
        "pull model manifest: unauthorized: access denied",
        DownloadFailed,
        "Ollama's registry does not give `qwen3:8b` to Ollama's server: it is private, or its terms must be "
        "accepted first",
        "add the key of the user who runs the server "
        "(`~/.ollama/id_ed25519.pub`, of the service `/usr/share/ollama/.ollama/id_ed25519.pub`) "
        "at https://ollama.com/settings/keys",
    ),
    (
        "insecure protocol http",
        DownloadFailed,
        "Ollama fetches nothing over plain HTTP",
        "name the registry with `https://`",
    ),
    (
        "this model requires MLX support, but the MLX runtime is not available",
        ModelInvalid,
        "`qwen3:8b` is made for MLX, which this Ollama does not have",
        "take a tag without `mlx` or `nvfp4` in its name",
    ),
    (
        "pull model manifest: 429: slow down",
        DownloadFailed,
        "Ollama's registry refuses for now: too many requests",
        "wait some minutes",
    ),
    (
        "pull model manifest: 503: upstream sad",
        DownloadFailed,
        "Ollama's registry has a failure (503): upstream sad",
        "try again later",
    ),
    (
        "pull model manifest: 502",
        DownloadFailed,
        "Ollama's registry has a failure (502): no reason",
        "try again later",
    ),
    (
        'pull model manifest: 400: {"error":"Repository is not GGUF or is not compatible with llama.cpp"}',
        DownloadFailed,
        "Ollama's registry refuses `qwen3:8b` (400): Repository is not GGUF or is not compatible with llama.cpp",
        "check the name",
    ),
    # memory, in both dialects
    (
        "model requires more system memory (12.5 GiB) than is available (7.1 GiB)",
        DoesNotFit,
        "`qwen3:8b` needs 12.5 GiB of memory and 7.1 GiB are free",
        LESS,
    ),
    (
        "llama-server process has terminated: exit status 1: ggml_aligned_malloc: insufficient memory (attempted to "
        "allocate 97656.25 MB)\nalloc_tensor_range: failed to allocate buffer for kv cache",
        DoesNotFit,
        "`qwen3:8b` does not fit: Ollama could not get 97656.25 MB of memory",
        LESS,
    ),
    *(
        (
            f"{program} process has terminated: signal: killed",
            DoesNotFit,
            "the system killed Ollama's process for `qwen3:8b`: usually memory ran out, and `dmesg` shows it",
            LESS,
        )
        for program in ("llama runner", "llama-server")
    ),
    *(
        (words, DoesNotFit, "Ollama could not get the memory that `qwen3:8b` needs", LESS)
        for words in (
            "llama runner process has terminated: exit status 0xc0000409",
            "llama runner process has terminated: cudaMalloc failed: out of memory",
            "llama runner process has terminated: error loading model: unable to allocate CUDA0 buffer",
            "llama runner process has terminated: unable to allocate backend buffer",
            "llama-server process has terminated: exit status 1: failed to allocate buffer for kv cache",
            "unable to load full model on GPU",
        )
    ),
    # load
    (
        "llama-server process has terminated: exit status 1: error loading model: unknown model architecture: 'mllama'",
        ModelInvalid,
        "Ollama 0.30 and newer cannot run `qwen3:8b` (architecture `mllama`)",
        SEES,
    ),
    *(
        (
            f"{program}: error loading model: unknown model architecture: 'qwen9'",
            ModelInvalid,
            "this Ollama does not know the architecture `qwen9`",
            f"install the newest Ollama and restart its server: {INSTALL}",
        )
        for program in ("llama-server process has terminated: exit status 1", "llama runner process has terminated")
    ),
    (
        "llama-server process has terminated: exit status 1: error loading model: done_getting_tensors: wrong number "
        "of tensors; expected 23, got 21",
        ModelInvalid,
        "the file of `qwen3:8b` has 23 tensors, and its architecture has 21: it is made for another program",
        CONVERTED,
    ),
    (
        "'qwen3:8b' is no longer compatible with your version of Ollama and has been replaced by a newer version. To "
        "re-download, run 'ollama pull qwen3:8b'",
        ModelInvalid,
        "`qwen3:8b` is in an old form that this Ollama no longer runs",
        "fetch it again: `ollama pull qwen3:8b`; if that does not load either, take another, such as `qwen2.5vl:7b`",
    ),
    (
        "this model may be incompatible with your version of Ollama. If you previously pulled this model, try updating "
        "it by running `ollama pull qwen3:8b`",
        ModelInvalid,
        "`qwen3:8b` is in a form that this Ollama cannot run",
        "fetch it again: `ollama pull qwen3:8b`",
    ),
    (
        "error starting llama-server: llama-server binary not found (checked: /usr/lib/ollama/llama-server)",
        EngineMissing,
        "this installation of Ollama is incomplete: it lacks its `llama-server`",
        f"install it again: {INSTALL}",
    ),
    *(
        (
            words,
            EngineMissing,
            "this Ollama is a mix of two versions: its libraries do not belong to it",
            f"remove its folder `lib/ollama` (under `/usr/local` or `/usr`), then install it again: {INSTALL}",
        )
        for words in (
            "llama runner process has terminated: exit status 127",
            "llama-server process has terminated: error while loading shared libraries: libggml.so: cannot open shared "
            "object file",
        )
    ),
    (
        "llama-server process has terminated: exit status 0xc000001d",
        StartFailed,
        "the processor lacks instructions that Ollama's build uses (AVX)",
        f"install the newest Ollama: {INSTALL}",
    ),
    (
        "llama-server process has terminated: exit status 0xe06d7363",
        StartFailed,
        "Ollama's `llama-server` broke down in Windows' C++ runtime or the graphics driver",
        "update both: `winget install Microsoft.VCRedist.2015+.x64`, and the driver from its maker",
    ),
    (
        "failed to validate GGUF with llama-quantize without compatibility patches: "
        "llama-quantize failed: exit status 1",
        ModelInvalid,
        "Ollama's llama.cpp cannot load this GGUF",
        f"take a GGUF made by llama.cpp's own converter, or a newer Ollama: {INSTALL}",
    ),
    (
        f"open {BLOB}: no such file or directory",
        ModelInvalid,
        "a file of `qwen3:8b` is gone from Ollama's store",
        "fetch it again: `ollama pull qwen3:8b`",
    ),
    (
        'digest mismatch, expected "sha256:00", got "sha256:5d"',
        ModelInvalid,
        "the file is not what it was: it changed, or broke on its way to Ollama",
        "run it again",
    ),
    *(
        (
            f"timed out waiting for {program} to start - progress 0.00 - ",
            TimedOut,
            "`qwen3:8b` did not load in the time that Ollama allows (`OLLAMA_LOAD_TIMEOUT`, 5 minutes without "
            "progress)",
            "allow more in the environment of the server's process: `sudo systemctl edit ollama`",
        )
        for program in ("llama-server", "llama runner")
    ),
    (
        "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check "
        "ollama server logs for details",
        ServerDied,
        "Ollama's process for `qwen3:8b` ended while it answered",
        f"{LOG} tells why; it may be memory: `--context 2048`",
    ),
    (
        "llama-server process has terminated: exit status 1: error loading model: key qwen35.rope.dimension_sections "
        "has wrong array length; expected 4, got 3",
        ModelInvalid,
        "Ollama cannot load `qwen3:8b`: key qwen35.rope.dimension_sections has wrong array length; expected 4, got 3",
        f"take another file of it; {LOG} has the rest",
    ),
    (
        "llama runner process has terminated: exit status 2",
        StartFailed,
        "Ollama's process for `qwen3:8b` ended before it was ready: exit status 2",
        f"{LOG} has the rest",
    ),
    # the server itself
    *(
        (
            words,
            PortInUse,
            "another program listens at Ollama's address: usually an Ollama that runs already",
            "use that one, or stop it: `sudo systemctl stop ollama`",
        )
        for words in (
            "Error: listen tcp 127.0.0.1:11434: bind: address already in use",
            "Error: listen tcp 127.0.0.1:11434: bind: Only one usage of each socket address (protocol/network "
            "address/port) is normally permitted.",
        )
    ),
    (
        "Error: listen tcp 127.0.0.1:11434: bind: An attempt was made to access a socket in a way forbidden by its "
        "access permissions.",
        PortInUse,
        "Windows keeps Ollama's port for itself",
        "take another: `setx OLLAMA_HOST 127.0.0.1:11500`, then start Ollama again",
    ),
    *(
        (
            words,
            EngineMissing,
            "no Ollama answers",
            "start it: `ollama serve`, or `sudo systemctl start ollama`; is `OLLAMA_HOST` the same for the server and "
            "here?",
        )
        for words in (
            "Error: could not connect to ollama server, run 'ollama serve' to start it",
            "Error: could not connect to ollama app, is it running?",
            "Warning: could not connect to a running Ollama instance",
        )
    ),
    (
        "Error: timed out waiting for server to start",
        TimedOut,
        "Ollama's server did not start in time",
        f"{LOG} tells why",
    ),
    (
        "Warning: client version is 0.33.0",
        EngineMissing,
        "the Ollama server that runs is not the version that is installed (0.33.0)",
        "restart it: `sudo systemctl restart ollama`",
    ),
    (
        "Error: could not create directory mkdir /nonexistent: permission denied",
        StartFailed,
        "Ollama's server cannot write its own folder `.ollama` in the home of its user",
        "give its process a `HOME` that it may write to: `sudo systemctl edit ollama`",
    ),
    (
        "Error: mkdir /data/models: permission denied: ensure path elements are traversable",
        StartFailed,
        "Ollama's server may not use its store: no permission for `/data/models`",
        "`sudo chown -R ollama:ollama /data/models`; every folder above it needs `chmod o+x` too",
    ),
    (
        "open /data/my models/blobs/sha256-ab-partial: permission denied",
        StartFailed,
        "Ollama's server may not use its store: no permission for `/data/my models/blobs/sha256-ab-partial`",
        "`sudo chown -R ollama:ollama '/data/my models'`; every folder above it needs `chmod o+x` too",
    ),
    # requests
    ("model 'qwen3:8b' not found", ModelNotFound, "Ollama has no model `qwen3:8b`", "fetch it: `ollama pull qwen3:8b`"),
    (
        'model "nope" not found, try pulling it first',
        ModelNotFound,
        "Ollama has no model `nope`",
        "https://ollama.com/search lists the names; `ollama list` those that are here",
    ),
    (
        "registry.ollama.ai/library/tiny:latest does not support tools",
        RequestFailed,
        "`qwen3:8b` does not support tools",
        "`ollama show qwen3:8b` lists what it can do",
    ),
    (
        '"tiny" does not support thinking',
        RequestFailed,
        "`qwen3:8b` does not support thinking",
        "`ollama show qwen3:8b` lists what it can do",
    ),
    *(
        (
            f'"x" does not support {what}',
            ModelInvalid,
            "`qwen3:8b` cannot chat: it makes embeddings",
            "take a model that chats, such as `qwen3:8b`",
        )
        for what in ("chat", "generate")
    ),
    (
        "This server does not support embeddings. Start it with `--embeddings`",
        RequestFailed,
        "`qwen3:8b` makes no embeddings: it chats",
        "take a model for embeddings, such as `nomic-embed-text`",
    ),
    (
        'invalid think value: "extreme" (must be "high", "medium", "low", "max", true, or false)',
        RequestFailed,
        "Ollama has no thinking level `extreme`",
        "its levels are `high`, `medium`, `low`, `max`, `true` and `false`",
    ),
    (
        nested("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", 500),
        RequestFailed,
        "`qwen3:8b` sees no images",
        SEES,
    ),
    (
        nested("Multimodal data provided, but model does not support multimodal requests."),
        RequestFailed,
        "`qwen3:8b` sees no images",
        SEES,
    ),
    (
        nested("Failed to load image or audio file"),
        ImageInvalid,
        "Ollama cannot read the image",
        "send a PNG or a JPEG",
    ),
    (
        "illegal base64 data at input byte 9",
        ImageInvalid,
        "the image did not reach Ollama whole: its base64 is broken",
        "send it again",
    ),
    (
        nested("request (3015 tokens) exceeds the available context size (512 tokens), try increasing it"),
        RequestFailed,
        "the request has 3015 tokens and the context holds 512",
        "ask for less, or serve it again with a larger `--context`",
    ),
    (
        "invalid character 'n' looking for beginning of object key string",
        RequestFailed,
        "Ollama cannot read the request as JSON",
        "correct the request",
    ),
    (
        "server busy, please try again.  maximum pending requests exceeded",
        RequestFailed,
        "Ollama's queue is full",
        "try again in a moment",
    ),
    ("request canceled", RequestFailed, "the request was cancelled before Ollama answered it", "send it again"),
    *(
        (
            words,
            RequestFailed,
            "the request reached Ollama without its content",
            "a proxy on the way drops it: check the proxy variables (`env | grep -i proxy`)",
        )
        for words in ("missing request body", "model is required")
    ),
    (
        'option "num_ctx" must be of type integer',
        RequestFailed,
        "Ollama wants the option `num_ctx` to be of type integer",
        "correct the request",
    ),
    (
        "status 403",
        RequestFailed,
        "the request was refused: Ollama does not allow this address, or a proxy in front of it wants a password",
        "connect to `localhost:11434`, or let the proxy send `Host: localhost:11434`; for browsers: `OLLAMA_ORIGINS`",
    ),
    (
        "status 502",
        RequestFailed,
        "the server answers with status 502 and no reason: usually a proxy in front of Ollama",
        "connect to Ollama itself with `OLLAMA_HOST`",
    ),
    (
        "404 page not found",
        RequestFailed,
        "the server does not know this request: it is another program, or an Ollama that is too old",
        f"install the newest Ollama and restart its server: {INSTALL}",
    ),
]


def told(error: LlmdeployError) -> tuple[type[LlmdeployError], str, str]:
    return type(error), error.message, error.hint


@pytest.mark.parametrize(("words", "kind", "message", "hint"), CASES, ids=[one_line(case[0])[:60] for case in CASES])
def test_failure_has_its_message_and_hint(words: str, kind: type[LlmdeployError], message: str, hint: str) -> None:
    assert told(explain(words, HERE)) == (kind, message, hint)
    assert told(explain({"error": words}, HERE)) == (kind, message, hint)


@cache
def found_rules() -> dict[str, ErrorRule | None]:
    """Return the rule of each case, by its words."""
    return {words: found[0] if (found := find_rule(one_line(unwrap(words)))) else None for words, *_ in CASES}


def test_every_rule_has_a_case() -> None:
    reached = {found.pattern for found in found_rules().values() if found}
    assert [row.pattern for row in RULES if row.pattern not in reached] == []


@pytest.mark.parametrize("row", RULES, ids=lambda row: row.pattern[:40])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_every_rule_gives_clean_messages_on_every_system(row: ErrorRule, platform: str) -> None:
    words = next(words for words, found in found_rules().items() if found == row)
    error = explain(words, Context(platform=platform))
    for text in (error.message, error.hint):
        assert text
        assert text == one_line(text)
        assert text.count("`") % 2 == 0
        assert "``" not in text
        assert "{" not in text
        assert not text.endswith(".")


@pytest.mark.parametrize(
    ("model", "known", "hint"),
    [
        ("qwen2.5-vl:7b", [], "did you mean `qwen2.5vl:7b`?"),
        ("qwen3:9b", [], "did you mean `qwen3.5:9b` or `qwen3:8b` or `qwen3:32b`?"),
        ("mymodle", ["mymodel:latest"], "did you mean `mymodel`?"),
        (
            "hf.co/a/b:Q9",
            [],
            "check the repository and the name behind the `:`, which is a quantization or a file of it",
        ),
    ],
)
def test_unknown_name_suggests_similar_names(model: str, known: list[str], hint: str) -> None:
    error = explain("pull model manifest: file does not exist", Context(model=model, known=known))
    assert error.hint == hint


@pytest.mark.parametrize(
    ("server", "program", "message", "hint"),
    [
        (
            "0.6.2",
            "0.33.0",
            "`qwen3:8b` needs a newer Ollama server than the one that runs (it is 0.6.2; the installed program "
            "is 0.33.0)",
            "restart the server: `sudo systemctl restart ollama`",
        ),
        (
            "0.33.0-rc2",
            "0.33.0-rc2",
            "`qwen3:8b` needs a newer Ollama server than the one that runs (0.33.0-rc2)",
            f"install the newest Ollama and restart its server: {INSTALL}",
        ),
        (
            "0.0.0",
            "0.33.0",
            "`qwen3:8b` needs a newer Ollama server than the one that runs (0.0.0)",
            f"install the newest Ollama and restart its server: {INSTALL}",
        ),
    ],
)
def test_old_server_is_distinguished_from_an_old_installation(
    server: str, program: str, message: str, hint: str
) -> None:
    context = Context(model="qwen3:8b", server_version=server, program_version=program, platform="linux")
    error = explain("pull model manifest: 412: " + NEWER.format(""), context)
    assert told(error) == (DownloadFailed, message, hint)


def test_full_disk_reports_the_missing_bytes() -> None:
    context = Context(model="qwen3:8b", missing_bytes=3_210_000_000, platform="linux")
    error = explain(f"write {BLOB}-partial: no space left on device", context)
    assert error.message == (
        "the disk of Ollama's store `/usr/share/ollama/.ollama/models` is full: 3.21 GB are still to come"
    )


def test_hint_names_the_machine_of_the_server() -> None:
    error = explain(
        "max retries exceeded: x509: certificate signed by unknown authority",
        Context(host="gpu:11434", platform="linux"),
    )
    assert error.hint.startswith("on `gpu:11434`: add the proxy's certificate")
    assert explain("what", Context(host="gpu:11434", platform="linux")).hint == f"on `gpu:11434`: {LOG} tells more"


def test_model_of_the_hub_has_the_key_page_of_the_hub() -> None:
    error = explain("pull model manifest: 401: unauthorized", Context(model="hf.co/a/b:Q4_K_M"))
    assert error.message.startswith("the Hub does not give `hf.co/a/b:Q4_K_M` to Ollama's server")
    assert error.hint.endswith("at https://huggingface.co/settings/keys")


@pytest.mark.parametrize("otherwise", [RequestFailed, DownloadFailed, StartFailed])
def test_unknown_message_is_quoted_on_one_line(otherwise: type[LlmdeployError]) -> None:
    error = explain(nested("something\n  quite\x1b[31m new"), HERE, otherwise=otherwise)
    assert told(error) == (otherwise, "Ollama says: something quite [31m new", f"{LOG} tells more")
    assert len(explain("x" * 5000, HERE).message) < 320


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("plain", "plain"),
        ({"error": "plain"}, "plain"),
        ({"error": nested("inner")}, "inner"),
        (json.dumps({"error": json.dumps({"error": nested("deep")})}), "deep"),
        ('prefix: 400: {"error":"inner"}', "prefix: 400: inner"),
        ("a { brace", "a { brace"),
        ('{"status":"x"}', '{"status":"x"}'),
        ({"code": 5}, '{"code": 5}'),
        ({}, "{}"),
        (None, "None"),
        ("{" * 100_000, "{" * 100_000),
        ('{"a":' * 100_000, '{"a":' * 100_000),
    ],
)
def test_nested_json_is_unwrapped(error: object, words: str) -> None:
    assert unwrap(error) == words


def test_every_recorded_chat_error_is_known() -> None:
    answers = [one["response"]["chunks"][0][1] for one in exchanges("chat_errors")]
    assert len(answers) == 10
    told = [explain(answer, Context(model="selftest")) for answer in answers]
    assert [error.message for error in told if error.message.startswith("Ollama says")] == []
    assert told[0].message == "Ollama has no model `nope`"
    assert told[6].message == "the request has 9014 tokens and the context holds 2048"


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [
        ("0.33.0", "0.6.2", True),
        ("0.33.0-rc2", "0.33.0", False),
        ("0.6.2", "0.33.0", False),
        ("0.33.0", "0.0.0", False),
        ("0.33.0", None, False),
        ("dev", "0.1.0", False),
    ],
)
def test_only_known_versions_are_compared(version: str, than: str | None, newer: bool) -> None:
    assert is_newer(version, than) is newer
