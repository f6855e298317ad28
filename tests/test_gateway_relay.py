"""The relay: requests to the engine, and its answers back to the client."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.gateway_world import (
    CHAT,
    EngineRequest,
    Peer,
    assert_refused,
    chunked,
    echo,
    on_loops,
    post,
    until,
    world,
)


@on_loops
async def test_a_request_and_its_answer_are_relayed() -> None:
    async with world() as it:
        answer = await it.ask(post("a", headers="X-Request-Id: 7\r\nContent-Type: text/plain\r\nCookie: a=b\r\n"))
        assert (answer.status, answer.document) == (200, {"tag": "a"})
        assert answer.headers["x-llmdeploy-engine"] == "llamacpp"
        (asked,) = it.engine.asked
        assert asked.line == f"POST {CHAT} HTTP/1.1"
        assert asked.headers["host"] == f"127.0.0.1:{it.target.port}"
        assert asked.headers["x-request-id"] == "7"
        assert asked.headers["content-type"] == "application/json", "whatever the client calls it"
        assert "cookie" not in asked.headers, "a browser sends those of all services of this machine"


@on_loops
async def test_the_bytes_of_a_body_are_not_changed() -> None:
    odd = b'{"a":1 , "b":"\xc3\xa9"}\n'

    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.answer(odd)

    async with world(handler) as it:
        body = b'{ "model":"m",\n"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]  }'
        assert (await it.ask(post(body=body))).body == odd
        assert it.engine.asked[0].body == body


@on_loops
async def test_a_stream_is_relayed_piece_by_piece() -> None:
    go_on = asyncio.Event()

    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await peer.event(1)
        await go_on.wait()
        await peer.event(2)
        await peer.end_stream()

    async with world(handler) as it:
        app = await it.app()
        await app.send(post(stream=True))
        status, headers = await app.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await app.chunk() == b"data: 1\n\n"
        assert it.gateway.traffic.in_flight() == {("llamacpp", "m"): 1}
        go_on.set()
        assert [await app.chunk(), await app.chunk(), await app.chunk()] == [
            b"data: 2\n\n",
            b"data: [DONE]\n\n",
            b"",
        ]
        await until(lambda: it.gateway.traffic.in_flight().total() == 0)


@on_loops
async def test_connection_that_a_server_closes_after_a_stream_is_not_used_again() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.begin_stream()
        await peer.write(chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with world(handler) as it:
        closing = replace(it.target, closes_streams=True)
        it.gateway.route.point(closing)
        app = await it.app()
        for count in (1, 2, 3):
            assert (await app.ask(post(1))).whole
            assert len(it.engine.peers) == count


@on_loops
async def test_a_chunked_answer_split_at_every_byte_is_relayed_whole() -> None:
    pieces = [b"data: {\r\n\r\n0\r\n\r\n}\n\n", b"x" * 300, b"data: [DONE]\n\n"]
    body = b"".join(map(chunked, pieces)) + b"0\r\n\r\n"

    async def handler(peer: Peer, asked: EngineRequest) -> None:
        at = asked.document["user"]
        await peer.begin_stream()
        await peer.write(body[:at])
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        await peer.write(body[at:])

    async with world(handler) as it:
        app = await it.app()
        for at in range(0, len(body), 7):
            answer = await app.ask(post(at))
            assert answer.whole
            assert answer.body == b"".join(pieces)
        assert len(it.engine.peers) == 1, "one connection served them all"


@on_loops
async def test_an_answer_without_a_length_is_sent_in_chunks() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await peer.write(b"data: 2\n\n")
        peer.transport.close()

    async with world(handler) as it:
        app = await it.app()
        for _ in range(2):
            answer = await app.ask(post())
            assert answer.whole
            assert answer.headers["transfer-encoding"] == "chunked"
            assert answer.events == ["1", "2"]


@on_loops
async def test_http_1_0_gets_no_chunks_and_a_closed_connection() -> None:
    async with world() as it:
        app = await it.app()
        await app.send(post("a", stream=True, version="1.0", headers="Connection: keep-alive\r\n"))
        status, headers = await app.head()
        assert status == 200
        assert headers["connection"] == "close"
        assert "transfer-encoding" not in headers
        body = await app.reader.read()
        assert body.startswith(b'data: {"tag": "a", "number": 0}\n\n')
        assert body.endswith(b"data: [DONE]\n\n")


@on_loops
async def test_interim_answers_are_not_passed_on() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3)
        await echo(peer, asked)

    async with world(handler) as it:
        assert (await it.ask(post("a"))).document == {"tag": "a"}


@on_loops
async def test_hop_by_hop_headers_are_not_passed_on() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        more = b"connection: keep-alive, x-mine\r\nkeep-alive: timeout=5\r\nx-mine: 1\r\nx-yours: 2\r\n"
        more += b"access-control-allow-origin: *\r\nproxy-authenticate: Basic\r\nx-llmdeploy-engine2: 3\r\n"
        await peer.answer(b"{}", more=more)

    async with world(handler, api_key="secret") as it:
        headers = "Connection: x-secret\r\nX-Secret: 1\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\nX-Ok: 2\r\n"
        headers += "Upgrade: h2c\r\nAuthorization: Bearer secret\r\nX-Api-Key: secret\r\nOrigin: https://a.example\r\n"
        answer = await it.ask(post(headers=headers))
        assert set(it.engine.asked[0].headers) == {"host", "x-ok", "content-type", "content-length"}
        assert set(answer.headers) == {
            "content-type",
            "x-yours",
            "x-llmdeploy-engine",
            "x-llmdeploy-engine2",
            "vary",
            "content-length",
        }


@on_loops
async def test_errors_of_the_engine_are_explained() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.answer(b"no more memory", "500 Oops", b"retry-after: 9\r\n")

    async with world(handler) as it:
        app = await it.app()
        for _ in range(2):
            answer = await app.ask(post())
            assert answer.status >= 400
            assert "no more memory" in answer.error["message"]
            assert answer.error["llmdeploy"]["source"] == "engine"
            assert answer.headers["retry-after"] == "9"
        assert len(it.engine.peers) == 1


@on_loops
async def test_an_endless_error_is_cut_short() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        await peer.write(b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n")
        while not peer.gone.is_set():
            await peer.write(chunked(b"x" * 100_000))

    async with world(handler) as it:
        answer = await it.ask(post())
        assert answer.status >= 400
        assert answer.whole
        await it.engine.peers[0].gone.wait()


@on_loops
async def test_a_route_that_the_engine_lacks_is_a_clear_error() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        if "messages" in asked.line:
            await peer.answer(b"404 page not found", "404 Not Found")
        else:
            await echo(peer, asked)

    async with world(handler) as it:
        answer = await it.ask(post(path="/v1/messages?beta=true"))
        assert_refused(answer, 404, "`llamacpp` has no route `/v1/messages`")
        assert it.engine.asked[0].line == "POST /v1/messages?beta=true HTTP/1.1"
        assert (await it.ask(post("a", path="/v1/responses"))).document == {"tag": "a"}
