"""Random bodies of requests: made from the table of fields, with values on both sides of their bounds, then broken."""

from __future__ import annotations

import base64
import json
import random
import struct
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Raw, UnsetType

from llmdeploy.gateway.fields.bounds import Fields
from llmdeploy.gateway.fields.engines import EngineChatFields, EngineFields
from llmdeploy.gateway.fields.messages import Messages
from llmdeploy.gateway.fields.openai import Chat, Completion, Embedding
from llmdeploy.gateway.fields.responses import Responses

ROUTES: dict[str, tuple[type[Fields], ...]] = {
    "/v1/chat/completions": (Chat, EngineChatFields),
    "/v1/completions": (Completion, EngineFields),
    "/v1/embeddings": (Embedding,),
    "/v1/messages": (Messages,),
    "/v1/responses": (Responses,),
}
PATTERNS = [
    "^a{3,1}$",
    "^a{2,4}$",
    "^(a{99}){99}$",
    "^[a-f]{8}$",
    "^" + "(" * 200,
    "^\\d+$",
    "^a{999999999}$",
    "^(a?){50}$",
]
GRAMMARS = [
    'root ::= "a"',
    'root ::= "a"{3,1}',
    "root ::= " + "(" * 900 + '"a"' + ")" * 900,
    'root ::= root "a"',
    'root ::= ("a"*)*',
    "root ::= x",
    'root ::= [a-z]{0,99} | "b"',
    "\x00",
    'root ::= ("a"? "b"?){40}',
]
TEXTS = ["", "x", "hello", "Count to 3", "\u4f60\u597d", "\x00", "\u2028<|im_end|>", "{{ x }}", "a" * 3000, "[" * 500]
URLS = [
    "http://127.0.0.1:1/x",
    "file:///etc/passwd",
    "data:",
    "data:image/png;base64,",
    "data:image/png;base64,@@@",
    "",
]
NUMBERS = [-1, 0, 1, 2, 3, 7, 0.5, -0.0, 1e300, 2**31, 2**63, 10**40, -(2**31)]
NAMES = [
    "Model",
    "MESSAGES",
    "lora",
    "id_slot",
    "chat_format",
    "grammar_triggers",
    "speculative.n_max",
    "x",
    "url",
    "\u017ftop",
]


def _image(rng: random.Random) -> str:
    sides = rng.choice([(8, 8), (1, 1), (30_000, 30_000), (0, 3), (3000, 9000)])
    content = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", *sides) + rng.randbytes(rng.randrange(60))
    kind = rng.choice(["png", "jpeg", "webp", "gif", "bmp"])
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _text(rng: random.Random) -> str:
    return rng.choice(TEXTS) if rng.random() < 0.8 else _image(rng) if rng.random() < 0.5 else rng.choice(URLS)


def _schema(rng: random.Random, depth: int = 4) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: {"type": rng.choice(["string", "integer", "boolean", "null", "banana", ["string", "null"]])},
        lambda: {"type": "string", "pattern": rng.choice(PATTERNS)},
        lambda: {"type": "string", "minLength": rng.choice(NUMBERS), "maxLength": rng.choice(NUMBERS)},
        lambda: {"type": "integer", "minimum": rng.choice(NUMBERS), "maximum": rng.choice(NUMBERS)},
        lambda: {"enum": [rng.choice([*TEXTS, *NUMBERS, None]) for _ in range(rng.randrange(5))]},
        lambda: {"$ref": rng.choice(["#", "#/$defs/a", "#/$defs/b", "http://x/y", "#/properties/a", "x"])},
        lambda: rng.choice([True, False, None, [], 5, "x", {}]),
    ]
    if depth:
        below = depth - 1
        kinds += [
            lambda: {
                "type": "array",
                "items": _schema(rng, below),
                "minItems": 1,
                "maxItems": rng.choice([0, 3, 2500]),
            },
            lambda: {
                "type": "object",
                "properties": {f"p{at}": _schema(rng, below) for at in range(rng.randrange(6))},
                "required": ["p0"],
                "additionalProperties": rng.choice([True, False, {"type": "string"}]),
                "$defs": {"a": _schema(rng, below), "b": {"$ref": "#/$defs/a"}},
            },
            lambda: {rng.choice(["anyOf", "allOf", "oneOf"]): [_schema(rng, below) for _ in range(rng.randrange(4))]},
        ]
    return rng.choice(kinds)()


def _number(rng: random.Random, bounds: Meta | None) -> Any:
    edges = [it for it in (bounds and bounds.ge, bounds and bounds.le) if isinstance(it, int | float)]
    return rng.choice([*NUMBERS, *edges, *(it + step for it in edges for step in (-1, 1))])


def value_of(rng: random.Random, hint: Any, name: str = "", bounds: Meta | None = None) -> Any:
    """Return a value for a field of that type; sometimes one that the type does not allow."""
    if rng.random() < 0.01:
        return rng.choice([None, [], {}, [None], *TEXTS, *NUMBERS, True, {"a": {"b": []}}])
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return value_of(rng, inside[0], name, inside[1])
    if origin in (Union, types.UnionType):
        kinds = [it for it in inside if it not in (UnsetType, types.NoneType)]
        return value_of(rng, rng.choice(kinds), name)
    if origin is Literal:
        return rng.choice(inside)
    if origin is list:
        length = 1 + int(rng.expovariate(1)) if rng.random() < 0.99 else rng.choice([0, 5, 200, 2000])
        return [value_of(rng, inside[0], name) for _ in range(min(length, 50))] * (1 if length < 50 else length // 50)
    if origin is dict:
        return {rng.choice(["1", "42", "x", "9" * 20]): value_of(rng, inside[1]) for _ in range(rng.randrange(3))}
    if isinstance(hint, type) and issubclass(hint, Fields):
        return object_of(rng, hint)
    if hint is Raw:
        return _schema(rng) if rng.random() < 0.9 else json.dumps(_schema(rng))
    if hint is bool:
        return rng.random() < 0.5
    if hint in (int, float):
        return _number(rng, bounds)
    return _named_text(rng, name)


def _named_text(rng: random.Random, name: str) -> str:
    known = {
        "model": ["selftest"],
        "role": ["user", "user", "assistant", "system", "tool", "x"],
        "type": [
            "text",
            "image_url",
            "image",
            "input_text",
            "input_image",
            "function",
            "tool_use",
            "base64",
            "message",
        ],
        "grammar": GRAMMARS,
        "guided_grammar": GRAMMARS,
        "regex": PATTERNS,
        "guided_regex": PATTERNS,
        "arguments": ["{}", "{", "[" * 900, '{"a": 1}'],
    }
    if name == "url" or name.endswith("_url"):
        return _image(rng) if rng.random() < 0.7 else rng.choice(URLS)
    return rng.choice(known[name]) if name in known else _text(rng)


def object_of(rng: random.Random, *kinds: type[Fields]) -> dict[str, Any]:
    """Return an object with the required fields and some of the others."""
    fields = [field for kind in kinds for field in msgspec.structs.fields(kind)]
    share = rng.choice([0.02, 0.1, 0.3])
    made = {it.name: value_of(rng, it.type, it.name) for it in fields if it.required or rng.random() < share}
    if rng.random() < 0.1:
        made[rng.choice(NAMES)] = rng.choice([_schema(rng), _text(rng), rng.choice(NUMBERS)])
    return made


def broken(rng: random.Random, content: bytes) -> bytes:
    """Return the bytes with a change that a careless or hostile program could make."""
    at = rng.randrange(len(content))
    match rng.randrange(8):
        case 0:
            return content[:at] + rng.randbytes(1) + content[at + 1 :]
        case 1:
            return content[:at]
        case 2:
            return content[:at] + content[rng.randrange(len(content)) :]
        case 3:
            return content.replace(b'"', b'"\\u0000', 1)
        case 4:
            return b"{" + content[1:-1] + b"," + content[1:]  # each name twice
        case 5:
            return content.replace(b"u", b"\\u0075")
        case 6:
            return content[:-1] + b',"x":' + b"[" * rng.choice([10, 2000, 100_000]) + b"]}"
        case _:
            return content[:-1] + b',"x":[' + b"[]," * rng.choice([10, 50_000]) + b"[]]}"


def request(rng: random.Random) -> tuple[str, bytes]:
    """Return a route and a body for it."""
    path = rng.choices([*ROUTES], weights=[5, 3, 1, 2, 2])[0]
    made = object_of(rng, *ROUTES[path])
    made["model"] = "selftest" if rng.random() < 0.98 else _text(rng)
    if path == "/v1/chat/completions" and rng.random() < 0.7:
        made["messages"] = [{"role": "user", "content": _text(rng)}]
    if rng.random() < 0.97:
        made["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = rng.randrange(1, 4)
        made.pop("n_predict", None)
        made.pop("max_completion_tokens", None)
    content = json.dumps(made, ensure_ascii=rng.random() < 0.5).encode(errors="replace")
    return path, broken(rng, content) if rng.random() < 0.2 else content
