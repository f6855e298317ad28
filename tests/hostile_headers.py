"""Hostile headers of weights: GGUF and safetensors, made by a random generator from real ones and from nothing."""

from __future__ import annotations

import json
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

from tests.hostile_documents import NUMBERS, document, mutated_bytes, numbers

SELFTEST = Path(__file__).parents[1] / "llmdeploy" / "selftest"
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Types of numbers in GGUF, and their bytes."""
KEYS = ("general.architecture", "general.type", "general.alignment", "split.count", "split.no")
KEYS += tuple(
    f"x.{key}"
    for key in ("block_count", "context_length", "embedding_length", "attention.head_count", "attention.head_count_kv")
)
KEYS += ("x.vocab_size", "tokenizer.chat_template", "tokenizer.ggml.tokens", "tokenizer.ggml.precompiled_charsmap")


def q(number: int) -> bytes:
    return struct.pack("<Q", number % 2**64)


def i(number: int) -> bytes:
    return struct.pack("<I", number % 2**32)


def gguf(choice: random.Random) -> bytes:
    """Return the beginning of a GGUF file."""
    if choice.random() < 0.4:
        return mutated_bytes(choice, real_gguf())
    if choice.random() < 0.03:
        return heavy_gguf(choice)
    fields = [_field(choice) for _ in range(choice.choice([0, 1, 5, 20, 100]))]
    if choice.random() < 0.8:
        fields += _plain_fields(choice)
    tensors = [_tensor(choice) for _ in range(choice.choice([0, 1, 3, 50]))]
    stated = [len(tensors), len(fields)]
    if choice.random() < 0.3:
        stated[choice.randrange(2)] = numbers(choice)
    content = b"GGUF" + i(choice.choice([3, 3, 3, 2, 1, 9])) + q(stated[0]) + q(stated[1])
    return content + b"".join(fields) + b"".join(tensors)


def heavy_gguf(choice: random.Random) -> bytes:
    """Return a header that is as much work as one may be, or more."""
    kind = choice.randrange(5)
    start = b"GGUF" + i(3)
    if kind == 0:  # many texts
        count = choice.choice([2**20, 2**22, 2**22 + 1])
        return start + q(0) + q(1) + _text(b"a") + i(9) + i(8) + q(count) + q(choice.choice([0, 1])) * count
    if kind == 1:  # many tensors
        count = choice.choice([2**16, 2**16 + 1])
        return start + q(count) + q(0) + (q(3) + b"abc" + i(4) + q(2) * 4 + i(0) + q(0)) * count
    if kind == 2:  # many fields, each an array of numbers
        count = choice.choice([1000, 2**16])
        return start + q(0) + q(count) + (_text(b"ab") + i(9) + i(0) + q(200) + bytes(200)) * count
    if kind == 3:  # many long texts
        return start + q(0) + q(30) + (_text(b"ab") + i(8) + _text("\u6f22\U0001f600".encode() * 100_000)) * 30
    return start + q(1) + q(0) + _text(b"t") + i(2**18) + b"\xff" * 2**21 + i(0) + q(0)  # many dimensions


def _text(content: bytes) -> bytes:
    return q(len(content)) + content


def _random_text(choice: random.Random) -> bytes:
    if choice.random() < 0.1:
        return q(numbers(choice)) + b"x" * choice.randrange(50)
    return _text(choice.choice([b"x", b"llama", b"\xff\xfe", b"\x1b[2J", b"a" * choice.choice([1, 100, 70_000])]))


def _plain_fields(choice: random.Random) -> list[bytes]:
    found = [_text(b"general.architecture") + i(8) + _text(b"x")]
    for key in KEYS[5:11]:
        value = choice.randrange(1, 200) if choice.random() < 0.8 else numbers(choice)
        found.append(_text(key.encode()) + i(10) + q(value))
    return found


def _field(choice: random.Random) -> bytes:
    key = _text(choice.choice(KEYS).encode()) if choice.random() < 0.8 else _random_text(choice)
    kind = choice.choice([*range(13), 8, 9, 9, 9, 99])
    return key + i(kind) + _value(choice, kind)


def _value(choice: random.Random, kind: int) -> bytes:
    if kind in SCALARS:
        return q(numbers(choice))[: SCALARS[kind]]
    if kind == 8:
        return _random_text(choice)
    item, count = choice.choice([*SCALARS, 8, 8, 9]), choice.choice([0, 1, 3, 100, 5000])
    stated = numbers(choice) if choice.random() < 0.3 else count
    values = [
        q(numbers(choice))[: SCALARS[item]] if item in SCALARS else _random_text(choice) for _ in range(min(count, 300))
    ]
    return i(item) + q(stated) + b"".join(values) + bytes(max(0, count - 300) * SCALARS.get(item, 8))


def _tensor(choice: random.Random) -> bytes:
    count = choice.choice([0, 1, 2, 3, 4, 5, 100])
    stated = numbers(choice) if choice.random() < 0.1 else count
    shape = [numbers(choice) if choice.random() < 0.3 else choice.randrange(1, 64) for _ in range(count)]
    end = i(choice.choice([0, 1, 2, 8, 12, 4, 99])) + q(choice.choice([0, 32, numbers(choice)]))
    return _random_text(choice) + i(stated) + b"".join(map(q, shape)) + end


@cache
def real_gguf() -> bytes:
    """Return the header of the self-test model."""
    return (SELFTEST / "selftest-f16.gguf").read_bytes()[:16_000]


def safetensors(choice: random.Random) -> bytes:
    """Return the beginning of a safetensors file."""
    if choice.random() < 0.3:
        return mutated_bytes(choice, real_safetensors())
    header = document(choice, json.loads(real_safetensors()[8:])) if choice.random() < 0.7 else _tensors(choice)
    length = len(header) if choice.random() < 0.85 else numbers(choice)
    return q(length) + header


def _tensors(choice: random.Random) -> bytes:
    if choice.random() < 0.05:
        each = choice.choice(
            ['"%d":0', '"%d":{}', '"%d":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}', '"%d":[[],[]]']
        )
        return b"{" + ",".join(each % number for number in range(choice.choice([99_000, 500_000]))).encode() + b"}"
    found: dict[str, Any] = {}
    for number in range(choice.choice([1, 10, 300])):
        shape = [choice.choice(NUMBERS) for _ in range(choice.choice([0, 1, 2, 30, 3000]))]
        offsets = [choice.choice(NUMBERS) for _ in range(choice.choice([0, 1, 2, 2, 2, 3]))]
        found[f"t{number}"] = {"dtype": choice.choice(["F16", "", 5, "\x1b"]), "shape": shape, "data_offsets": offsets}
    return json.dumps(found).encode()


@cache
def real_safetensors() -> bytes:
    """Return the length and the header of the self-test model."""
    content = (SELFTEST / "hf" / "model.safetensors").read_bytes()
    return content[: 8 + struct.unpack("<Q", content[:8])[0]]
