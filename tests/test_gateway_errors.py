"""Errors in OpenAI's form, and real error messages of the engines that get the same form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmdeploy.gateway.errors import INVALID, LONGEST, Refused, body_of, explained
from llmdeploy.gateway.target import Target

CONTEXT = "the request has 27014 tokens, and the context of `selftest` 8192"
OVERFLOW = "request (27014 tokens) exceeds the available context size (8192 tokens), try increasing it"
NO_IMAGES = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
TERMINATED = "llama-server process has terminated: exit status 1"
UNFETCHED = "Cannot connect to host 127.0.0.1:1 ssl:default [Connect call failed ('127.0.0.1', 1)]"


def target(engine: str) -> Target:
    return Target(engine, "selftest", "127.0.0.1", 1)


def told(status: int, document: Any, engine: str) -> tuple[int, dict[str, Any]]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, answer = explained(status, body, target(engine))
    [(name, error)] = json.loads(answer).items()
    assert name == "error"
    assert list(error) == ["message", "type", "param", "code", "llmdeploy"]
    assert error["llmdeploy"].items() >= {"source": "engine", "engine": engine}.items()
    return status, error


def llamacpp(code: int, message: str, type: str = "server_error", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": type, **more}}


def ollama(message: Any, type: str = "invalid_request_error") -> dict[str, Any]:
    words = message if isinstance(message, str) else json.dumps(message)
    return {"error": {"message": words, "type": type, "param": None, "code": None}}


def vllm(code: int, message: str, type: str = "BadRequestError", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def test_a_refusal_is_in_openai_s_shape() -> None:
    refused = Refused(404, "no `x`", code="model_not_found", param="model", hint="`llmdeploy serve x`")
    assert json.loads(body_of(refused, "vllm")) == {
        "error": {
            "message": "no `x`",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
            "llmdeploy": {"source": "gateway", "engine": "vllm", "hint": "`llmdeploy serve x`"},
        }
    }
    assert json.loads(body_of(refused))["error"]["llmdeploy"]["engine"] is None


# Real error answers: engine, status and body, and the status, code, param and message that the application gets.
SEEN: list[tuple[str, int, Any, tuple[int, str | None, str | None, str]]] = [
    (
        "llamacpp",
        400,
        llamacpp(400, OVERFLOW, "exceed_context_size_error", n_prompt_tokens=27014, n_ctx=8192),
        (400, "context_length_exceeded", "messages", CONTEXT),
    ),
    ("ollama", 400, ollama(llamacpp(400, OVERFLOW)), (400, "context_length_exceeded", "messages", CONTEXT)),
    (
        "ollama",
        400,
        {"type": "error", "error": {"type": "x", "message": json.dumps(llamacpp(400, OVERFLOW))}, "request_id": "r"},
        (400, "context_length_exceeded", "messages", CONTEXT),
    ),
    (
        "vllm",
        400,
        vllm(
            400,
            "This model's maximum context length is 8192 tokens. However, your prompt contains at least 8193 input "
            "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
            "prompt. (parameter=input_tokens, value=8193)",
            param="input_tokens",
        ),
        (
            400,
            "context_length_exceeded",
            "messages",
            "the request has at least 8193 tokens, and the context of `selftest` 8192",
        ),
    ),
    (
        "vllm",
        400,
        vllm(
            400,
            "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 2048 "
            "tokens and your request has 12 input tokens (5000 > 2048 - 12). None",
        ),
        (
            400,
            "context_length_exceeded",
            "messages",
            "the request has 12 tokens, and the context of `selftest` 2048",
        ),
    ),
    (
        "vllm",
        400,
        vllm(400, "max_tokens=5 cannot be greater than max_model_len=4. (parameter=max_tokens, value=5)"),
        (400, "context_length_exceeded", "messages", "max_tokens=5 cannot be greater than max_model_len=4."),
    ),
    (
        "llamacpp",
        400,
        llamacpp(400, "the request exceeds the available context size. try increasing the context size"),
        (
            400,
            "context_length_exceeded",
            "messages",
            "the request exceeds the available context size. try increasing the context size",
        ),
    ),
    ("llamacpp", 500, llamacpp(500, NO_IMAGES), (400, "image_not_supported", "messages", "`selftest` sees no images")),
    (
        "ollama",
        500,
        ollama(llamacpp(500, NO_IMAGES), "api_error"),
        (400, "image_not_supported", "messages", "`selftest` sees no images"),
    ),
    (
        "ollama",
        500,
        {"error": json.dumps(llamacpp(500, NO_IMAGES))},
        (400, "image_not_supported", "messages", "`selftest` sees no images"),
    ),
    (
        "vllm",
        400,
        vllm(400, "/models/x is not a multimodal model"),
        (400, "image_not_supported", "messages", "`selftest` sees no images"),
    ),
    (
        "llamacpp",
        400,
        llamacpp(400, "Failed to load image or audio file", "invalid_request_error"),
        (400, "invalid_image", "messages", "an image cannot be read"),
    ),
    (
        "llamacpp",
        500,
        llamacpp(500, "Invalid base64 value"),
        (400, "invalid_image", "messages", "an image cannot be read"),
    ),
    ("ollama", 400, ollama("invalid image input"), (400, "invalid_image", "messages", "an image cannot be read")),
    (
        "vllm",
        400,
        vllm(400, "Failed to load image: cannot identify image file <_io.BytesIO object>"),
        (400, "invalid_image", "messages", "an image cannot be read"),
    ),
    ("vllm", 400, vllm(400, "Non-base64 digit found"), (400, "invalid_image", "messages", "an image cannot be read")),
    (
        "vllm",
        400,
        vllm(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (400, "tools_not_supported", "tools", "`selftest` is served without tools"),
    ),
    (
        "vllm",
        400,
        vllm(400, 'tool_choice="required" requires --tool-call-parser to be set'),
        (400, "tools_not_supported", "tools", "`selftest` is served without tools"),
    ),
    (
        "ollama",
        400,
        ollama("registry.ollama.ai/library/selftest:latest does not support tools"),
        (400, "tools_not_supported", "tools", "`selftest` is served without tools"),
    ),
    (
        "ollama",
        400,
        ollama('"selftest" does not support thinking'),
        (400, "reasoning_not_supported", "reasoning_effort", '"selftest" does not support thinking'),
    ),
    (
        "llamacpp",
        501,
        llamacpp(501, "This server does not support embeddings. Start it with `--embeddings`", "not_supported_error"),
        (400, "embeddings_not_supported", "model", "`selftest` makes no embeddings"),
    ),
    (
        "llamacpp",
        400,
        llamacpp(400, "Unable to generate parser. JSON schema error at #: unrecognized type banana"),
        (
            400,
            "invalid_schema",
            "response_format",
            "Unable to generate parser. JSON schema error at #: unrecognized type banana",
        ),
    ),
    (
        "vllm",
        400,
        vllm(400, "Grammar error: Invalid type: banana"),
        (400, "invalid_schema", "response_format", "Grammar error: Invalid type: banana"),
    ),
    (
        "ollama",
        404,
        ollama("model 'nope' not found", "not_found_error"),
        (404, "model_not_found", "model", "model 'nope' not found"),
    ),
    (
        "vllm",
        404,
        vllm(404, "The model `nope` does not exist.", "NotFoundError", "model"),
        (404, "model_not_found", "model", "The model `nope` does not exist."),
    ),
    (
        "llamacpp",
        500,
        llamacpp(500, "Failed to parse tools: Missing tool function: {}"),
        (400, None, None, "Failed to parse tools: Missing tool function: {}"),
    ),
    (
        "vllm",
        400,
        vllm(
            400,
            "1 validation error:\n  {'type': 'string_type', 'loc': 'body.user', 'msg': 'Input should be a valid "
            "string', 'input': '5'}",
            "Bad Request",
            "body.user",
        ),
        (400, None, "user", "`user`: Input should be a valid string"),
    ),
    ("vllm", 404, {"detail": "Not Found"}, (404, "unknown_route", None, "`vllm` has no such route")),
    ("ollama", 404, b"404 page not found", (404, "unknown_route", None, "`ollama` has no such route")),
    ("vllm", 422, {"detail": [{"msg": "x"}]}, (400, None, None, "[{'msg': 'x'}]")),
    ("vllm", 401, {"error": "Unauthorized"}, (502, "engine_refused", None, "Unauthorized")),
    (
        "ollama",
        503,
        {"error": "server busy, please try again.  maximum pending requests exceeded"},
        (503, "engine_busy", None, "server busy, please try again. maximum pending requests exceeded"),
    ),
    (
        "llamacpp",
        503,
        llamacpp(503, "Loading model", "unavailable_error"),
        (503, "engine_loading", None, "Loading model"),
    ),
    ("ollama", 500, {"error": TERMINATED}, (500, "engine_failed", None, TERMINATED)),
    ("vllm", 500, vllm(500, UNFETCHED), (500, None, None, UNFETCHED)),
    ("vllm", 500, b"", (500, None, None, "`vllm` answered 500 without a message")),
    ("vllm", 502, b"<html>\n bad  gateway", (502, None, None, "<html> bad gateway")),
    ("vllm", 500, b'{"error": {"message": "{not json"}}', (500, None, None, "{not json")),
    ("vllm", 500, b'{"error": ' * 100_000, (500, None, None, ('{"error": ' * 201)[:LONGEST])),
    ("vllm", 500, b"[1]", (500, None, None, "[1]")),
    ("vllm", 500, b"\xff", (500, None, None, "\ufffd")),
]


@pytest.mark.parametrize(("engine", "status", "document", "expected"), SEEN, ids=[str(it[2])[:50] for it in SEEN])
def test_errors_of_engines_are_translated(
    engine: str, status: int, document: Any, expected: tuple[int, str | None, str | None, str]
) -> None:
    status, error = told(status, document, engine)
    assert (status, error["code"], error["param"], error["message"]) == expected
    assert error["type"] == {503: "service_unavailable"}.get(status, "server_error" if status >= 500 else INVALID)
    assert error["llmdeploy"]["hint"] or status < 500


def test_nested_errors_are_followed_to_a_limit() -> None:
    document: Any = {"message": "deep"}
    for _ in range(50):
        document = {"error": document}
    assert told(500, document, "vllm")[1]["message"]


def test_a_long_message_is_cut() -> None:
    assert told(500, {"error": "x" * 9999}, "vllm")[1]["message"] == "x" * LONGEST


def test_a_wrong_limit_is_the_applications_mistake() -> None:
    assert told(429, {"error": "slow down"}, "vllm")[1]["type"] == "rate_limit_error"
