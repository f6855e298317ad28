"""The checks of a request before it is sent to an engine, the same for every engine. Pure functions.

A field that engines read differently is rewritten so that all behave the same, or refused if that cannot be done. A
body that needs no change is sent as the very bytes that were received.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from llmdeploy.gateway import other_apis
from llmdeploy.gateway.constraints import (
    MOST_DOCUMENT_BYTES,
    MOST_TEMPLATE_BYTES,
    check_engine_fields,
    check_schemas,
    check_value,
    format_schemas,
    given,
)
from llmdeploy.gateway.content import check_length, check_messages
from llmdeploy.gateway.errors import Refused, cannot, invalid
from llmdeploy.gateway.failure_rules import NO_TOOLS
from llmdeploy.gateway.fields.bounds import Fields
from llmdeploy.gateway.fields.engines import EngineChatFields, EngineFields
from llmdeploy.gateway.fields.lenient import lenient
from llmdeploy.gateway.fields.messages import Messages
from llmdeploy.gateway.fields.openai import Chat, Completion, Embedding
from llmdeploy.gateway.fields.responses import Responses
from llmdeploy.gateway.fields.sampled import ResponseFormat, Sampled
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

Changes = dict[str, Any]
"""New values of fields; None removes the field."""
Shape = TypeVar("Shape", bound=Fields)
More = TypeVar("More", bound=Fields)


class Route:
    """The fields of one route, and the checks of those that msgspec cannot check."""

    def __init__(
        self,
        shape: type[Shape],
        check: Callable[[Shape, Target], Changes],
        more: type[More] | None = None,
        check_more: Callable[[More], None] | None = None,
    ) -> None:
        """Take the fields that most requests have, and `more` of engines."""
        self.check: Callable[[Any, Target], Changes] = check
        self.check_more: Callable[[Any], None] | None = check_more
        self._shape: type[Fields] = shape
        self._more: tuple[type[Fields], ...] = () if more is None else (more,)

    # To make the decoders of all routes takes 40 ms, so each is made for the first request that needs it.

    @cached_property
    def exact(self) -> Callable[[bytes], Any]:
        """The parser of a body that has no other field."""
        return msgspec.json.Decoder(self._shape).decode

    @cached_property
    def lenient(self) -> Callable[[bytes], Any]:
        """The parser of any body, which leaves out the fields that are not known."""
        return msgspec.json.Decoder(lenient(self._shape, *self._more)).decode


def prepare(path: str, body: bytes, target: Target) -> bytes:
    """Return the body for the engine; the same object if nothing changes. Raises Refused."""
    if body.startswith(BYTE_ORDER_MARK):  # written by editors on Windows; Ollama does not accept it
        body = body[len(BYTE_ORDER_MARK) :]
    route = _ROUTES[path]
    try:
        asked = route.exact(body)
        is_exact = True
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        asked = _decoded(route.lenient, body)
        is_exact = False
    _require_model(asked.model, target)
    changes = route.check(asked, target)
    if not is_exact and route.check_more is not None:
        route.check_more(asked)
    # llama.cpp and vLLM read a name that comes twice as msgspec does: the last counts. Ollama mixes both values.
    if is_exact and not changes and target.adapt is None:
        return body
    for name, value in changes.items():
        setattr(asked, name, value)
    body = _encoded(asked)
    if target.adapt is not None and path in (CHAT, COMPLETIONS):
        body = _encoded(target.adapt(_anything(body)))
    return body


def _chat(asked: Chat, target: Target) -> Changes:
    check_messages("messages", asked.messages, target)
    changes = _check_sampled(CHAT, asked, target)
    if asked.tools is not None or asked.tool_choice is not None:
        _check_tools(asked, target)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs", 'needs `"logprobs": true`')
    if asked.logprobs and not asked.top_logprobs:
        changes["top_logprobs"] = 1  # with 0 llama.cpp reports nothing at all, and without a number it reports 20
    return changes


def _check_chat_more(asked: EngineChatFields) -> None:
    check_schemas(check_engine_fields(asked))
    check_value("chat_template_kwargs", asked.chat_template_kwargs, MOST_TEMPLATE_BYTES)
    check_value("documents", asked.documents, MOST_DOCUMENT_BYTES)


def _check_completion_more(asked: EngineFields) -> None:
    check_schemas(check_engine_fields(asked))


def _check_tools(asked: Chat, target: Target) -> None:
    """Check the tools of a chat. Raises Refused."""
    if asked.tool_choice is not None and asked.tools is None:
        raise invalid("tool_choice", "needs `tools`")
    tools = asked.tools or []
    if tools and "tools" not in target.capabilities:
        raise cannot("tools", target, "is served without tools", "tools_not_supported", NO_TOOLS)
    schemas = [(f"tools[{at}].function.parameters", tool.function.parameters) for at, tool in enumerate(tools)]
    check_schemas([*given(schemas)])


def _completion(asked: Completion, target: Target) -> Changes:
    if asked.suffix and "insert" not in target.capabilities:
        raise cannot("suffix", target, "does not support fill-in-the-middle", "insert_not_supported", "leave it out")
    check_length("prompt", len(asked.prompt), target)
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
        raise invalid("stream_options", 'needs `"stream": true`')
    if asked.n is not None and asked.n > 1 and asked.temperature == 0:
        raise invalid("n", "must be 1 at temperature 0: all answers would be the same")
    if asked.response_format is not None:
        _check_format(asked.response_format)
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


def _check_format(format: ResponseFormat) -> None:
    if format.type == "json_schema" and format.json_schema is None:
        raise invalid("response_format.json_schema", "is missing")
    check_schemas([*format_schemas(format)])


def _embedding(asked: Embedding, target: Target) -> Changes:
    if "embedding" not in target.capabilities:
        raise cannot("model", target, "makes no embeddings", "embeddings_not_supported", "serve a model that does")
    check_messages("messages", asked.messages or [], target)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input or []
    check_length("input", max((len(it) for it in texts if isinstance(it, str)), default=0), target)
    check_value("chat_template_kwargs", asked.chat_template_kwargs, MOST_TEMPLATE_BYTES)
    return {}


def _messages(asked: Messages, target: Target) -> Changes:
    other_apis.check_messages(asked, target)
    return {}


def _responses(asked: Responses, target: Target) -> Changes:
    other_apis.check_responses(asked, target)
    return {}


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


def _decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
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


_anything: Callable[[bytes], Any] = msgspec.json.Decoder().decode
_encoded: Callable[[Any], bytes] = msgspec.json.Encoder().encode

_ROUTES = {
    CHAT: Route(Chat, _chat, EngineChatFields, _check_chat_more),
    COMPLETIONS: Route(Completion, _completion, EngineFields, _check_completion_more),
    EMBEDDINGS: Route(Embedding, _embedding),
    "/v1/messages": Route(Messages, _messages),
    "/v1/responses": Route(Responses, _responses),
}
"""Every route that is relayed."""
