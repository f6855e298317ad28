"""The failures of Ollama's downloads, recognized by its messages. The special rules stand before the general ones."""

from __future__ import annotations

from llmdeploy.errors import (
    DownloadFailed,
    ModelInvalid,
    ModelNotFound,
    RequestFailed,
)
from llmdeploy.rules import ErrorRule

AGAIN = "run it again: what is there is kept"

DOWNLOAD = (
    ErrorRule(
        r"412:.*newer version of Ollama.*pre-release",
        DownloadFailed,
        "{model} needs an Ollama server that may not be released yet{versions}",
        "{on}take a pre-release: https://github.com/ollama/ollama/releases",
    ),
    ErrorRule(
        r"412:.*newer version of Ollama",
        DownloadFailed,
        "{model} needs a newer Ollama server than the one that runs{versions}",
        "{newer}",
    ),
    ErrorRule(
        r"sharded GGUF",
        ModelInvalid,
        "{model} is split into several files, which Ollama does not take from the Hub",
        "name a quantization that is one file, such as `{repo}:Q4_K_M`, or serve it with `--engine llamacpp`",
    ),
    ErrorRule(
        r"manifest: .*file does not exist|pull model manifest: 404",
        ModelNotFound,
        "Ollama's registry has no {model}",
        "{near}",
    ),
    ErrorRule(
        r"invalid model name",
        ModelNotFound,
        "Ollama does not allow the name {model}",
        "the form is `name:tag`, such as `qwen3:8b`",
    ),
    ErrorRule(
        r"manifest: 407|Proxy Authentication Required",
        DownloadFailed,
        "the proxy of Ollama's server asks for a password",
        "{on}write it into `HTTPS_PROXY` in the environment of the server's process: {environment}",
    ),
    ErrorRule(
        r"proxyconnect",
        DownloadFailed,
        "Ollama's server does not reach its proxy",
        "{on}correct `HTTPS_PROXY` in the environment of the server's process: {environment}",
    ),
    ErrorRule(
        r"x509: certificate has expired or is not yet valid",
        DownloadFailed,
        "for Ollama's server the certificate of {registry} has expired or is not valid yet",
        "{on}check the clock: `date`",
    ),
    ErrorRule(
        r"x509|failed to verify certificate|tls: (?!handshake timeout)",
        DownloadFailed,
        "Ollama's server does not trust the certificate of {registry}: a proxy opens the connection",
        "{on}{trust}",
    ),
    ErrorRule(
        r"no such host|server misbehaving|name resolution|getaddrinfow",
        DownloadFailed,
        "Ollama's server cannot look up the address of {registry}",
        "{on}check the network and its DNS; behind a proxy set `HTTPS_PROXY` for the server's process: {environment}",
    ),
    ErrorRule(
        r"dial tcp.*(?:connection refused|actively refused)",
        DownloadFailed,
        "{registry} refuses Ollama's server",
        "{on}check the network; behind a proxy set `HTTPS_PROXY` for the server's process: {environment}",
    ),
    ErrorRule(
        r"connection timed out|i/o timeout|handshake timeout|deadline exceeded|network is unreachable|no route to host",
        DownloadFailed,
        "Ollama's server cannot reach {registry}: a firewall, or no network",
        "{on}check the network; behind a proxy set `HTTPS_PROXY` for the server's process: {environment}",
    ),
    ErrorRule(
        r"invalid character '(?:<|\\u003c)' looking for beginning of value",
        DownloadFailed,
        "a web page answers instead of Ollama's registry: the network wants a login, or a proxy is in between",
        "{on}log in to the network with a browser, then run it again",
    ),
    ErrorRule(
        r"no space left on device|not enough space on the disk|disk quota exceeded",
        DownloadFailed,
        "the disk of Ollama's store{store} is full{room}",
        "{on}free some space: `ollama list`, `ollama rm NAME`; or set `OLLAMA_MODELS` to a larger disk: {environment}",
    ),
    ErrorRule(
        r"digest mismatch, file must be downloaded again",
        DownloadFailed,
        "what arrived is not what Ollama's registry sent: a proxy or a virus scanner changed it",
        "run it again: Ollama has deleted the broken part",
    ),
    ErrorRule(
        r"max retries exceeded|unexpected EOF|connection reset by peer|stream error|: EOF$",
        DownloadFailed,
        "the connection broke off too often",
        AGAIN,
    ),
    ErrorRule(
        r"^unauthorized$",
        RequestFailed,
        "{model} runs in Ollama's cloud, and its server is not signed in there",
        "{on}`ollama signin`, or take a model that runs on the machine",
    ),
    ErrorRule(
        r"cloud is disabled",
        RequestFailed,
        "{model} runs in Ollama's cloud, which its server has switched off (`OLLAMA_NO_CLOUD`)",
        "take a model that runs on the machine: a tag without `cloud`",
    ),
    ErrorRule(
        r"unauthorized|access denied|manifest: 40[13]",
        DownloadFailed,
        "{registry} does not give {model} to Ollama's server: it is private, or its terms must be accepted first",
        "{on}add the key of the user who runs the server ({key}) at {keys_page}",
    ),
    ErrorRule(
        r"insecure protocol http",
        DownloadFailed,
        "Ollama fetches nothing over plain HTTP",
        "name the registry with `https://`",
    ),
    ErrorRule(
        r"requires MLX support",
        ModelInvalid,
        "{model} is made for MLX, which this Ollama does not have",
        "take a tag without `mlx` or `nvfp4` in its name",
    ),
    ErrorRule(
        r"manifest: 429", DownloadFailed, "Ollama's registry refuses for now: too many requests", "wait some minutes"
    ),
    ErrorRule(
        r"manifest: (?P<status>5\d\d)(?:: (?P<words>.+))?",
        DownloadFailed,
        "Ollama's registry has a failure ({status}): {words}",
        "try again later",
    ),
    ErrorRule(
        r"manifest: (?P<status>4\d\d): (?P<words>.+)",
        DownloadFailed,
        "Ollama's registry refuses {model} ({status}): {words}",
        "check the name",
    ),
)
