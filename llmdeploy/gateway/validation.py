"""The checks of a request before it is sent to an engine, the same for every engine. Pure functions.

A field that engines read differently is rewritten so that all behave the same, or refused if that cannot be done. A
body that needs no change is sent as the very bytes that were received.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.failure_rules import NO_TOOLS, SEES_NOT
from llmdeploy.gateway.schema import Chat, Completion, Embedding, Foreign, Message, Part, Sampled
from llmdeploy.gateway.target import Target
from llmdeploy.validation_messages import is_utf8, violation

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

MOST_TOKENS = 2**31 - 1
"""Largest `max_tokens` if the context is unknown; llama.cpp fails on larger numbers."""
SHORT_ANSWER = 16
"""OpenAI's default for `max_tokens` of a completion. Without it llama.cpp and Ollama fill the whole context."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
IMAGE = re.compile(r"data:image/(png|jpe?g|webp|gif|bmp);base64,.")
DATA_URL = "send the image itself, as a data: URL: `data:image/png;base64,...`"

PART_NEEDS = {"text": "text", "image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
"""The capability that a model needs for each type of content."""
FETCHED = {
    "url": "url",
    "image_url": "image_url",
    "input_image": "image_url",
    "input_file": "file_url",
    "audio_url": "audio_url",
    "video_url": "video_url",
}
"""The types of content in other APIs that hold a URL, and the field that has it."""

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
"""The types of JSON in words, by msgspec's names for them."""
CHAT_ONLY = frozenset({"messages", "tools", "tool_choice"})
"""Fields that have no meaning in a completion, and are not checked there: an engine's dialect must not meet them."""

Changes = dict[str, Any]
"""New values of top-level fields of the body; None removes the field."""
Shape = TypeVar("Shape")


def prepare(path: str, body: bytes, target: Target) -> bytes:
    """Return the body for the engine; the same object if nothing changes. Raises Refused."""
    if body.startswith(BYTE_ORDER_MARK):  # written by editors on Windows; Ollama does not accept it
        body = body[len(BYTE_ORDER_MARK) :]
    changes = _CHECKS.get(path, _foreign)(body, target)
    if changes or (target.adapt is not None and path in (CHAT, COMPLETIONS)):
        body = _changed(path, body, changes, target)
    return body


def _changed(path: str, body: bytes, changes: Changes, target: Target) -> bytes:
    document = came = _decoded(_anything, body)
    if changes:
        document = {name: value for name, value in {**came, **changes}.items() if changes.get(name, UNSET) is not None}
    if target.adapt is not None:
        if path == COMPLETIONS and not CHAT_ONLY.isdisjoint(document):
            document = {name: value for name, value in document.items() if name not in CHAT_ONLY}
        document = target.adapt(document)
    if document is came:
        return body
    try:
        return msgspec.json.encode(document)
    except OverflowError:  # an integer beyond 64 bits, in a field that is not checked
        return json.dumps(document).encode()


def _chat(body: bytes, target: Target) -> Changes:
    asked = _decoded(_chat_of, body)
    _require_model(asked.model, target)
    for at, message in enumerate(asked.messages):
        if type(message.content) is not str:
            _check_content(f"messages[{at}].content", message, target)
    changes = _check_sampled(CHAT, asked, target)
    if asked.tool_choice is not None and asked.tools is None:
        raise _invalid("tool_choice", "needs `tools`")
    if asked.tools is not None and "tools" not in target.capabilities:
        raise _cannot("tools", target, "is served without tools", "tools_not_supported", NO_TOOLS)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise _invalid("top_logprobs", 'needs `"logprobs": true`')
    if asked.logprobs and not asked.top_logprobs:
        changes["top_logprobs"] = 1  # with 0 llama.cpp reports nothing at all, and without a number it reports 20
    format = asked.response_format
    if format is not None and format.type == "json_schema" and format.json_schema is None:
        raise _invalid("response_format.json_schema", "is missing")
    return changes


def _check_content(place: str, message: Message, target: Target) -> None:
    """Check the content of a message that is not a plain text. Raises Refused."""
    if isinstance(message.content, list):
        for at, part in enumerate(message.content):
            _check_part(f"{place}[{at}]", part, target)
    elif message.content is None and message.role != "assistant":
        raise _invalid(place, "is missing")


def _check_part(place: str, part: Part, target: Target) -> None:
    needs = PART_NEEDS.get(part.type)
    if needs is None:
        raise _invalid(f"{place}.type", f"must be `text` or `image_url`, not `{part.type[:80]}`")
    if needs not in target.capabilities and needs == "image":
        raise _cannot(place, target, "sees no images", "image_not_supported", SEES_NOT)
    if needs not in target.capabilities and needs != "text":
        raise _cannot(place, target, f"does not accept {needs}", f"{needs}_not_supported", "send text or images")
    if needs == "text" and part.text is UNSET:
        raise _invalid(f"{place}.text", "is missing")
    if needs == "image":
        if part.image_url is UNSET:
            raise _invalid(f"{place}.image_url", "is missing")
        assert not isinstance(part.image_url, msgspec.UnsetType)
        if not IMAGE.match(part.image_url.url):
            raise _no_image(f"{place}.image_url.url", part.image_url.url)


def _no_image(place: str, url: str) -> Refused:
    """Return the refusal of a URL. An engine would fetch it from inside this machine's network."""
    if url.startswith("data:"):
        message = "must hold a PNG, JPEG, WebP, GIF or BMP image in Base64"
    else:
        message = "must be a data: URL; images are never fetched"
    return _invalid(place, message, "invalid_image", DATA_URL)


def _completion(body: bytes, target: Target) -> Changes:
    asked = _decoded(_completion_of, body)
    _require_model(asked.model, target)
    if asked.suffix and "insert" not in target.capabilities:
        raise _cannot("suffix", target, "does not support fill-in-the-middle", "insert_not_supported", "leave it out")
    changes = _check_sampled(COMPLETIONS, asked, target)
    # Of the engines, only llama.cpp knows the newer name for completions.
    most = changes.get("max_completion_tokens", asked.max_completion_tokens)
    if most is not None:
        changes |= {"max_tokens": most, "max_completion_tokens": None}
    elif asked.max_tokens is None:
        changes["max_tokens"] = SHORT_ANSWER
    return changes


def _check_sampled(path: str, asked: Sampled, target: Target) -> Changes:
    """Check the fields that chat and text completions share, and return those to change. Raises Refused."""
    if asked.stream_options is not None and not asked.stream:
        raise _invalid("stream_options", 'needs `"stream": true`')
    if asked.n is not None and asked.n > 1 and asked.temperature == 0:
        raise _invalid("n", "must be 1 at temperature 0: all answers would be the same")
    for name in target.lacks.get(path, ()):
        value = getattr(asked, name)
        if not (value is None or value is False or value == {} or (value == 1 and name in ("n", "best_of"))):
            message = f"`{target.engine}` does not support `{name}` on `{path}`"
            raise Refused(400, message, code="unsupported_parameter", param=name, hint="leave it out")
    most = target.context or MOST_TOKENS  # no request can get more, and vLLM refuses a larger number
    changes: Changes = {}
    if asked.max_tokens is not None and asked.max_tokens > most:
        changes["max_tokens"] = most
    if asked.max_completion_tokens is not None and asked.max_completion_tokens > most:
        changes["max_completion_tokens"] = most
    return changes


def _embedding(body: bytes, target: Target) -> Changes:
    asked = _decoded(_embedding_of, body)
    _require_model(asked.model, target)
    if "embedding" not in target.capabilities:
        raise _cannot("model", target, "makes no embeddings", "embeddings_not_supported", "serve a model that does")
    return {}


def _foreign(body: bytes, target: Target) -> Changes:
    """Check a request of another API: only the model, and that the engine has nothing to fetch. Raises Refused."""
    asked = _decoded(_foreign_of, body)
    _require_model(asked.model, target)
    for content in (asked.messages, asked.input):
        if content is not UNSET and b"url" in bytes(content):
            url = next(_addresses(_decoded(_anything, bytes(content))), None)
            if url is not None:
                raise _no_image("messages" if content is asked.messages else "input", url)
    return {}


def _addresses(value: Any) -> Iterator[str]:
    """Yield the URLs that an engine would fetch. Those in the arguments of a tool call are not fetched."""
    if isinstance(value, list):
        for item in value:
            yield from _addresses(item)
    elif isinstance(value, dict):
        kind = value.get("type")
        address = value.get(FETCHED.get(kind, "")) if isinstance(kind, str) else None
        if isinstance(address, dict):
            address = address.get("url")
        if isinstance(address, str) and not address.startswith("data:"):
            yield address
        if kind != "tool_use":
            yield from _addresses(list(value.values()))


def _require_model(name: str, target: Target) -> None:
    if name != target.model:
        other = name[:200]
        switch = f"llmdeploy switch --model {shlex.quote(other)}"
        raise Refused(
            404,
            f"the model `{other}` is not served here: `{target.model}` is",
            code="model_not_found",
            param="model",
            hint=f'send `"model": "{target.model}"`, or serve the other one: `{switch}`',
        )


def _decoded(decode: Callable[[bytes], Shape], body: bytes) -> Shape:
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        param, message = _complaint(error, body)
        raise Refused(400, message, code="invalid_value" if param else "invalid_json", param=param) from None


def _complaint(error: Exception, body: bytes) -> tuple[str | None, str]:
    """Return the field that is wrong, or None for the whole body, and a message."""
    if isinstance(error, RecursionError):
        return None, "the body is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return _broken_rule(error)
    if not body.strip():
        return None, "the body is empty: a JSON object is expected"
    if not is_utf8(body):
        return None, "the body is not valid JSON: it is not UTF-8"
    return None, f"the body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}"


def _broken_rule(error: msgspec.ValidationError) -> tuple[str | None, str]:
    """Return the field that breaks the schema, and a message."""
    found = violation(error)
    place = f"`{found.path}`" if found.path else "the body"
    if found.is_missing:
        message = f"{place} is missing"
    elif found.expected:
        expected = " or ".join(_WORDS.get(word, word) for word in found.expected)
        got = f", not {_WORDS.get(found.got, found.got)}" if found.got else ""
        message = f"{place} must be {expected}{found.limit}{got}"
    else:
        message = f"{place}: {found.text}"
    return found.path or None, message


def _invalid(param: str, message: str, code: str = "invalid_value", hint: str = "") -> Refused:
    return Refused(400, f"`{param}` {message}", code=code, param=param, hint=hint)


def _cannot(param: str, target: Target, message: str, code: str, hint: str) -> Refused:
    return Refused(400, f"`{target.model}` {message}", code=code, param=param, hint=hint)


_chat_of = msgspec.json.Decoder(Chat).decode
_completion_of = msgspec.json.Decoder(Completion).decode
_embedding_of = msgspec.json.Decoder(Embedding).decode
_foreign_of = msgspec.json.Decoder(Foreign).decode
_anything: Callable[[bytes], Any] = msgspec.json.Decoder().decode

_CHECKS: dict[str, Callable[[bytes, Target], Changes]] = {
    CHAT: _chat,
    COMPLETIONS: _completion,
    EMBEDDINGS: _embedding,
}
