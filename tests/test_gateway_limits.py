"""The bounds of the fields that go to an engine: one small request must not take its memory, its time or its stack."""

from __future__ import annotations

import base64
import json
import struct
import time
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from llmdeploy.engines.ollama.dialect import adapt
from llmdeploy.gateway import image_size
from llmdeploy.gateway.body_size import MOST_VALUES
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.grammar import grammar_complaint, pattern_complaint
from llmdeploy.gateway.json_schema import schema_complaint
from llmdeploy.gateway.target import Target
from llmdeploy.gateway.validation import CHAT, COMPLETIONS, EMBEDDINGS, prepare

TARGET = Target("llamacpp", "m", "127.0.0.1", 1, ("text", "image", "tools", "embedding", "audio", "video"), 8192)
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "hello"}]


def body(path: str = CHAT, **fields: Any) -> bytes:
    """Return a request for that route with these fields."""
    own = {CHAT: {"messages": HELLO}, MESSAGES: {"messages": HELLO, "max_tokens": 1}, COMPLETIONS: {"prompt": "x"}}
    return json.dumps({"model": "m", **own.get(path, {"input": "x"}), **fields}).encode()


def refused(path: str = CHAT, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        prepare(path, body(path, **fields), TARGET)
    return caught.value


def sent(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(prepare(path, body(path, **fields), TARGET))
    return document


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


# --- The list of fields


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES])
@pytest.mark.parametrize(
    "name",
    ["flavour", "lora", "id_slot", "chat_format", "mm_processor_kwargs", "chat_template", "kv_transfer_params"],
)
def test_fields_that_are_not_listed_are_left_out(path: str, name: str) -> None:
    content = body(path, **{name: {"a": [1]}, "max_tokens": 1} if path in (CHAT, COMPLETIONS) else {name: {"a": [1]}})
    assert name not in json.loads(prepare(path, content, TARGET))


def test_fields_inside_messages_are_listed_too() -> None:
    part = {"type": "text", "text": "x", "uuid": "a", "image_pil": "x", "image_embeds": "y"}
    document = sent(messages=[{"role": "user", "content": [part], "cache": 1}], flavour="x")
    assert document["messages"] == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


def test_names_in_other_letters_are_not_listed() -> None:
    folded: dict[str, Any] = {"Grammar": "x", "me\u017f\u017fages": [], "max_to\u212aens": 5}
    for target in (TARGET, replace(TARGET, adapt=adapt)):
        content = body(**folded)
        assert json.loads(prepare(CHAT, content, target)) == {"model": "m", "messages": HELLO}


def test_engine_only_fields_pass() -> None:
    fields = {
        "top_k": 40,
        "min_p": 0.1,
        "repeat_last_n": 64,
        "mirostat": 2,
        "grammar": 'root ::= "a"{1,3}',
        "structured_outputs": {"choice": ["a", "b"]},
        "guided_json": {"type": "string"},
        "chat_template_kwargs": {"enable_thinking": False},
        "stop_token_ids": [1],
    }
    assert sent(**fields) == json.loads(body(**fields))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2**31),
        ("n", 129),
        ("repeat_last_n", 2**31 - 1),
        ("dry_penalty_last_n", 10**9),
        ("n_probs", 10**6),
        ("mirostat", 3),
        ("n_keep", 2**40),
        ("min_keep", 2**31),
        ("stop", ["x" * 2000]),
        ("stop", ["a"] * 5),
        ("logit_bias", {str(at): 1 for at in range(2000)}),
        ("logit_bias", {"1" * 99: 1}),
        ("stop_token_ids", [1] * 1000),
        ("bad_words", ["a"] * 1000),
        ("samplers", ["top_k"] * 100),
        ("dry_sequence_breakers", ["a" * 1000]),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 600),
        ("messages", HELLO * 10_001),
        ("prompt_logprobs", 10**5),
        ("chat_template_kwargs", {"a": "x" * 20_000}),
        ("grammar", "x" * 70_000),
        ("guided_regex", "a{99999999999}"),
        ("structured_outputs", {"grammar": "root ::= " + "(" * 5000}),
        ("structured_outputs", {"json": '{"pattern": "^a{3,1}$"}'}),
    ],
)
def test_each_field_has_bounds(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.status, error.code) == (400, "invalid_value")
    assert (error.param or "").startswith(name)
    assert len(error.message) < 1500


def test_many_calls_of_tools_are_checked_quickly() -> None:
    calls = [{"type": "tool_use", "input": {"a": []}}] * 90
    turns = [{"role": "assistant", "content": calls}] * 600
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": turns}).encode()
    started = time.thread_time()
    prepare("/v1/messages", body, TARGET)
    assert time.thread_time() - started < 0.4


def test_many_entries_of_logit_bias_are_refused_quickly() -> None:
    biases = {str(at): 1 for at in range(MOST_VALUES - 10)}
    body = json.dumps({"model": "m", "messages": HELLO, "logit_bias": biases}).encode()
    started = time.thread_time()
    with pytest.raises(Refused):
        prepare("/v1/chat/completions", body, TARGET)
    assert time.thread_time() - started < 0.25  # a pattern, which is matched in Python, takes twice as long


# --- Grammars, patterns and schemas


@pytest.mark.parametrize(
    "pattern", [r"^\d{4}-\d{2}-\d{2}$", "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", "^a{2,}$", "^{x}$", r"^\p{L}+$"]
)
def test_ordinary_patterns_pass(pattern: str) -> None:
    assert pattern_complaint(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "^a{3,1}$",
        "^a{99999999999}$",
        "^a{1,99999}$",
        "^(a{100}){100}$",
        "^((a{20}){20}){20}$",
        "^a{-1}$",
        "^a{ 3 , 1 }$",
        "^a{3,1x}$",
        "^[b]{2500}$",
        "^" + "a?" * 400 + "$",
        "^(a?){400}$",
        "^" + "(" * 100 + "a",
        "^" + "(ab)" * 1200 + "$",
    ],
)
def test_patterns_that_grow_are_refused(pattern: str) -> None:
    assert pattern_complaint(pattern)
    error = refused(response_format=format_of({"type": "string", "pattern": pattern}))
    assert (error.code, error.param) == ("invalid_value", "response_format.json_schema.schema")


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "(" * 100_000,
        'root ::= "a"{3,1}',
        'root ::= "a"{99999999}',
        "a ::= b\n" * 5000,
        "root ::= " + "a | " * 2000,
        'root ::= ("a"? "a"?){200}',
        "root ::= " + '"a"? ' * 400,
        'x{1500} "b"{1500}',
    ],
)
def test_grammars_that_grow_are_refused(grammar: str) -> None:
    assert grammar_complaint(grammar)


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def chain(number: int, depth: int = 1) -> dict[str, Any]:
    """Return a schema of many definitions, each of which refers to the next from inside `depth` objects."""
    definitions = {}
    for at in range(number):
        schema: dict[str, Any] = {"$ref": f"#/$defs/a{at + 1}"}
        for _ in range(depth):
            schema = {"properties": {"x": schema}}
        definitions[f"a{at}"] = schema
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{number}": {}}}


DOUBLED: dict[str, Any] = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(40)}
SCHEMAS = [
    ({"maxLength": 10**9}, "maxLength"),
    ({"minItems": 5, "maxItems": 1}, "minItems"),
    ({"minLength": -1}, "minLength"),
    ({"properties": {"a": {"default": {"maxLength": 1e99}}}}, "maxLength"),
    ({"items": [{"maxLength": 9000}, {"maxLength": 9000}]}, "sum up"),
    ({"minimum": -(2**70)}, "minimum"),
    ({"minimum": 5, "maximum": 1}, "minimum"),
    (nested(70), "nested"),
    ({"enum": [[]] * 30_000}, "values"),
    ({"anyOf": [{"enum": list(range(600))}, {"enum": list(range(600))}]}, "choose"),
    ({"properties": {str(at): {} for at in range(300)}}, "names"),
    ({"patternProperties": {"^a{3,1}$": {}}}, "pattern"),
    ({"$ref": "http://127.0.0.1/x"}, "another document"),
    ({"$ref": "#"}, "leads back"),
    ({"allOf": [{"$ref": "#"}]}, "leads back"),
    (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        "leads back",
    ),
    (chain(250, depth=4), "references"),
    ({"$ref": "#/$defs/a0", "$defs": {**DOUBLED, "a40": {}}}, "stands for"),
]


@pytest.mark.parametrize(("schema", "words"), SCHEMAS, ids=[words for _, words in SCHEMAS])
def test_schemas_that_grow_are_refused(schema: Any, words: str) -> None:
    assert words in (schema_complaint(schema) or "")


TREE = {
    "type": "object",
    "properties": {
        "pattern": {"type": "string", "maxLength": 100},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 10},
        "kind": {"anyOf": [{"$ref": "#/$defs/kind"}, {"type": "null"}]},
    },
    "required": ["pattern"],
    "$defs": {"kind": {"enum": ["a", "b"]}},
}


def test_ordinary_schemas_pass() -> None:
    assert schema_complaint(TREE) is None
    assert schema_complaint(chain(30)) is None
    assert schema_complaint({}) is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": format_of({"pattern": "a{3,1}"})}),
        (COMPLETIONS, {"response_format": format_of({"pattern": "a{3,1}"})}),
        (CHAT, {"response_format": {"type": "json_object", "schema": {"pattern": "a{3,1}"}}}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "a{3,1}"}}}]}),
        (CHAT, {"json_schema": {"pattern": "a{3,1}"}}),
        (CHAT, {"guided_json": {"pattern": "a{3,1}"}}),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": {"pattern": "a{3,1}"}}]}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {"pattern": "a{3,1}"}}}}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f", "parameters": {"pattern": "a{3,1}"}}]}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"pattern": "a{3,1}"}}}}),
        (RESPONSES, {"structured_outputs": {"regex": "a{3,1}"}}),
    ],
)
def test_schemas_are_checked_wherever_they_are(path: str, fields: dict[str, Any]) -> None:
    assert "repetition" in refused(path, **fields).message


def test_arguments_of_tools_are_not_nested_beyond_a_stack() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * 9000 + "]" * 9000}}
    assert "nested" in refused(messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]).message
    call["function"]["arguments"] = json.dumps({"code": "{" * 9000})  # type: ignore[index]
    assert sent(messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}])


# --- What an engine would fetch

SECRET = "http://127.0.0.1:1/x"


LONG = "a " * 6_500_000
SOURCE = {"type": "image", "source": {"type": "url", "url": SECRET}}
LINK = {"url": SECRET}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (MESSAGES, {"messages": user(SOURCE)}),
        (MESSAGES, {"system": [SOURCE]}),
        (MESSAGES, {"messages": user({"type": "tool_result", "tool_use_id": "x", "content": [SOURCE]})}),
        (RESPONSES, {"input": user({"type": "input_image", "image_url": SECRET})}),
        (RESPONSES, {"input": user({"type": "input_image", "image_url": LINK})}),
        (RESPONSES, {"input": [{"type": "x", "output": [{"type": "input_image", "image_url": SECRET}]}]}),
        (RESPONSES, {"input": user({"type": "input_file", "file_url": SECRET})}),
        (CHAT, {"messages": user({"type": "text", "text": "x", "image_url": LINK})}),
        (CHAT, {"messages": user({"type": "video_url", "video_url": LINK})}),
        (CHAT, {"messages": user({"type": "audio_url", "audio_url": LINK})}),
        (EMBEDDINGS, {"messages": user({"type": "image_url", "image_url": LINK})}),
    ],
)
def test_no_spelling_of_an_address_reaches_an_engine(path: str, fields: dict[str, Any]) -> None:
    assert refused(path, **fields).code == "invalid_image"
    escaped = body(path, **fields)
    for name in (b"url", b"source", b"image", b"type", b"content"):
        escaped = escaped.replace(name, b"\\u%04x" % name[0] + name[1:])
    with pytest.raises(Refused, match="fetched"):
        prepare(path, escaped, TARGET)


def test_embeddings_take_texts_and_tokens_alone() -> None:
    assert refused(EMBEDDINGS, input=[{"role": "user", "content": "x"}]).param == "input[0]"
    for given in ("x", ["x", "y"], [1, 2], [[1], [2, 3]]):
        assert sent(EMBEDDINGS, input=given)["input"] == given


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
        (CHAT, {"messages": user({"type": "text", "text": LONG})}),
        (COMPLETIONS, {"prompt": LONG}),
        (EMBEDDINGS, {"input": ["x", LONG]}),
        (
            MESSAGES,
            {"system": LONG[: len(LONG) // 2], "messages": user({"type": "text", "text": LONG[: len(LONG) // 2]})},
        ),
        (RESPONSES, {"input": LONG}),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "a", "output": LONG}]}),
    ],
)
def test_a_text_far_longer_than_the_context_is_refused(path: str, fields: dict[str, Any]) -> None:
    error = refused(path, **fields)
    assert (error.status, error.code, error.hint[:9]) == (400, "context_length_exceeded", "send less")
    prepare(path, body(path, **fields), replace(TARGET, context=131_072))


# --- Images


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0" + b"\0" * 40


def part(content: bytes, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
@pytest.mark.parametrize("size", [(64, 48), (300, 7)])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"progressive": True}, {"exif": b"0" * 9000}])
def test_the_size_of_an_image_is_read(kind: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    content = BytesIO()
    Image.new("RGB", size, (9, 200, 3)).save(content, kind, **options)
    assert image_size.size(base64.b64encode(content.getvalue()).decode()) == size


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        png(0, 5),
        png(5, 5)[:20],
        b"\x89PNG\r\n\x1a\n\0\0\0\x04CgBI" + b"\0" * 40,
        b"\0\0\2\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\x18\0" + b"\0" * 40,  # TGA, which llama.cpp decodes
        b"\xff\xd8" + b"\xff\xe1\xff\xff" * 40_000,
    ],
)
def test_other_images_are_refused(content: bytes) -> None:
    error = refused(messages=user(part(content)))
    assert (error.status, error.code) == (400, "invalid_image")


@pytest.mark.parametrize("content", [png(12_000, 12_000), png(2**31 - 1, 2**31 - 1), png(1, 20_000), png(7000, 7000)])
def test_images_of_too_many_pixels_are_refused(content: bytes) -> None:
    error = refused(messages=user(part(content)))
    assert (error.code, error.param) == ("invalid_image", "messages[0].content[0].image_url.url")
    assert "is too large" in error.message
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(content).decode()}
    assert refused(MESSAGES, messages=user({"type": "image", "source": source})).code == "invalid_image"
    url = part(content)["image_url"]["url"]
    assert refused(RESPONSES, input=user({"type": "input_image", "image_url": url})).code == "invalid_image"


def test_the_images_of_one_request_are_bounded_together() -> None:
    assert sent(messages=user(*[part(png(3000, 3000))] * 8))
    assert "pixels" in refused(messages=user(*[part(png(6000, 6000))] * 3)).message
    assert refused(messages=user(*[part(png(6, 6))] * 129)).code == "too_many_images"


# --- Time


@pytest.mark.parametrize(
    "content",
    [
        body(x=[[]] * 300_000, max_tokens=99_999),
        body(x={str(at): 0 for at in range(200_000)}, max_tokens=99_999),
        body(response_format=format_of({"enum": [[]] * 250_000})),
        body(response_format=format_of(nested(60) | {"enum": [{"a": {}}] * 4000})),
        body(grammar="(a{1})" * 10_000),
        body(guided_regex="[" * 4096),
        body(guided_regex="({" * 2048),
        body(tool_choice="x" * 3_000_000),
    ],
)
def test_no_check_takes_long(content: bytes) -> None:
    started = time.thread_time()
    with suppress(Refused):
        prepare(CHAT, content, TARGET)
    assert time.thread_time() - started < 0.2
