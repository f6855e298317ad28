"""The HTTP routes of the API, and the answers to those that need no engine."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.target import Target

CHECKED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
"""Routes that are relayed and behave the same on every engine."""
PASSED = frozenset({"/v1/messages", "/v1/responses"})
"""Routes that are relayed unchanged; not every engine has them."""
RELAYED = CHECKED | PASSED
CONTROL = "/llmdeploy/"

_ANSWERED = frozenset({"/v1/models", "/health", "/metrics"})
_HINT = "the routes are POST " + ", ".join(sorted(RELAYED)) + "; GET " + ", ".join(sorted(_ANSWERED))


def refused(method: str, path: str, *, has_control: bool) -> Refused | None:
    """Return the reason to refuse a request by its method and path; None if there is such a route."""
    if path in RELAYED:
        allowed = "POST"
    elif path in _ANSWERED or path.startswith("/v1/models/"):
        allowed = "GET, HEAD"
    elif path.startswith(CONTROL) and has_control:
        allowed = "GET, POST"
    else:
        return Refused(404, f"the route `{path[:200]}` does not exist", code="unknown_route", hint=_HINT)
    if method in allowed.split(", "):
        return None
    message = f"`{path[:200]}` does not take {method}"
    headers = b"allow: %b\r\n" % allowed.encode()
    return Refused(405, message, code="method_not_allowed", hint=f"use {allowed}", headers=headers)


def label(path: str) -> str:
    """Return the name of the route in metrics: one of a few, whatever path a client sends."""
    return path if path in RELAYED or path in _ANSWERED else "other"


def models(path: str, target: Target | None, since: int) -> dict[str, Any]:
    """Return the list of the one served model, or the model that the path names. Raises Refused."""
    served = [] if target is None else [_model(target, since)]
    name = unquote(path.removeprefix("/v1/models").removeprefix("/"))
    if not name:
        return {"object": "list", "data": served}
    for model in served:
        if model["id"] == name:
            return model
    hint = f"the model is called `{target.model}`" if target is not None else "no model is served yet"
    raise Refused(404, f"the model `{name[:200]}` does not exist", code="model_not_found", param="model", hint=hint)


def _model(target: Target, since: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": target.model,
        "object": "model",
        "created": since,
        "owned_by": "llmdeploy",
        "capabilities": target.capabilities,
    }
    if target.context is not None:
        document["max_model_len"] = target.context
    return document
