"""The failures that the Hub reports by an HTTP status alone."""

from __future__ import annotations

from llmdeploy.errors import DownloadFailed
from llmdeploy.rules import ErrorRule

LOCAL_FILE = "give a file that is here: `llmdeploy serve ./model.gguf`"
ELSEWHERE = (
    "set `HF_ENDPOINT` to a mirror, take it from ModelScope with `--source modelscope` or from Ollama "
    f"(`ollama://qwen3:8b`), or {LOCAL_FILE}"
)

RULES = (
    ErrorRule(
        r"",
        DownloadFailed,
        "the Hub does not know the access token",
        "set `HF_TOKEN` to a valid access token, or unset it for a public repository",
        statuses=(401,),
    ),
    ErrorRule(
        r"",
        DownloadFailed,
        "the Hub refuses access to `{repo}`",
        "set `HF_TOKEN` to an access token that may read it",
        statuses=(403,),
    ),
    ErrorRule(
        r"",
        DownloadFailed,
        "the Hub refuses for now: too many requests",
        "wait some minutes; with `HF_TOKEN` set the limit is higher",
        statuses=(429,),
    ),
)
