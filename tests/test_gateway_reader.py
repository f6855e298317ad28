"""Requests as bytes: bodies of all sizes, limits, and framing that is refused."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from unittest.mock import patch

import pytest

from llmdeploy.gateway import downstream, half_close
from llmdeploy.gateway.client_state import State
from llmdeploy.gateway.gateway import ControlRequest, Limits
from tests.gateway_world import (
    CHAT,
    EngineRequest,
    Peer,
    World,
    assert_refused,
    chunked,
    echo,
    get,
    on_loops,
    post,
    silent,
    until,
    world,
)

# Bodies


def chunks(*pieces: bytes, headers: str = "") -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(map(chunked, pieces)) + b"0\r\n\r\n"


@on_loops
async def test_a_chunked_body_is_sent_with_its_length() -> None:
    body = post("a").partition(b"\r\n\r\n")[2]
    async with world() as it:
        app = await it.app()
        request = chunks(body[:5], body[5:]) + post("b")
        for at in range(0, len(request), 3):
            await app.send(request[:at])
            await asyncio.sleep(0)
            await app.send(request[at:])
            assert (await app.answer()).document == {"tag": "a"}
            assert (await app.answer()).document == {"tag": "b"}
        assert it.engine.asked[0].headers["content-length"] == str(len(body))
        assert it.engine.asked[0].body == body


@on_loops
async def test_large_bodies_go_through() -> None:
    async with world() as it:
        app = await it.app()
        for size in (60_000, 66_000, 300_000, 5_000_000):
            filler = b"a" * size
            body = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"user":%d}' % (filler, size)
            await app.send(post(body=body) + get("/health"))
            assert (await app.answer()).document == {"tag": size}
            assert (await app.answer()).status == 200
            assert it.engine.asked[-1].body == body
            assert it.gateway.buffered == 0


@on_loops
async def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    async with world(limits=Limits(body=100_000)) as it:
        app = await it.app()
        await app.send(post(body=b"a" * 100_001)[:500])
        answer = await app.answer()
        assert_refused(answer, 413, "larger than")
        assert answer.headers["connection"] == "close"
        assert await app.is_closed()
        answer = await it.ask(chunks(*[b"a" * 30_000] * 4))
        assert_refused(answer, 413)
        assert it.engine.asked == []


@on_loops
async def test_the_answer_to_a_body_that_is_too_large_is_not_lost() -> None:
    async with world() as it:
        app = await it.app()
        reading = app.reader._transport  # type: ignore[attr-defined]
        reading.pause_reading()
        app.writer.write(post(body=b"a" * (65 * 2**20)))
        (client,) = it.gateway.clients
        await until(lambda: client._state is State.LINGERING)
        await asyncio.sleep(0.2)  # time in which the connection could fail
        reading.resume_reading()
        assert_refused(await app.answer(), 413, "64 MiB")


@on_loops
async def test_bodies_in_memory_stay_within_the_limit() -> None:
    async with world(limits=Limits(buffered=150_000), pointed=False) as it:
        first = await it.app()
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a" * 100_000}], "user": 1}).encode()
        await first.send(post(body=body))
        await until(lambda: it.gateway.traffic.held == 1)
        answer = await it.ask(post(body=body))
        assert_refused(answer, 503, "memory")
        assert "retry-after" in answer.headers
        it.gateway.route.point(it.target)
        assert (await first.answer()).document == {"tag": 1}
        assert (await it.ask(post(body=body))).status == 200


@on_loops
async def test_bodies_count_as_far_as_they_have_come() -> None:
    async with world(limits=Limits(buffered=150_000)) as it:
        for _ in range(20):
            await (await it.app()).send(post(body=b"a" * 100_000)[:5000])
        await until(lambda: it.gateway.buffered > 90_000)
        assert it.gateway.buffered < 100_000
        for _ in range(2):
            assert (await it.ask(post("a"))).status == 200
        app = await it.app()
        await app.send(post(body=b"a" * 100_000)[:-1])
        assert_refused(await app.answer(), 503, "memory")
        for chunk in (b"a" * 40_000, b"a" * 40_000):
            await app.send(chunks(chunk)[:-5])
        assert it.gateway.buffered < 150_000


@on_loops
async def test_small_requests_have_room_when_large_ones_have_none() -> None:
    lines = f"A: {'b' * 7_500}\r\n" * 8
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a" * 100_000}]}).encode()
    async with world(limits=Limits(buffered=150_000)) as it:
        large, small, head = await it.app(), await it.app(), await it.app()
        await large.send(post(body=body)[:-1])
        await head.send(f"{OK}{lines}".encode())
        await until(lambda: it.gateway.buffered > 160_000)
        assert_refused(await it.ask(post(body=body)), 503, "memory")
        await small.send(post("a")[:-1])
        await until(lambda: it.gateway.buffered > 160_050)
        await small.send(post("a")[-1:])
        assert (await small.answer()).document == {"tag": "a"}
        await head.send(b"\r\n")
        assert (await head.answer()).status == 200
        await large.send(body[-1:])
        assert (await large.answer()).status == 200
        assert it.gateway.buffered == 0


@on_loops
async def test_only_requests_to_engines_may_be_large() -> None:
    async def control(request: ControlRequest) -> None:
        await request.answer(200, len(request.body))

    async with world(control=control, api_key="secret") as it:
        asked = "Host: x\r\nOrigin: http://localhost\r\nAccess-Control-Request-Method: POST\r\n"
        for method, path, status in (("POST", "/llmdeploy/x", 200), ("GET", "/health", 200), ("OPTIONS", CHAT, 204)):
            app = await it.app()
            head = f"{method} {path} HTTP/1.1\r\n{asked}"
            await app.send(f"{head}Content-Length: {64 * 1024 + 1}\r\n\r\n".encode())
            assert_refused(await app.answer(), 413, "64 KiB")
            assert await app.is_closed()
            app = await it.app()
            await app.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked(b"a" * 40_000) * 2)
            assert_refused(await app.answer(), 413, "64 KiB")
            app = await it.app()
            await app.send(f"{head}Content-Length: {64 * 1024}\r\n\r\n".encode() + b"a" * 64 * 1024)
            assert (await app.head())[0] == status
        assert it.gateway.buffered == 0


@on_loops
async def test_the_key_is_wanted_before_the_body() -> None:
    async with world(api_key="secret") as it:
        app = await it.app()
        await app.send(post(body=b"a" * 100_000)[:300])
        assert_refused(await app.answer(), 401)
        assert await app.is_closed()
        assert it.gateway.buffered == 0


@on_loops
async def test_a_compressed_body_is_refused() -> None:
    async with world() as it:
        for encoding in ("gzip", "BR", "zstd, gzip"):
            answer = await it.ask(post(headers=f"Content-Encoding: {encoding}\r\n"))
            assert_refused(answer, 415, f"`{encoding.lower()}`")
            assert answer.error["code"] == "unsupported_encoding"
        assert (await it.ask(post("a", headers="Content-Encoding: identity\r\n"))).document == {"tag": "a"}
        assert len(it.engine.asked) == 1


@on_loops
async def test_a_body_of_tiny_chunks_is_refused_and_one_of_small_ones_is_not() -> None:
    text = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"user":"a"}' % (b"a" * 100_000)
    async with world() as it:
        for size, status in ((1, 400), (4, 400), (32, 200), (1000, 200)):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            assert (await it.ask(chunks(*pieces))).status == status, size
        assert [asked.body for asked in it.engine.asked] == [text, text]
        assert it.gateway.buffered == 0


@on_loops
async def test_expect_continue() -> None:
    async with world(limits=Limits(body=1000)) as it:
        app = await it.app()
        request = post("a", headers="Expect: 100-continue\r\n")
        head, _, body = request.partition(b"\r\n\r\n")
        await app.send(head + b"\r\n\r\n")
        assert (await app.head())[0] == 100
        assert (await app.ask(body)).document == {"tag": "a"}
        assert (await app.ask(request)).document == {"tag": "a"}, "who does not wait is not told to go on"
        head, _, _ = post(body=b"a" * 1001, headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        answer = await app.ask(head + b"\r\n\r\n")
        assert_refused(answer, 413)
        assert await app.is_closed()
        assert_refused(await it.ask(post(headers="Expect: tea\r\n")), 417)


@on_loops
async def test_slow_requests_are_refused() -> None:
    async with world(limits=Limits(head_seconds=0.2)) as it:
        for data in (b"GET /health HT", post()[:-1], post(body=b"a" * 100_000)[:-1], chunks(b"a" * 10)[:-3]):
            app = await it.app()
            await app.send(data)
            assert_refused(await app.answer(), 408)
            assert await app.is_closed()
        app = await it.app()
        request = post("a")
        for at in range(0, len(request), 20):
            await asyncio.sleep(0.03 if at > 100 else 0)  # slow, but it makes progress
            await app.send(request[at : at + 20])
        assert (await app.answer()).document == {"tag": "a"}


DRIPS = {
    "small": post(body=b"a" * 60_000),
    "large": post(body=b"a" * 100_000),
    "chunked": chunks(*[b"a"] * 10_000),
    "refused": post(body=b"a" * 60_000, path="/nothing"),
}


async def drip(it: World, request: bytes) -> None:
    """Send the bytes one by one until the gateway has had enough of it."""
    app = await it.app()
    await app.send(request[:200])
    began, at = time.monotonic(), 200
    while not app.reader._buffer and at < len(request):  # type: ignore[attr-defined]
        await app.send(request[at : at + 1])
        at += 1
        await asyncio.sleep(0.01)
    assert_refused(await app.answer(), 408, "too slowly")
    assert time.monotonic() - began > 0.2
    assert await app.is_closed()


@on_loops
async def test_bodies_that_drip_are_refused() -> None:
    for limits in (Limits(head_seconds=0.2), Limits(body_seconds=0.2)):
        async with world(limits=limits) as it:
            await asyncio.gather(*(drip(it, request) for request in DRIPS.values()))
            assert it.gateway.buffered == 0


# Framing

OK = "GET /health HTTP/1.1\r\nHost: localhost\r\n"
HOSTILE = {
    "two lengths": post().replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
    "two equal lengths": post(body=b"abc").replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
    "a list of lengths": post(body=b"abc").replace(b"Length: 3", b"Length: 3, 3"),
    "a signed length": post(body=b"abc").replace(b"Length: 3", b"Length: +3"),
    "a negative length": post(body=b"abc").replace(b"Length: 3", b"Length: -3"),
    "a length in hex": post(body=b"abc").replace(b"Length: 3", b"Length: 0x3"),
    "a length with a space": post(body=b"abc").replace(b"Length: 3", b"Length: 3 3"),
    "a huge length": post(body=b"abc").replace(b"Length: 3", b"Length: 99999999999999999999"),
    "an empty length": post(body=b"abc").replace(b"Length: 3", b"Length: "),
    "length and encoding": chunks(b"a", headers="Content-Length: 3\r\n"),
    "encoding and length": chunks(b"a").replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1),
    "another encoding": chunks(b"a").replace(b": chunked", b": gzip, chunked"),
    "chunked twice": chunks(b"a", headers="Transfer-Encoding: chunked\r\n"),
    "chunked and identity": chunks(b"a").replace(b": chunked", b": chunked, identity"),
    "almost chunked": chunks(b"a").replace(b": chunked", b": xchunked"),
    "chunked in 1.0": chunks(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a space before the colon": chunks(b"a").replace(b"Encoding:", b"Encoding :"),
    "a folded line": f"{OK}A: b\r\n c\r\n\r\n".encode(),
    "a folded encoding": chunks(b"a").replace(b": chunked", b":\r\n chunked"),
    "bare LF": f"{OK}A: b\nC: d\r\n\r\n".encode(),
    "only LF": f"{OK}\r\n".replace("\r", "").encode(),
    "bare CR": f"{OK}A: b\rC: d\r\n\r\n".encode(),
    "NUL in a value": f"{OK}A: b\0c\r\n\r\n".encode(),
    "NUL in a name": f"{OK}A\0: b\r\n\r\n".encode(),
    "NUL in the target": b"GET /hea\0lth HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an empty name": f"{OK}: b\r\n\r\n".encode(),
    "no colon": f"{OK}A\r\n\r\n".encode(),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": f"{OK}Host: localhost\r\n\r\n".encode(),
    "a host that is not valid": b"GET /health HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "two origins": f"{OK}Origin: http://localhost\r\nOrigin: https://evil.example\r\n\r\n".encode(),
    "two keys": f"{OK}Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n".encode(),
    "two encodings of the body": f"{OK}Content-Encoding: identity\r\nContent-Encoding: gzip\r\n\r\n".encode(),
    "two spaces": b"GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tab": b"GET\t/health\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an empty line": b"\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an unknown method": b"FETCH /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an authority": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another scheme": b"GET https://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target without a slash": b"GET health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target of high bytes": b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk size that is not a number": chunks(b"a").replace(b"1\r\na", b"g\r\na"),
    "a chunk size with a sign": chunks(b"a").replace(b"1\r\na", b"+1\r\na"),
    "a chunk size with 0x": chunks(b"a").replace(b"1\r\na", b"0x1\r\na"),
    "a chunk size with an underscore": chunks(b"a" * 17).replace(b"11\r\n", b"1_1\r\n"),
    "a huge chunk size": chunks(b"a").replace(b"1\r\na", b"fffffffff\r\na"),
    "a negative chunk size": chunks(b"a").replace(b"1\r\na", b"-1\r\na"),
    "a long chunk extension": chunks(b"a").replace(b"1\r\na", b"1;" + b"x" * 1000 + b"\r\na"),
    "a chunk extension with a bare LF": chunks(b"a").replace(b"1\r\na", b"1;\n\r\na"),
    "a chunk that is longer": chunks(b"a").replace(b"1\r\na\r\n", b"1\r\naa\r\n"),
    "a chunk line with LF only": chunks(b"a").replace(b"1\r\na", b"1\na"),
    "a chunk that ends in LF": chunks(b"a").replace(b"a\r\n0", b"a\n0"),
    "a trailer": chunks(b"a")[:-2] + b"X: y\r\n\r\n",
}


@on_loops
async def test_ambiguous_framing_is_refused_and_the_connection_closed() -> None:
    async with world() as it:
        for name, request in HOSTILE.items():
            app = await it.app()
            await app.send(request + post("smuggled"))
            answer = await app.answer()
            assert answer.status == 400, name
            assert_refused(answer, 400)
            assert answer.headers["connection"] == "close", name
            assert await app.is_closed(), name
        assert it.engine.asked == []


@on_loops
async def test_a_head_that_is_too_long_is_refused() -> None:
    long = f"{OK}A: {'b' * 66_000}\r\n\r\n".encode()
    async with world() as it:
        for request in (long, long[:-4], b"GET /" + b"a" * 66_000, f"{OK}{'A: b' * 1}\r\n".encode() * 3000):
            app = await it.app()
            await app.send(request)
            assert (await app.answer()).status in (400, 431)
            assert await app.is_closed()
        line = f"A: {'b' * 7_900}\r\n"
        assert (await it.ask(f"{OK}{line * 8}\r\n".encode())).status == 200


@on_loops
async def test_a_head_that_an_engine_does_not_take_is_refused() -> None:
    async with world() as it:
        for request in (
            post(headers=f"A: {'b' * 8_000}\r\n"),
            post(headers="A: b\r\n" * 91),
            post(path=f"{CHAT}?{'a' * 8_000}"),
        ):
            assert_refused(await it.ask(request), 431)
        assert (await it.ask(post("a", headers=f"A: {'b' * 7_900}\r\n" + "B: c\r\n" * 80))).status == 200
        assert len(it.engine.asked) == 1


@on_loops
async def test_a_hostile_request_does_not_touch_the_one_before_it() -> None:
    async with world() as it:
        app = await it.app()
        await app.send(post("a") + HOSTILE["two lengths"])
        assert (await app.answer()).document == {"tag": "a"}
        assert_refused(await app.answer(), 400)
        assert await app.is_closed()


@on_loops
async def test_a_half_close_loses_no_answer() -> None:
    async with world() as it:
        app = await it.app()
        await app.send(get("/health"))
        app.writer.write_eof()
        assert (await app.answer()).status == 200
        assert await app.is_closed()
        app = await it.app()
        await app.send(post()[:-1])
        app.writer.write_eof()
        assert await app.is_closed(), "the rest of the request never comes"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a client that waits from one that has left")
@on_loops
async def test_requests_before_a_half_close_are_answered() -> None:
    async def slow(peer: Peer, asked: EngineRequest) -> None:
        await asyncio.sleep(2 * downstream.LOOK_SECONDS)
        await echo(peer, asked)

    async with world(slow) as it:
        app = await it.app()
        app.writer.write(post("a") + get("/health") + post("b", stream=True))
        app.writer.write_eof()
        assert (await app.answer()).document == {"tag": "a"}
        assert (await app.answer()).document["status"] == "ok"
        assert len((await app.answer()).events) == 4
        assert await app.is_closed()


@on_loops
async def test_the_request_of_a_half_closed_connection_ends_when_its_client_leaves() -> None:
    for reads in ([False], [True, False], [True, True, False]):
        with patch.object(half_close, "still_reads", lambda _: reads.pop(0)):  # noqa: B023
            async with world(silent) as it:
                app = await it.app()
                await app.send(post())
                await until(lambda: it.engine.asked)
                app.writer.write_eof()
                await it.engine.peers[0].gone.wait()
                assert await app.is_closed()
                assert reads == []
