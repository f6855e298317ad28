"""The translation of requests for Ollama, which ignores or misreads some fields of the OpenAI API. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Body = Mapping[str, Any]

OBJECT = {"type": "json_schema", "json_schema": {"name": "object", "schema": {"type": "object"}}}
THOUGHTS = frozenset({"reasoning_effort", "reasoning"})
OTHER_IMAGES = re.compile(r"^data:image/(gif|bmp);")
"""Images that Ollama can decode but rejects because of their media type."""


def adapt(request: Body, *, thinks: bool = True) -> Body:
    """Translate a request; the same object if nothing changes.

    `thinks` is whether the model can think: for others Ollama rejects the fields about thinking.
    """
    # Go matches field names in any case, and the last one wins: a field `Model` must not replace `model`.
    changed = {name: value for name, value in request.items() if name == name.lower()}
    if not thinks:
        changed = {name: value for name, value in changed.items() if name not in THOUGHTS}
    if (most := changed.pop("max_completion_tokens", None)) is not None:
        changed["max_tokens"] = most
    format = changed.get("response_format")
    if isinstance(format, dict) and format.get("type") == "json_object":
        # For a model whose template comes from its GGUF file, Ollama enforces only a schema.
        changed["response_format"] = OBJECT
    if changed.pop("tool_choice", None) is not None:
        _choose(changed, request["tool_choice"])
    messages = changed.get("messages")
    if isinstance(messages, list):
        adapted = [_message(message) for message in messages]
        if any(new is not old for new, old in zip(adapted, messages, strict=True)):
            changed["messages"] = adapted
    return request if _is_same(changed, request) else changed


def _is_same(changed: Body, request: Body) -> bool:
    return len(changed) == len(request) and all(changed.get(name) is value for name, value in request.items())


def _choose(changed: dict[str, Any], choice: Any) -> None:
    """Translate `tool_choice`, which Ollama ignores: `none` removes the tools, a function removes all others."""
    tools = changed.get("tools") or []
    if isinstance(choice, dict) and isinstance(tools, list):
        name = _at(choice, "function", "name")
        changed["tools"] = [tool for tool in tools if _at(tool, "function", "name") == name]
    elif choice == "none":
        changed.pop("tools", None)


def _at(value: Any, *names: str) -> Any:
    """Return the value below these names; None if any of them is missing or not in an object."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        return {**message, "content": ""}  # a message of the assistant may have no content
    if isinstance(content, list) and any(_is_renamed(part) for part in content):
        return {**message, "content": [_as_png(part) if _is_renamed(part) else part for part in content]}
    return message


def _is_renamed(part: Any) -> bool:
    url = _at(part, "image_url", "url")
    return isinstance(url, str) and OTHER_IMAGES.match(url) is not None


def _as_png(part: Any) -> Any:
    """Return the part with the media type of PNG: Ollama then detects the real format from the bytes."""
    url = OTHER_IMAGES.sub("data:image/png;", part["image_url"]["url"], count=1)
    return {**part, "image_url": {**part["image_url"], "url": url}}
