"""Ten thousand requests at once, valid and broken, in pieces: each gets its own answer or is refused."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from dataclasses import dataclass, field

from llmdeploy.gateway.gateway import Limits
from tests.gateway_world import CHAT, LOOPS, App, World, chunked, echo, run, world

REQUESTS = 10_000
CONNECTIONS = 100
"""Connections at the same time."""
NASTY = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"\x80",
    b"0",
    b"1",
    b"f",
    b";",
    b"0\r\n\r\n",
]
NASTY += [
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"POST / HTTP/1.1\r\n",
    b"Host: evil\r\n",
    b"-",
    b"+",
]


@dataclass
class Script:
    """The bytes that one connection sends, their pieces, and the answers that are allowed."""

    data: bytes
    tags: list[str]
    broken: bool
    pieces: list[bytes] = field(default_factory=list)


def request(rng: random.Random, tag: str, *, last: bool) -> bytes:
    """Return a valid request, in one of the forms that clients send."""
    messages = [{"role": "user", "content": "x" * rng.choice([1, 9, 300])}]
    body = json.dumps({"model": "m", "user": tag, "stream": rng.random() < 0.3, "messages": messages})
    names = ["Host", "host", "HOST"]
    lines = [f"POST {CHAT} HTTP/1.1", f"{rng.choice(names)}: localhost", "Content-Type: application/json"]
    lines += ["Connection: close"] if last else []
    is_chunked = rng.random() < 0.4
    lines.append("Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    if not is_chunked:
        return head + body.encode()
    at = rng.randrange(1, len(body))
    return head + chunked(body[:at].encode()) + chunked(body[at:].encode()) + b"0\r\n\r\n"


def broken(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes with one to three changes: some replaced, inserted or removed, or the rest cut off."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data = data[:at] + rng.randbytes(1) + data[at + 1 :]
            case 1:
                data = data[:at] + rng.choice(NASTY) + data[at:]
            case 2:
                data = data[:at] + data[at + rng.randrange(1, 5) :]
            case 3:
                data = data[:at] + data[at:].replace(b"\r\n", rng.choice([b"\n", b"\r", b"\r\n ", b""]), 1)
            case _:
                end = rng.randrange(at, len(data))
                data = data[:end] + data[at:]
        if not data:
            return b"\0"
    return data


def split(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 1, 1, 2, 5])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def scripts(rng: random.Random) -> list[Script]:
    made: list[Script] = []

    def new_tag() -> str:
        return rng.randbytes(12).hex()

    tag = new_tag()
    whole = request(random.Random(3), tag, last=True)
    for at in range(len(whole) + 1):  # every byte boundary
        tag = new_tag()
        data = request(random.Random(3), tag, last=True)
        made.append(Script(data, [tag], False, [data[:at], data[at:]]))
    number = len(made)
    while number < REQUESTS:
        tags = [new_tag() for _ in range(rng.choice([1, 1, 2, 3]))]
        number += len(tags)
        data = b"".join(request(rng, it, last=it == tags[-1]) for it in tags)
        is_broken = rng.random() < 0.6
        data = broken(rng, data) if is_broken else data
        made.append(Script(data, tags, is_broken, split(rng, data)))
    rng.shuffle(made)
    return made


async def play(it: World, script: Script, rng: random.Random) -> None:
    app = await App.at(it.gateway)
    try:
        for piece in script.pieces:
            await app.send(piece)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        await check(app, script, it.everyones)  # type: ignore[attr-defined]
    except ConnectionError:
        assert script.broken
    finally:
        app.leave()


async def check(app: App, script: Script, everyones: set[str]) -> None:
    """Read answers until the connection ends."""
    got = []
    while True:
        try:
            answer = await app.answer()
        except asyncio.IncompleteReadError as error:
            rest = error.partial
            break
        assert answer.whole
        assert answer.status == 200 or 400 <= answer.status < 500, answer
        if answer.status != 200:
            assert answer.error["message"]
            assert script.broken
            continue
        events = [answer.body.decode()] if "content-length" in answer.headers else answer.events[:-1]
        for tag in {json.loads(event)["tag"] for event in events}:
            assert tag in script.tags or tag not in everyones, "an answer that is somebody else's"
            got.append(tag)
    assert not rest
    assert script.broken or got == script.tags


def test_ten_thousand_requests() -> None:
    seed = secrets.randbelow(2**32)
    rng = random.Random(seed)
    made = scripts(rng)

    async def test() -> None:
        async with world(echo, Limits(head_seconds=0.3, idle_seconds=0.3, hold_seconds=5)) as it:
            everyones = {tag for script in made for tag in script.tags}
            object.__setattr__(it, "everyones", everyones)
            left = iter(made)

            async def worker() -> None:
                for script in left:
                    try:
                        async with asyncio.timeout(20):
                            await play(it, script, rng)
                    except BaseException as error:
                        error.add_note(f"seed {seed}, sent {script.pieces}")
                        raise

            async with asyncio.TaskGroup() as group:
                for _ in range(CONNECTIONS):
                    group.create_task(worker())
            assert it.gateway.traffic.in_flight().total() == it.gateway.traffic.held == 0

    try:
        run(LOOPS[0], test, seconds=110)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
