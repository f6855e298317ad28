"""What an engine's error means: its words -> one status, one code, one hint. Pure.

A word is a stable fragment of a message, seen on llama.cpp, Ollama or vLLM; the messages around them change with every
release. What none of the rows knows keeps its status and its words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmdeploy.gateway.target import Target


@dataclass(frozen=True)
class Meaning:
    status: int
    code: str | None = None
    param: str | None = None
    hint: str = ""
    message: str = ""
    """In place of the engine's own, where every engine can say the same."""


@dataclass(frozen=True)
class _Row:
    words: str
    status: int
    code: str | None = None
    param: str | None = None
    hint: str = ""
    message: str = ""
    among: tuple[int, ...] = ()
    """The statuses that it holds for; none: all."""


SHORTEN = "send less, or serve the model again with a larger `--context`"
SEES_NOT = "`llmdeploy models` lists those that see images"
NO_TOOLS = (
    "serve a model that calls tools; vLLM needs its parser: `llmdeploy config set engines.vllm.extra_args "
    """'["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]'`"""
)
LOGS = "`llmdeploy logs` tells more"

CONTEXT = "context_length_exceeded"
_CONTEXTS = (
    # llama.cpp, and Ollama, which runs it
    r"request \((?P<asked>\d+) tokens\) exceeds the available context size \((?P<context>\d+) tokens\)",
    # vLLM
    r"maximum context length is (?P<context>\d+) tokens.*?(?P<least>at least )?(?P<asked>\d+) input tokens",
    # Other versions, without the numbers
    r"exceeds the available context size|context length is only|maximum context length|max_model_len",
)
_NUMBERED = tuple(re.compile(words, re.DOTALL) for words in _CONTEXTS)

_ROWS = (
    _Row(
        r"image input is not supported|not a multimodal model|does not support multimodal",
        400,
        "image_not_supported",
        "messages",
        SEES_NOT,
        "`{model}` sees no images",
    ),
    _Row(
        r"Failed to load image|invalid image input|[Ii]nvalid base64|illegal base64|[Nn]on-base64|Incorrect padding",
        400,
        "invalid_image",
        "messages",
        "send PNG or JPEG in Base64: `data:image/png;base64,...`",
        "an image cannot be read",
    ),
    _Row(r"At most \d+ image", 400, "too_many_images", "messages", "send fewer images"),
    _Row(
        r"does not support tools|tool choice requires --enable-auto|requires --tool-call-parser",
        400,
        "tools_not_supported",
        "tools",
        NO_TOOLS,
        "`{model}` is served without tools",
    ),
    _Row(r"does not support thinking", 400, "reasoning_not_supported", "reasoning_effort", "leave it out"),
    _Row(r"does not support chat", 400, "chat_not_supported", "model", "serve a model that chats"),
    _Row(
        r"does not support embeddings|does not support Embeddings",
        400,
        "embeddings_not_supported",
        "model",
        "",
        "`{model}` makes no embeddings",
    ),
    _Row(
        r"JSON schema|Grammar error|[Uu]nrecognized schema|failed to parse grammar",
        400,
        "invalid_schema",
        "response_format",
        "check the schema with a JSON Schema validator",
    ),
    _Row(
        r"^(The )?model .* (not found|does not exist)",
        404,
        "model_not_found",
        "model",
        "`llmdeploy status` tells what is served",
    ),
    # What llama.cpp calls an error of its own, and a corrected request mends
    _Row(r"^Failed to parse|^Invalid |^Missing |is not supported|must be ", 400, among=(500, 501)),
    _Row(r"server busy|currently busy|backlog limit", 503, "engine_busy", hint="try again in a moment"),
    _Row(r"^Loading model", 503, "engine_loading", hint="try again in a moment"),
    _Row(
        r"EngineCore encountered|runner has unexpectedly stopped|process has terminated|The server had an error",
        500,
        "engine_failed",
        hint=LOGS,
    ),
    _Row(
        r"^(404 page not found|Not Found|File Not Found)$", 404, "unknown_route", message="`{engine}` has no such route"
    ),
    # The client's key is the gateway's affair: to the client this is no question of keys.
    _Row(r"", 502, "engine_refused", hint=LOGS, among=(401, 403, 407)),
    _Row(r"", 400, among=(422,)),
)
_COMPILED = tuple((re.compile(row.words), row) for row in _ROWS)


def meaning_of(status: int, message: str, target: Target) -> Meaning:
    if status < 500 and (found := _context(message, target)):
        return found
    for words, row in _COMPILED:
        if (not row.among or status in row.among) and words.search(message):
            text = row.message.format(model=target.model, engine=target.engine)
            return Meaning(row.status, row.code, row.param, row.hint, text)
    return Meaning(status, hint="" if status < 500 else LOGS)


def _context(message: str, target: Target) -> Meaning | None:
    found = next((found for words in _NUMBERED if (found := words.search(message))), None)
    if found is None:
        return None
    if not found.groupdict():
        return Meaning(400, CONTEXT, "messages", SHORTEN)
    asked = f"{found.groupdict().get('least') or ''}{found['asked']} tokens"
    text = f"the request has {asked}, and the context of `{target.model}` {found['context']}"
    return Meaning(400, CONTEXT, "messages", SHORTEN, text)
