"""Errors in the form that applications get: OpenAI's, and beside it who failed and what to do.

    {"error": {"message", "type", "param", "code", "llmdeploy": {"source": "gateway" | "engine", "engine", "hint"}}}

`code` is stable and the same for every engine; `failure_rules.py` recognizes the errors of the engines.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from llmdeploy.gateway.engine_errors import meaning_of
from llmdeploy.gateway.target import Target

INVALID = "invalid_request_error"

LONGEST = 2000
"""Characters of an engine's message that are passed on: some messages repeat the whole request."""
DEEPEST = 4
"""Levels of errors inside errors that are followed."""

_FINDING = re.compile(r"'loc': 'body\.?([^']*)', 'msg': (?:'([^']*)'|\"([^\"]*)\")")
"""The first finding in a message of vLLM, which prints its findings as a Python list."""
_PARAMETER = " (parameter="
"""The beginning of what vLLM adds to its messages: the name of the field, and its value, which may be the request."""


class Refused(Exception):
    """A request that is not served; `body_of` makes the body of its answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        hint: str = "",
        headers: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.hint = hint
        self.headers = headers
        """Complete header lines of the answer."""


def invalid(param: str, message: str, code: str = "invalid_value", hint: str = "") -> Refused:
    """Return the refusal of a field; `message` goes on after its name."""
    return Refused(400, f"`{param}` {message}", code=code, param=param, hint=hint)


def cannot(param: str, target: Target, message: str, code: str, hint: str) -> Refused:
    """Return the refusal of a field for something that the served model cannot do."""
    return Refused(400, f"`{target.model}` {message}", code=code, param=param, hint=hint)


def body_of(refused: Refused, engine: str | None = None) -> bytes:
    """Return the body of the answer."""
    return _body(refused, "gateway", engine)


def explained(status: int, body: bytes, target: Target) -> tuple[int, bytes]:
    """Return the status and the body that a client gets for an engine's error, the same for every engine."""
    told = _told(body)  # its texts are short: the patterns read what a client wrote
    meaning = meaning_of(status, told.message, target)
    message = meaning.message or told.message or f"`{target.engine}` answered {status} without a message"
    error = Refused(
        meaning.status,
        message,
        type=_type(meaning.status),
        code=meaning.code,
        param=meaning.param or told.param,
        hint=meaning.hint,
    )
    return meaning.status, _body(error, "engine", target.engine)


def _body(error: Refused, source: str, engine: str | None) -> bytes:
    ours = {"source": source, "engine": engine, "hint": error.hint}
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code, "llmdeploy": ours}
    return msgspec.json.encode({"error": shape})


def _type(status: int) -> str:
    known = {403: "permission_error", 429: "rate_limit_error", 503: "service_unavailable"}
    return known.get(status) or (INVALID if status < 500 else "server_error")


@dataclass(frozen=True)
class _Told:
    message: str
    param: str | None = None


def _told(body: bytes) -> _Told:
    text = body.decode(errors="replace")
    try:
        return _innermost(json.loads(text), DEEPEST)
    except (ValueError, RecursionError):
        return _Told(_shortened(text))


def _shortened(text: str) -> str:
    """Return the beginning of a text, on one line."""
    return " ".join(text[: 2 * LONGEST].split())[:LONGEST]


def _innermost(document: Any, depth: int) -> _Told:
    """Return the innermost error: Ollama puts the error of the engine that it runs, as JSON text, into its own."""
    if not isinstance(document, dict):
        return _Told(_shortened(str(document)))
    inner = document.get("error", document.get("detail"))
    if isinstance(inner, dict | list) and depth:
        return _innermost(inner, depth - 1)
    message = str(document.get("message", inner if inner is not None else ""))
    if message.startswith("{") and depth:
        try:
            return _innermost(json.loads(message), depth - 1)
        except (ValueError, RecursionError):
            pass
    message = _shortened(_without_parameter(message))
    param = document.get("param")
    if found := _FINDING.search(message):
        param = found[1] or None
        words = found[2] or found[3]
        message = f"`{param}`: {words}" if param else words
    return _Told(message, param.removeprefix("body.")[:LONGEST] if isinstance(param, str) else None)


def _without_parameter(message: str) -> str:
    words, _, value = message.partition(_PARAMETER)
    return words if value.endswith(")") else message
