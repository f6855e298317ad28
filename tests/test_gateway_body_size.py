"""Large bodies whose parsing would stop all other requests are refused while they come."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from llmdeploy.gateway import body_size
from llmdeploy.gateway.body_size import STEP, BodySize
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.limits import Limits
from tests.gateway_world import CHAT, LOOPS, echo, post, run, world

MIB = 2**20


def looked_at(content: bytes) -> Refused | None:
    """Look at a body in pieces, and return its refusal. Assert that no piece takes long."""
    body, size = bytearray(content), BodySize()
    for end in [*range(STEP, len(body), STEP), len(body)]:
        started = time.thread_time()
        refused = size.look(body, end, is_last=end == len(body))
        assert time.thread_time() - started < 0.1
        if refused is not None:
            return refused
    return None


@pytest.mark.parametrize(
    "content",
    [
        b'{"url":"' + b"QUJD" * (4 * MIB) + b'"}',
        b'{"text":"' + b"Hello, [world]. {x}\\n" * 400_000 + b'"}',
        b'{"input":[' + b"12345," * 290_000 + b"1]}",
        json.dumps({"messages": [{"role": "user", "content": 'a "word", [b]'}] * 10_000}, indent=1).encode(),
    ],
)
def test_large_ordinary_bodies_pass(content: bytes) -> None:
    assert looked_at(content) is None


@pytest.mark.parametrize(
    "content",
    [
        b'{"x":[' + b"[]," * (2 * MIB) + b"[]]}",
        b'{"x":' + b"[" * (2 * MIB),
        b'{"x":' + b'{"":' * MIB,
        b'{"messages":[' + b'"",' * (2 * MIB) + b"1]}",
        b'"' * (17 * MIB),
        b'{"x":"' + b"\\\\" * (9 * MIB),
        b'{"x":"' + b'\\"' * (9 * MIB),
        b'{"x":"' + "\u4f60".encode() * (6 * MIB),
        b" " * (17 * MIB),
    ],
    ids=["arrays", "nested", "objects", "texts", "quotes", "backslashes", "escapes", "unicode", "spaces"],
)
def test_bodies_of_many_values_or_much_text_are_refused(content: bytes) -> None:
    refused = looked_at(content)
    assert refused is not None
    assert (refused.status, refused.code) == (413, "too_large")


def test_values_are_counted_outside_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)

    def text() -> str:
        return "".join(rng.choice('a"\\,[{:\n\u4f60') for _ in range(rng.randrange(9)))

    for _ in range(100):
        document: Any = {text(): [text() for _ in range(rng.randrange(1, 60))], text() + "x": [{}, [1, text()]]}
        content = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()
        monkeypatch.setattr(body_size, "STEP", rng.randrange(1, 30))
        size = BodySize()
        for end in range(1, len(content) + 1):
            size.look(bytearray(content), end, is_last=end == len(content))
        values = [*document.values()]
        assert size._values == 2 + len(document) - 1 + sum(len(it) for it in values) + 1 + 1 + 1


@pytest.mark.parametrize("chunks", [False, True])
def test_other_requests_are_answered_while_a_large_body_is_refused(chunks: bool) -> None:
    async def test() -> None:
        async with world(echo, Limits(body=64 * MIB)) as it:
            app, other = await it.app(), await it.app()
            framing = "Transfer-Encoding: chunked" if chunks else f"Content-Length: {32 * MIB}"
            await app.send(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode())
            piece = b"[]," * (MIB // 3)
            await app.send(b'{"model":"m","x":[' if not chunks else b'12\r\n{"model":"m","x":[\r\n')
            for _ in range(3):
                await app.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunks else piece)
            answer = await app.answer()
            assert (answer.status, answer.error["code"]) == (413, "too_large")
            assert (await other.ask(post("x"))).status == 200
            assert it.gateway.buffered == 0

    run(LOOPS[0], test, seconds=30)
