"""The requests, and the answer to each that every engine must give."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from tests.conftest import EXAMPLES
from tests.engines.conformance.answers import Answer, check_usage

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

HELLO = (
    "Hello! I am the llmdeploy self-test model. I can name the colour of an image, count, sing and remember a colour."
)
ANYTHING = "I am only the self-test model. Ask me the colour of an image, or ask me to count."

Body = dict[str, Any] | bytes | None
Holds = Callable[[Answer], object]


@dataclass(frozen=True)
class Case:
    """One request and its expected answer."""

    name: str
    body: Body
    cell: str
    text: str | None = None
    """The text of the first choice, if it is the same on every engine."""
    param: str | None = None
    """The field that a refusal names."""
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    model: str = "selftest"
    """Other values: `blind`, without its projector, and `handy`, whose template has tools."""
    holds: Holds | None = None
    """A further check of the answer; raises AssertionError."""

    def content(self) -> bytes | None:
        return json.dumps({"model": self.model, **self.body}).encode() if isinstance(self.body, dict) else self.body


def ok(name: str, body: Body, text: str, **more: Any) -> Case:
    """Return a case that is answered to its end."""
    return Case(name, body, "200 stop", text, **more)


def wrong(name: str, body: Body, param: str, **more: Any) -> Case:
    """Return a case with a field that is refused."""
    return Case(name, body, "400 invalid_value", param=param, **more)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def picture(name: str) -> bytes:
    return (EXAMPLES / f"{name}.png").read_bytes()


def encoded(kind: str) -> bytes:
    """Return a red image in that format."""
    content = BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(content, kind)
    return content.getvalue()


def image(content: bytes, kind: str = "png") -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"},
    }


def address(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


RED, BLUE = image(picture("red")), image(picture("blue"))
QUESTION = {"type": "text", "text": "What color is this?"}
COUNT = {"messages": user("Count to 5"), "temperature": 0}
SING = {"messages": user("sing"), "temperature": 0}
HI = {"messages": user("hello"), "temperature": 0}
COLOUR = [
    *user("My favourite color is green."),
    {"role": "assistant", "content": "I will remember that."},
    *user("What is my favourite color?"),
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def schema(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}


def without(name: str) -> bytes:
    """Return a body without that field."""
    whole = {"model": "selftest", **COUNT}
    return json.dumps({key: value for key, value in whole.items() if key != name}).encode()


# --- Checks beyond status and text


def has_usage(answer: Answer) -> None:
    check_usage(answer.read.usage)


def has_no_usage(answer: Answer) -> None:
    assert answer.read.usage is None


def counted(tokens: int) -> Holds:
    def holds(answer: Answer) -> None:
        has_usage(answer)
        assert (answer.read.usage or {})["completion_tokens"] == tokens

    return holds


def usage_comes_alone(answer: Answer) -> None:
    """Assert that the usage comes in a separate last event."""
    check_usage(answer.events[-1]["usage"])
    assert answer.events[-1]["choices"] == []
    assert not any(event.get("usage") for event in answer.events[:-1])


def usage_comes_last(answer: Answer) -> None:
    check_usage(answer.events[-1]["usage"])


def comes_in_pieces(answer: Answer) -> None:
    has_no_usage(answer)
    assert len(answer.events) > 4


def logprobs_of(*tokens: str, alternatives: int = 1) -> Holds:
    def holds(answer: Answer) -> None:
        assert [it["token"] for it in answer.read.logprobs] == list(tokens)
        for it in answer.read.logprobs:
            assert -0.01 < it["logprob"] <= 0
            assert bytes(it["bytes"]).decode() == it["token"]
            assert len(it["top_logprobs"]) == alternatives

    return holds


def begins_an_object(answer: Answer) -> None:
    assert answer.read.texts[0].lstrip().startswith("{")


def names(*words: str) -> Holds:
    """Return a check that the message of a refusal contains these words."""

    def holds(answer: Answer) -> None:
        assert all(word in answer.error["message"] for word in words), answer.error

    return holds


def is_from_the_gateway(answer: Answer) -> None:
    assert answer.error["llmdeploy"]["source"] == "gateway"


def lists_the_model(answer: Answer) -> None:
    [model] = answer.document["data"]
    assert model.items() >= {"id": "selftest", "object": "model", "owned_by": "llmdeploy"}.items()
    assert model["max_model_len"] == 8192


def twice(answer: Answer) -> None:
    assert answer.read.texts == ["1 2 3 4 5"] * 2


OVERFLOW = {"messages": user("a b c " * 9000), "temperature": 0}

TALK = [
    ok("text", COUNT, "1 2 3 4 5", holds=counted(10)),
    ok("text, unicode", {"messages": user("你好"), "temperature": 0}, HELLO),
    ok("text, empty", {"messages": user(""), "temperature": 0}, HELLO),
    ok("text in parts", {"messages": user([{"type": "text", "text": "Count to 3"}]), "temperature": 0}, "1 2 3"),
    ok("text, other Content-Type", COUNT, "1 2 3 4 5", headers={"Content-Type": "text/plain"}),
    ok(
        "system",
        {"messages": [{"role": "system", "content": "Be brief."}, *user("Count to 3")], "temperature": 0},
        "1 2 3",
    ),
    ok("several turns", {"messages": COLOUR, "temperature": 0}, "Your favourite colour is green."),
    ok(
        "a silent assistant",
        {"messages": [*user("x"), {"role": "assistant", "content": None}, *user("Count to 3")], "temperature": 0},
        "1 1 3",
    ),
    ok(
        "unfinished assistant message",
        {"messages": [*user("Count to 9"), {"role": "assistant", "content": "1 2 3"}], "temperature": 0},
        "1 2 3 4 5 6 7 8 9",
    ),
    Case(
        "a tool's result",
        {
            "messages": [
                *user("Count to 3"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": "3"},
            ],
            "temperature": 0,
            "max_tokens": 5,
        },
        "200 length",
    ),
    ok(
        "fields nobody knows",
        {**COUNT, "flavour": "x", "user": "me", "metadata": {"a": "b"}, "store": False},
        "1 2 3 4 5",
    ),
    ok(
        "fields that are null",
        {**COUNT, "stop": None, "seed": None, "n": None, "tools": None, "stream_options": None},
        "1 2 3 4 5",
    ),
    ok("reasoning_effort", {**COUNT, "reasoning_effort": "low"}, "1 2 3 4 5"),
    ok("a byte order mark", b"\xef\xbb\xbf" + without("x"), "1 2 3 4 5"),
]

STREAMS = [
    ok("stream", {**COUNT, "stream": True}, "1 2 3 4 5", holds=comes_in_pieces),
    ok(
        "stream with usage",
        {**COUNT, "stream": True, "stream_options": {"include_usage": True}},
        "1 2 3 4 5",
        holds=usage_comes_alone,
    ),
    Case("stream to its limit", {**SING, "stream": True, "max_tokens": 4}, "200 length", "la la la la"),
    ok(
        "stream of an image", {"messages": user([RED, QUESTION]), "temperature": 0, "stream": True}, "The image is red."
    ),
    Case("stream refused", {**OVERFLOW, "stream": True}, "400 context_length_exceeded", param="messages"),
    wrong("stream_options alone", {**COUNT, "stream_options": {"include_usage": True}}, "stream_options"),
    wrong("stream is not a boolean", {**COUNT, "stream": "yes"}, "stream"),
]

SAMPLING = [
    Case("max_tokens", {**SING, "max_tokens": 3}, "200 length", "la la la", holds=counted(3)),
    Case("max_completion_tokens", {**SING, "max_completion_tokens": 3}, "200 length", "la la la", holds=counted(3)),
    Case("both of them", {**SING, "max_tokens": 5, "max_completion_tokens": 3}, "200 length", "la la la"),
    ok("more than the context", {**COUNT, "max_tokens": 100000}, "1 2 3 4 5"),
    ok("an integer beyond all", {**COUNT, "max_tokens": 10**30}, "1 2 3 4 5"),
    wrong("max_tokens 0", {**COUNT, "max_tokens": 0}, "max_tokens"),
    wrong("max_tokens -1", {**COUNT, "max_tokens": -1}, "max_tokens"),
    wrong("max_tokens 3.5", {**COUNT, "max_tokens": 3.5}, "max_tokens"),
    wrong("max_tokens is a text", {**COUNT, "max_tokens": "3"}, "max_tokens"),
    ok("stop", {**COUNT, "stop": "4"}, "1 2 3 "),
    ok("stop, several", {**COUNT, "stop": ["5", "3"]}, "1 2 "),
    wrong("stop, five", {**COUNT, "stop": list("abcde")}, "stop"),
    wrong("stop, empty", {**COUNT, "stop": ""}, "stop"),
    ok("seed", {**COUNT, "seed": 7}, "1 2 3 4 5"),
    wrong("seed beyond 64 bits", {**COUNT, "seed": 2**63}, "seed"),
    wrong("temperature 3", {**COUNT, "temperature": 3}, "temperature"),
    wrong("top_p 0", {**COUNT, "top_p": 0}, "top_p"),
    wrong("frequency_penalty 9", {**COUNT, "frequency_penalty": 9}, "frequency_penalty"),
    Case("n 2", {**COUNT, "n": 2, "temperature": 0.01}, "200 stop stop", holds=twice),
    wrong("n 2 at temperature 0", {**COUNT, "n": 2}, "n"),
    ok("logit_bias", {**COUNT, "logit_bias": {"5": 0}}, "1 2 3 4 5"),
    Case(
        "logprobs", {**HI, "logprobs": True, "max_tokens": 2}, "200 length", "Hello!", holds=logprobs_of("Hello", "!")
    ),
    Case(
        "top_logprobs",
        {**HI, "logprobs": True, "top_logprobs": 3, "max_tokens": 1},
        "200 length",
        "Hello",
        holds=logprobs_of("Hello", alternatives=3),
    ),
    Case(
        "top_logprobs in a stream",
        {**HI, "logprobs": True, "top_logprobs": 2, "max_tokens": 2, "stream": True},
        "200 length",
        "Hello!",
        holds=logprobs_of("Hello", "!", alternatives=2),
    ),
    wrong("top_logprobs alone", {**HI, "top_logprobs": 3}, "top_logprobs"),
]

FORMATS = [
    Case(
        "json_object",
        {**COUNT, "response_format": {"type": "json_object"}, "max_tokens": 8},
        "200 length",
        holds=begins_an_object,
    ),
    ok("json_schema, a word", {**COUNT, "response_format": schema({"enum": ["yes"]})}, '"yes"'),
    ok("json_schema, a number", {**COUNT, "response_format": schema({"type": "integer", "enum": [123]})}, "123"),
    ok("json_schema in a stream", {**COUNT, "response_format": schema({"enum": ["yes"]}), "stream": True}, '"yes"'),
    Case(
        "json_schema, impossible",
        {**COUNT, "response_format": schema({"type": "banana"})},
        "400 invalid_schema",
        param="response_format",
    ),
    wrong(
        "json_schema without one", {**COUNT, "response_format": {"type": "json_schema"}}, "response_format.json_schema"
    ),
    wrong("response_format unknown", {**COUNT, "response_format": {"type": "yaml"}}, "response_format.type"),
    Case("tools, without them", {**COUNT, "tools": [TOOL]}, "400 tools_not_supported", param="tools"),
    Case("tools, with them", {**COUNT, "tools": [TOOL], "max_tokens": 1}, "200 length", model="handy"),
    Case("tools, none of them", {**COUNT, "tools": [TOOL], "tool_choice": "none"}, "200 stop", model="handy"),
    wrong("tool_choice alone", {**COUNT, "tool_choice": "auto"}, "tool_choice"),
]


def seen(*parts: Any) -> dict[str, Any]:
    return {"messages": user(list(parts)), "temperature": 0}


URL = "messages[0].content[0].image_url.url"
IMAGES = [
    ok("image first", seen(RED, QUESTION), "The image is red.", holds=has_usage),
    ok("image last", seen(QUESTION, RED), "The image is red."),
    ok("image alone", seen(RED), "The image is red."),
    ok("two images", seen(RED, BLUE, QUESTION), "The images are red and blue."),
    ok(
        "images in two turns",
        {
            "messages": [
                *user([RED, QUESTION]),
                {"role": "assistant", "content": "The image is red."},
                *user([BLUE, QUESTION]),
            ],
            "temperature": 0,
        },
        "The image is blue.",
    ),
    ok("image, JPEG", seen(image(encoded("jpeg"), "jpeg"), QUESTION), "The image is red."),
    ok("image, GIF", seen(image(encoded("gif"), "gif"), QUESTION), "The image is red."),
    ok("image, BMP", seen(image(encoded("bmp"), "bmp"), QUESTION), "The image is red."),
    ok("image, WebP", seen(image(encoded("webp"), "webp"), QUESTION), "The image is red."),
    Case("image, TIFF", seen(image(encoded("tiff"), "tiff"), QUESTION), "400 invalid_image", param=URL),
    Case(
        "image, not one",
        seen(image(b"hello"), QUESTION),
        "400 invalid_image",
        param=URL,
        holds=names("cannot be read"),
    ),
    Case("image, bad Base64", seen(address("data:image/png;base64,@@@"), QUESTION), "400 invalid_image", param=URL),
    Case(
        "image by http",
        seen(address("http://127.0.0.1:1/red.png"), QUESTION),
        "400 invalid_image",
        param=URL,
        holds=is_from_the_gateway,
    ),
    Case(
        "image by file",
        seen(address("file:///etc/passwd"), QUESTION),
        "400 invalid_image",
        param=URL,
        holds=is_from_the_gateway,
    ),
    wrong("image, a bare text", seen({"type": "image_url", "image_url": "x"}), "messages[0].content[0].image_url"),
    Case(
        "image to a text model",
        seen(QUESTION, RED),
        "400 image_not_supported",
        param="messages[0].content[1]",
        model="blind",
    ),
    ok("text to a text model", COUNT, "1 2 3 4 5", model="blind"),
    Case(
        "sound",
        seen({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        "400 audio_not_supported",
        param="messages[0].content[0]",
    ),
]

WRONG = [
    Case("bad JSON", b'{"model": "selftest", "messages": [', "400 invalid_json"),
    Case("no body", b"", "400 invalid_json"),
    Case("an array", b"[]", "400 invalid_json"),
    Case("JSON and more", without("x") + b" x", "400 invalid_json"),
    Case("NaN", without("x").replace(b"0}", b"NaN}"), "400 invalid_json"),
    Case("not UTF-8", without("x").replace(b"Count", b"\xff"), "400 invalid_json"),
    Case("half a surrogate", without("x").replace(b"Count", b"\\ud83d"), "400 invalid_json"),
    wrong("no model", without("model"), "model"),
    Case(
        "unknown model",
        {**COUNT, "model": "nope"},
        "404 model_not_found",
        param="model",
        holds=names("`nope`", "`selftest`"),
    ),
    ok("model in other case too", {**COUNT, "Model": "nope", "MAX_TOKENS": 1}, "1 2 3 4 5"),
    wrong("no messages", without("messages"), "messages"),
    wrong("messages, none", {"messages": []}, "messages"),
    wrong("messages, a text", {"messages": "hello"}, "messages"),
    wrong("a message without a role", {"messages": [{"content": "x"}]}, "messages[0].role"),
    wrong("a message without content", {"messages": [{"role": "user"}]}, "messages[0].content"),
    wrong("content, a number", {"messages": user(5)}, "messages[0].content"),
    wrong("content, no parts", {"messages": user([])}, "messages[0].content"),
    wrong("content, unknown part", {"messages": user([{"type": "smell"}])}, "messages[0].content[0].type"),
    Case("overflow", OVERFLOW, "400 context_length_exceeded", param="messages", holds=names("tokens", "8192")),
    Case("embeddings", {"input": "hello"}, "400 embeddings_not_supported", param="model", path="/v1/embeddings"),
    Case("unknown route", COUNT, "404 unknown_route", path="/v1/nope"),
    Case("wrong method", None, "405 method_not_allowed", method="GET", headers={}),
]

PLAIN = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
LEGACY = [
    Case(
        "completion",
        {"prompt": PLAIN, "max_tokens": 2, "temperature": 0},
        "200 length",
        "Hello!",
        path=COMPLETIONS,
        holds=has_usage,
    ),
    Case(
        "completion of bare text",
        {"prompt": "la la", "max_tokens": 3, "temperature": 0},
        "200 length",
        " la la la",
        path=COMPLETIONS,
    ),
    Case(
        "completion, streamed",
        {"prompt": PLAIN, "max_tokens": 2, "temperature": 0, "stream": True},
        "200 length",
        "Hello!",
        path=COMPLETIONS,
    ),
    Case(
        "completion, streamed with usage",
        {"prompt": PLAIN, "max_tokens": 2, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}},
        "200 length",
        "Hello!",
        path=COMPLETIONS,
        holds=usage_comes_alone,
    ),
    Case(
        "completion, 16 by default",
        {"prompt": PLAIN, "temperature": 0},
        "200 length",
        path=COMPLETIONS,
        holds=counted(16),
    ),
    Case(
        "completion, overflow",
        {"prompt": "a b c " * 9000, "max_tokens": 1},
        "400 context_length_exceeded",
        param="messages",
        path=COMPLETIONS,
    ),
    wrong("completion, two prompts", {"prompt": ["a", "b"]}, "prompt", path=COMPLETIONS),
    Case(
        "completion, echo",
        {"prompt": "la la", "echo": True, "max_tokens": 1, "temperature": 0},
        "400 unsupported_parameter",
        param="echo",
        path=COMPLETIONS,
    ),
    Case(
        "completion, logprobs",
        {"prompt": "la la", "logprobs": 1, "max_tokens": 1, "temperature": 0},
        "400 unsupported_parameter",
        param="logprobs",
        path=COMPLETIONS,
    ),
    Case(
        "completion, suffix",
        {"prompt": "la la", "suffix": "x"},
        "400 insert_not_supported",
        param="suffix",
        path=COMPLETIONS,
    ),
]

REQUESTS = [*TALK, *STREAMS, *SAMPLING, *FORMATS, *IMAGES, *WRONG, *LEGACY]
