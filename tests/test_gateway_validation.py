"""The checks of requests, the same for every engine."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.engines.ollama.dialect import adapt
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.target import Target
from llmdeploy.gateway.validation import CHAT, COMPLETIONS, EMBEDDINGS, prepare

TARGET = Target("llamacpp", "selftest", "127.0.0.1", 1, ("text", "image"), 8192)
BLIND = replace(TARGET, capabilities=("text",))
HANDY = replace(TARGET, capabilities=("text", "tools"))

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
RED = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJ"
"""The first bytes of a PNG of 64 x 64 pixels."""
RED_DATA = RED.partition(",")[2]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def body(**fields: Any) -> bytes:
    """Return a chat request with these fields; `...` as a value leaves the field out."""
    whole = {"model": "selftest", "messages": HELLO, **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def refused(content: bytes, target: Target = TARGET, path: str = CHAT) -> Refused:
    with pytest.raises(Refused) as caught:
        prepare(path, content, target)
    return caught.value


def sent(content: bytes, target: Target = TARGET, path: str = CHAT) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(prepare(path, content, target))
    return document


# --- Bodies that are sent unchanged


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0, "top_p": 1, "seed": -(2**63), "max_tokens": 8192, "stop": ["a"] * 4},
        {"stop": None, "stream": None, "max_tokens": None, "n": None, "tools": None, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"messages": user({"type": "text", "text": ""}, image(RED))},
        {"messages": [*HELLO, {"role": "assistant", "content": None}, {"role": "tool", "content": "3"}]},
        {"messages": [{"role": "wizard", "content": "", "name": "x"}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"logprobs": True, "top_logprobs": 20},
        {"logprobs": False},
        {"n": 2},
        {"logit_bias": {"5": -100}},
        {"top_k": 3, "min_p": 0.5, "user": "x"},
    ],
)
def test_a_valid_body_is_sent_unchanged(fields: dict[str, Any]) -> None:
    content = body(**fields)
    assert prepare(CHAT, content, TARGET) is content


def test_tools_go_to_a_model_that_calls_them() -> None:
    content = body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}})
    assert prepare(CHAT, content, HANDY) is content


def test_an_adapted_body_has_each_name_once() -> None:
    twice = (
        b'{"model": "selftest", "max_tokens": 9, "messages": [{"role": "user", "content": ""}], "max_tokens": 3, '
        + body()[1:]
    )
    assert prepare(CHAT, twice, replace(TARGET, adapt=adapt)).count(b"max_tokens") == 1
    assert sent(twice, replace(TARGET, adapt=adapt)) == {"model": "selftest", "messages": HELLO, "max_tokens": 3}


# --- Bodies that are changed


def test_an_engine_gets_its_dialect() -> None:
    target = replace(TARGET, engine="ollama", adapt=adapt)
    document = sent(body(max_completion_tokens=3, user="\u4f60\U0001f600"), target)
    expected = {"model": "selftest", "messages": HELLO, "max_tokens": 3, "user": "\u4f60\U0001f600"}
    assert document == expected


@pytest.mark.parametrize("fields", [{"messages": [None]}, {"tools": [None], "tool_choice": {"function": None}}])
def test_a_dialect_never_meets_chat_fields_of_a_completion(fields: dict[str, Any]) -> None:
    content = body(**{"messages": ..., "prompt": "la", **fields})
    document = sent(content, replace(TARGET, adapt=adapt), COMPLETIONS)
    assert document == {"model": "selftest", "prompt": "la", "max_tokens": 16}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_is_limited_to_the_context(name: str) -> None:
    assert sent(body(**{name: 8193}))[name] == 8192
    assert sent(body(**{name: 10**30}))[name] == 8192
    assert sent(body(**{name: 10**30}), replace(TARGET, context=None))[name] == 2**31 - 1


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 0}])
def test_logprobs_come_with_one_alternative(fields: dict[str, Any]) -> None:
    assert sent(body(**fields))["top_logprobs"] == 1


def test_a_byte_order_mark_is_left_out() -> None:
    content = body()
    assert prepare(CHAT, b"\xef\xbb\xbf" + content, TARGET) == content


def test_a_completion_is_short_by_default() -> None:
    def complete(**fields: Any) -> dict[str, Any]:
        return sent(body(messages=..., prompt="la", **fields), path=COMPLETIONS)

    assert complete() == {"model": "selftest", "prompt": "la", "max_tokens": 16}
    assert complete(max_tokens=3) == {"model": "selftest", "prompt": "la", "max_tokens": 3}
    assert complete(max_completion_tokens=4) == {"model": "selftest", "prompt": "la", "max_tokens": 4}
    assert complete(max_completion_tokens=9999)["max_tokens"] == 8192


# --- Bodies that are refused

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": ...}, "model", "`model` is missing"),
    ({"model": 5}, "model", "`model` must be a string, not an integer"),
    ({"messages": ...}, "messages", "`messages` is missing"),
    ({"messages": []}, "messages", "`messages` must be an array of length >= 1"),
    ({"messages": None}, "messages", "`messages` must be an array, not null"),
    ({"messages": ["hello"]}, "messages[0]", "`messages[0]` must be an object, not a string"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "`messages[0].role` is missing"),
    ({"messages": [*HELLO, {"role": "user"}]}, "messages[1].content", "`messages[1].content` is missing"),
    ({"messages": [{"role": "tool", "content": None}]}, "messages[0].content", "`messages[0].content` is missing"),
    ({"messages": user()}, "messages[0].content", "`messages[0].content` must be an array of length >= 1"),
    (
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
        "`messages[0].content` must be a string or an array or null, not an integer",
    ),
    ({"messages": user({"text": "x"})}, "messages[0].content[0].type", "`messages[0].content[0].type` is missing"),
    ({"messages": user({"type": "text"})}, "messages[0].content[0].text", "`messages[0].content[0].text` is missing"),
    (
        {"messages": user({"type": "smell"})},
        "messages[0].content[0].type",
        "`messages[0].content[0].type` must be `text` or `image_url`, not `smell`",
    ),
    (
        {"messages": user({"type": "image_url"})},
        "messages[0].content[0].image_url",
        "`messages[0].content[0].image_url` is missing",
    ),
    ({"stream": "yes"}, "stream", "`stream` must be true or false or null, not a string"),
    ({"stream_options": {}}, "stream_options", '`stream_options` needs `"stream": true`'),
    ({"max_tokens": 0}, "max_tokens", "`max_tokens` must be an integer >= 1"),
    ({"max_tokens": -1}, "max_tokens", "`max_tokens` must be an integer >= 1"),
    ({"max_tokens": "3"}, "max_tokens", "`max_tokens` must be an integer or null, not a string"),
    ({"max_tokens": True}, "max_tokens", "`max_tokens` must be an integer or null, not true or false"),
    ({"max_completion_tokens": 3.5}, "max_completion_tokens", "`max_completion_tokens` must be an integer or null"),
    ({"n": 0}, "n", "`n` must be an integer >= 1"),
    ({"n": 2, "temperature": 0}, "n", "`n` must be 1 at temperature 0: all answers would be the same"),
    ({"stop": ""}, "stop", "`stop` must be a string of length >= 1"),
    ({"stop": ["a"] * 5}, "stop", "`stop` must be an array of length <= 4"),
    ({"seed": 2**63}, "seed", f"`seed` must be an integer <= {2**63 - 1}"),
    ({"temperature": 2.1}, "temperature", "`temperature` must be a number <= 2.0"),
    ({"top_p": 0}, "top_p", "`top_p` must be a number > 0.0"),
    ({"frequency_penalty": -3}, "frequency_penalty", "`frequency_penalty` must be a number >= -2.0"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "`logit_bias` must be an integer, not a string"),
    ({"top_logprobs": 2}, "top_logprobs", '`top_logprobs` needs `"logprobs": true`'),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "`top_logprobs` must be an integer <= 20"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "`response_format.type`: Invalid enum value"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "`response_format.json_schema` is missing",
    ),
    ({"tools": []}, "tools", "`tools` must be an array of length >= 1"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "`tools[0].function` is missing"),
    ({"tool_choice": "auto"}, "tool_choice", "`tool_choice` needs `tools`"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort", "`reasoning_effort`: Invalid enum value 'extreme'"),
]


@pytest.mark.parametrize(("fields", "param", "message"), WRONG, ids=[str(fields)[:60] for fields, _, _ in WRONG])
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    error = refused(body(**fields))
    assert (error.status, error.type, error.code, error.param) == (400, "invalid_request_error", "invalid_value", param)
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is empty: a JSON object is expected"),
        (b"[]", "the body must be an object, not an array"),
        (b'{"model": "selftest", "messages": [', "the body is not valid JSON: Input data was truncated"),
        (body() + b" x", "the body is not valid JSON: trailing characters"),
        (body(temperature=float("nan")), "the body is not valid JSON: invalid character"),
        (
            b'{"model":"selftest","messages":[{"role":"user","content":"\xff"}]}',
            "the body is not valid JSON: it is not UTF-8",
        ),
        ('{"model": "selftest"}'.encode("utf-16"), "the body is not valid JSON: it is not UTF-8"),
        (
            b'{"model":"selftest","messages":[{"role":"user","content":"\\ud83d !"}]}',
            "the body is not valid JSON: unexpected end of escaped utf-16 surrogate pair",
        ),
        (b'{"x":' + b"[" * 100_000, "the body is nested too deeply"),
    ],
)
def test_invalid_json_is_refused(content: bytes, message: str) -> None:
    error = refused(content)
    assert (error.status, error.code, error.param) == (400, "invalid_json", None)
    assert error.message.startswith(message)


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS, "/v1/messages"])
@pytest.mark.parametrize("content", [b"", b"[]", body(prompt="x") + b"x", body(temperature=float("nan"))])
def test_invalid_json_is_refused_on_any_route(path: str, content: bytes) -> None:
    assert refused(content, path=path).code == "invalid_json"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, "/v1/messages", "/v1/responses"])
def test_an_unknown_model_is_not_found(path: str) -> None:
    error = refused(body(model="it's mine", prompt="x", input="x"), path=path)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert error.message == "the model `it's mine` is not served here: `selftest` is"
    served, other = 'send `"model": "selftest"`', """`llmdeploy switch --model 'it'"'"'s mine'`"""
    assert error.hint == f"{served}, or serve the other one: {other}"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/",
        "https://x/red.png",
        "file:///etc/passwd",
        "",
        "iVBORw0KGgo=",
        RED.upper(),
        "data:image/png,hello",
        "data:text/plain;base64,AAAA",
        "data:image/tiff;base64,AAAA",
        "data:image/png;base64,",
    ],
)
def test_only_images_in_data_urls_are_accepted(url: str) -> None:
    error = refused(body(messages=user(image(RED), image(url))))
    assert (error.status, error.code) == (400, "invalid_image")
    assert error.param == "messages[0].content[1].image_url.url"
    assert error.hint == "send the image itself, as a data: URL: `data:image/png;base64,...`"


def test_a_model_without_vision_gets_no_image() -> None:
    error = refused(body(messages=user({"type": "text", "text": "x"}, image(RED))), BLIND)
    assert (error.status, error.code, error.param) == (400, "image_not_supported", "messages[0].content[1]")
    assert error.message == "`selftest` sees no images"


@pytest.mark.parametrize(("kind", "what"), [("input_audio", "audio"), ("video_url", "video")])
def test_content_that_the_model_does_not_support_is_refused(kind: str, what: str) -> None:
    content = body(messages=user({"type": kind, kind: {"url": "data:x"}}))
    error = refused(content)
    assert (error.code, error.message) == (f"{what}_not_supported", f"`selftest` does not accept {what}")
    target = replace(TARGET, capabilities=("text", what))
    assert prepare(CHAT, content, target) is content
    assert refused(body(messages=user({"type": kind, kind: {"url": "http://x"}})), target).code == "invalid_image"


def test_a_model_without_tools_gets_none() -> None:
    error = refused(body(tools=[TOOL]))
    assert (error.code, error.param) == ("tools_not_supported", "tools")


@pytest.mark.parametrize(
    ("path", "name", "value", "fine"),
    [
        (CHAT, "n", 2, 1),
        (CHAT, "logit_bias", {"5": 1}, {}),
        (COMPLETIONS, "echo", True, False),
        (COMPLETIONS, "logprobs", 0, None),
        (COMPLETIONS, "best_of", 2, 1),
    ],
)
def test_fields_that_an_engine_would_ignore_are_refused(path: str, name: str, value: Any, fine: Any) -> None:
    target = replace(TARGET, engine="ollama", lacks={path: (name,)})
    error = refused(body(prompt="x", **{name: value}), target, path)
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert error.message == f"`ollama` does not support `{name}` on `{path}`"
    prepare(path, body(prompt="x", **{name: value}), TARGET)
    prepare(path, body(prompt="x", **{name: fine}), target)


@pytest.mark.parametrize("prompt", [..., None, "", [], ["a", "b"], [1, 2], 5])
def test_a_completion_has_one_prompt(prompt: Any) -> None:
    assert refused(body(prompt=prompt), path=COMPLETIONS).param == "prompt"


def test_suffix_is_sent_to_a_model_that_supports_it() -> None:
    content = body(messages=..., prompt="x", suffix="y", max_tokens=1)
    assert refused(content, path=COMPLETIONS).code == "insert_not_supported"
    assert prepare(COMPLETIONS, content, replace(TARGET, capabilities=("text", "insert"))) is content


def test_a_chat_model_makes_no_embeddings() -> None:
    assert refused(body(input="x"), path=EMBEDDINGS).code == "embeddings_not_supported"
    content = body(input="x")
    assert prepare(EMBEDDINGS, content, replace(TARGET, capabilities=("embedding",))) is content


# --- Other APIs


FETCHED = [
    ("/v1/messages", {"messages": user({"type": "image", "source": {"type": "url", "url": "http://x"}})}),
    ("/v1/messages", {"messages": user({"type": "document", "source": {"type": "url", "url": "http://x"}})}),
    ("/v1/responses", {"input": user({"type": "input_image", "image_url": "http://x"})}),
    ("/v1/responses", {"input": user({"type": "input_file", "file_url": "ftp://x"})}),
    ("/v1/messages", {"messages": user({"type": "tool_result", "content": [image("http://x")]})}),
]


@pytest.mark.parametrize(("path", "fields"), FETCHED)
def test_other_apis_fetch_nothing_either(path: str, fields: dict[str, Any]) -> None:
    assert refused(body(**fields), path=path).code == "invalid_image"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"messages": user({"type": "image", "source": {"type": "base64", "data": RED_DATA}})}),
        ("/v1/messages", {"messages": user({"type": "tool_use", "input": {"type": "url", "url": "http://x"}})}),
        ("/v1/responses", {"input": "see http://x, a url"}),
        ("/v1/responses", {"input": user({"type": "input_image", "image_url": RED})}),
        ("/v1/responses", {"stream": True}),
    ],
)
def test_requests_of_other_apis_are_sent_unchanged(path: str, fields: dict[str, Any]) -> None:
    content = body(**{"messages": ..., **fields})
    assert prepare(path, content, TARGET) is content
    assert sent(content, replace(TARGET, adapt=adapt), path) == json.loads(content)


# --- Arbitrary bodies

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = ["model", "messages", "stream", "stop", "n", "tools", "prompt", "input", "logit_bias", "Model", "x"]
NAMES += ["response_format", "tool_choice", "max_tokens", "stream_options", "reasoning_effort", "temperature"]
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON)


@given(FIELDS, st.booleans(), st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS, "/v1/messages"]))
def test_any_body_is_sent_or_refused(fields: dict[str, Any], dialect: bool, path: str) -> None:
    target = replace(TARGET, adapt=adapt if dialect else None)
    content = json.dumps({"model": "selftest", "messages": HELLO, "prompt": "x", **fields}).encode()
    with suppress(Refused):
        assert json.loads(prepare(path, content, target))["model"] == "selftest"


PARTS = st.fixed_dictionaries({}, optional={"type": JSON, "text": JSON, "image_url": JSON | st.just({"url": [1]})})
MESSAGES = JSON | st.fixed_dictionaries({}, optional={"role": JSON, "content": JSON | st.lists(PARTS | JSON)})
TOOLS = JSON | st.fixed_dictionaries({}, optional={"function": JSON | st.fixed_dictionaries({"name": JSON})})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "messages": st.lists(MESSAGES) | JSON,
            "tools": st.lists(TOOLS) | JSON,
            "tool_choice": TOOLS,
            "response_format": JSON | st.fixed_dictionaries({"type": JSON}),
            "max_completion_tokens": JSON,
            "reasoning": JSON,
        },
    ),
    st.booleans(),
)
def test_a_dialect_takes_any_type_anywhere(request: dict[str, Any], thinks: bool) -> None:
    json.dumps(adapt(request, thinks=thinks))


@given(st.binary())
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(Refused):
        prepare(CHAT, content, TARGET)
