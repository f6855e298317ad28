"""The errors of the engines, recognized by stable fragments of their messages, as seen on llama.cpp, Ollama and vLLM.

The messages around the fragments change with every release. The special rules stand before the general ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmdeploy.rules import Rule


@dataclass(frozen=True)
class EngineErrorRule(Rule):
    """An error of an engine, and the status, code and hint that the client gets for it."""

    status: int
    code: str | None = None
    param: str | None = None
    hint: str = ""
    message: str = ""
    """Replaces the engine's own message; empty to keep that."""


SHORTEN = "send less, or serve the model again with a larger `--context`"
SEES_NOT = "`llmdeploy models` lists those that see images"
NO_TOOLS = (
    "serve a model that calls tools; vLLM needs its parser: `llmdeploy config set engines.vllm.extra_args "
    """'["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]'`"""
)
LOGS = "`llmdeploy logs` tells more"

CONTEXT = "context_length_exceeded"

RULES = (
    # llama.cpp, and Ollama, which runs it
    EngineErrorRule(
        r"request \((?P<asked>\d{1,18}) tokens\) exceeds the available context size \((?P<context>\d{1,18}) tokens\)",
        400,
        CONTEXT,
        "messages",
        SHORTEN,
        "the request has {asked} tokens, and the context of `{model}` {context}",
        statuses=range(500),
    ),
    # vLLM
    EngineErrorRule(
        r"maximum context length is (?P<context>\d{1,18}) tokens"
        r"[^\d]{1,80}?(?P<least>at least )?(?P<asked>\d{1,18}) input tokens",
        400,
        CONTEXT,
        "messages",
        SHORTEN,
        "the request has {least}{asked} tokens, and the context of `{model}` {context}",
        statuses=range(500),
    ),
    # Other versions, without the numbers
    EngineErrorRule(
        r"exceeds the available context size|context length is only|maximum context length|max_model_len",
        400,
        CONTEXT,
        "messages",
        SHORTEN,
        statuses=range(500),
    ),
    EngineErrorRule(
        r"image input is not supported|not a multimodal model|does not support multimodal",
        400,
        "image_not_supported",
        "messages",
        SEES_NOT,
        "`{model}` sees no images",
    ),
    EngineErrorRule(
        r"Failed to load image|invalid image input|[Ii]nvalid base64|illegal base64|[Nn]on-base64|Incorrect padding",
        400,
        "invalid_image",
        "messages",
        "send PNG or JPEG in Base64: `data:image/png;base64,...`",
        "an image cannot be read",
    ),
    EngineErrorRule(r"At most \d+ image", 400, "too_many_images", "messages", "send fewer images"),
    EngineErrorRule(
        r"does not support tools|tool choice requires --enable-auto|requires --tool-call-parser",
        400,
        "tools_not_supported",
        "tools",
        NO_TOOLS,
        "`{model}` is served without tools",
    ),
    EngineErrorRule(r"does not support thinking", 400, "reasoning_not_supported", "reasoning_effort", "leave it out"),
    EngineErrorRule(r"does not support chat", 400, "chat_not_supported", "model", "serve a model that chats"),
    EngineErrorRule(
        r"does not support embeddings|does not support Embeddings",
        400,
        "embeddings_not_supported",
        "model",
        "",
        "`{model}` makes no embeddings",
    ),
    EngineErrorRule(
        r"JSON schema|Grammar error|[Uu]nrecognized schema|failed to parse grammar",
        400,
        "invalid_schema",
        "response_format",
        "check the schema with a JSON Schema validator",
    ),
    EngineErrorRule(
        r"^(The )?model .* (not found|does not exist)",
        404,
        "model_not_found",
        "model",
        "`llmdeploy status` tells what is served",
    ),
    # Errors that llama.cpp reports as its own, although the request is wrong
    EngineErrorRule(r"^Failed to parse|^Invalid |^Missing |is not supported|must be ", 400, statuses=(500, 501)),
    EngineErrorRule(r"server busy|currently busy|backlog limit", 503, "engine_busy", hint="try again in a moment"),
    EngineErrorRule(r"^Loading model", 503, "engine_loading", hint="try again in a moment"),
    EngineErrorRule(
        r"EngineCore encountered|runner has unexpectedly stopped|process has terminated|The server had an error",
        500,
        "engine_failed",
        hint=LOGS,
    ),
    EngineErrorRule(
        r"^(404 page not found|Not Found|File Not Found)$", 404, "unknown_route", message="`{engine}` has no such route"
    ),
    # The gateway checks the client's key, so a key that the engine rejects is not the client's mistake.
    EngineErrorRule(r"", 502, "engine_refused", hint=LOGS, statuses=(401, 403, 407)),
    EngineErrorRule(r"", 400, statuses=(422,)),
)
