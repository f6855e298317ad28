"""Hostile JSON and TOML, made by a random generator from real documents."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

NUMBERS = (0, 1, -1, 2, 1.5, -0.5, 1e308, 10**9, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63), 10**400)
LIMITS = (0, 1, 7, 255, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    False,
    "",
    "x",
    "\x1b[2J",
    "../" * 5,
    [],
    {},
    [[]],
    [None] * 9,
    {"a": 1},
)
NAMES = (
    "text_config",
    "vision_config",
    "auto_map",
    "architectures",
    "layer_types",
    "num_hidden_layers",
    "kv_lora_rank",
)
NAMES += ("head_dim", "num_key_value_heads", "hidden_size", "quantization", "weight_map", "digest", "layers", "config")


def numbers(choice: random.Random) -> int:
    """Return a number at a limit, or near one."""
    return (choice.choice(LIMITS) + choice.choice([0, 0, 0, 1, -1])) % 2**64


def mutated_bytes(choice: random.Random, content: bytes) -> bytes:
    """Change some bytes: single ones, numbers of 4 and 8 bytes, cuts and repetitions."""
    found = bytearray(content)
    for _ in range(choice.choice([1, 1, 2, 5, 20])):
        at = choice.randrange(max(1, len(found)))
        match choice.randrange(6):
            case 0 | 1:
                found[at : at + 1] = bytes([choice.randrange(256)])
            case 2:
                found[at : at + 8] = struct.pack("<Q", numbers(choice))
            case 3:
                found[at : at + 4] = struct.pack("<I", numbers(choice) % 2**32)
            case 4:
                del found[at : at + choice.randrange(50)]
            case 5:
                found[at:at] = found[at : at + 100] * choice.choice([1, 10, 1000])
    return bytes(found[: choice.randrange(len(found) + 1)] if choice.random() < 0.1 else found)


def document(choice: random.Random, real: Any) -> bytes:
    """Return a JSON text: a real one with changes, or one that takes time or memory."""
    shape = choice.random()
    if shape < 0.06:
        return _heavy(choice)
    if shape < 0.3:
        return mutated_bytes(choice, json.dumps(real).encode())
    found = json.loads(json.dumps(real))
    for _ in range(choice.choice([1, 1, 2, 4, 10])):
        found = mutated_value(choice, found)
    return json.dumps(found).encode(errors="surrogatepass")


def mutated_value(choice: random.Random, value: Any) -> Any:
    """Change one value at some depth."""
    if isinstance(value, dict) and choice.random() < 0.9:
        key = choice.choice([*value, *NAMES])
        value[key] = mutated_value(choice, value.get(key))
        return value
    if isinstance(value, list) and value and choice.random() < 0.7:
        at = choice.randrange(len(value))
        value[at] = mutated_value(choice, value[at])
        return value
    return copy.deepcopy(choice.choice(VALUES)) if choice.random() < 0.95 else ["x"] * choice.choice([100, 20_000])


def _heavy(choice: random.Random) -> bytes:
    count = choice.choice([1000, 100_000, 499_990, 1_300_000])
    match choice.randrange(8):
        case 0:
            return b"[" * count
        case 1:
            return b'{"a":' * count
        case 2:
            return b"[" + b"[]," * count + b"[]]"
        case 3:
            return b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(count)) + b"}"
        case 4:
            return b'{"a":"' + b"\\u6f22" * count + b'"}'
        case 5:
            return b'{"a":' + b"9" * count + b"}"
        case 6:
            return b'{"quantization":"' + "\U0001f600".encode() * (count // 4) + b'"}'
        case _:
            return b"[" + b'{"a":{}},' * count + b"0]"


def toml(choice: random.Random, real: str) -> bytes:
    """Return a TOML text: a real one with changes, or one that takes time or memory."""
    if choice.random() < 0.75:
        return mutated_bytes(choice, real.encode())
    count = choice.choice([10, 1000, 30_000, 250_000])
    match choice.randrange(9):
        case 0:
            text = "a." * count + "a = 1"
        case 1:
            text = "[" + "a." * count + "a]"
        case 2:
            text = "a = " + "[" * count
        case 3:
            text = "a = " + "{a=" * count
        case 4:
            text = "\n".join(f"a{number} = 1" for number in range(min(count, 90_000)))
        case 5:
            text = "a = [" + "1," * count + "]"
        case 6:
            text = "[[model]]\n" * min(count, 100_000)
        case 7:
            text = 'a = "' + "\\u6f22" * min(count, 170_000) + '"'
        case _:
            text = "\n".join(f"[a.b{number}.c.d.e.f.g.h]" for number in range(min(count, 40_000)))
    return (choice.choice(["", real]) + text).encode()
