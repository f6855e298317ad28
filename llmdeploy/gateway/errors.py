"""Errors as applications see them: OpenAI's shape, and who failed."""

from __future__ import annotations

from typing import Any

import msgspec

from llmdeploy.gateway.target import Target


class Refused(Exception):
    """A request that is not served; `body_of` tells the application."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.hint = hint


def body_of(refused: Refused, engine: str | None = None) -> bytes:
    """The body of the answer."""
    return _body("gateway", refused.message, refused.type, refused.param, refused.code, engine, refused.hint)


def explained(status: int, body: bytes, target: Target) -> tuple[int, bytes]:
    """An engine's error answer in the same shape."""
    message = body.decode(errors="replace") or f"`{target.engine}` answered {status}"
    return status, _body("engine", message, "engine_error", None, None, target.engine, "")


def _body(source: str, message: str, type: str, param: Any, code: Any, engine: Any, hint: str) -> bytes:
    ours = {"source": source, "engine": engine, "hint": hint}
    error = {"message": message, "type": type, "param": param, "code": code, "llmdeploy": ours}
    return msgspec.json.encode({"error": error})
