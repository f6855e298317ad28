"""Browsers: preflights, the headers that let a page read answers, and the origins that may."""

from __future__ import annotations

import pytest

from llmdeploy.config_types import Origins
from llmdeploy.gateway.gateway import Limits
from llmdeploy.gateway.origins import may_use
from tests.gateway_world import (
    CHAT,
    ERROR,
    EngineRequest,
    Peer,
    assert_refused,
    chunked,
    echo,
    get,
    on_loops,
    post,
    world,
)

PAGE = "Origin: http://localhost:3000\r\n"
KEY = "Authorization: Bearer secret\r\n"
NAMED = (
    "https://app.example",
    "https://*.apps.example",
    "chrome-extension://abcdefghijklmnop",
    "app://",
    "tauri://localhost",
)


def preflight(path: str = CHAT, origin: str = "http://localhost:3000", more: str = "") -> bytes:
    headers = f"Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n{more}"
    return get(path, headers, method="OPTIONS")


def readable(headers: dict[str, str], origin: str = "http://localhost:3000") -> bool:
    exposed = headers.get("access-control-expose-headers", "").split(", ")
    allowed = headers.get("access-control-allow-origin")
    return allowed == origin and headers.get("vary") == "origin" and "x-llmdeploy-engine" in exposed


@on_loops
async def test_a_preflight_is_answered() -> None:
    async with world() as it:
        app = await it.app()
        for path in (CHAT, "/v1/messages", "/v1/models", "/metrics", "/health", "/v1/nothing"):
            asked = "Access-Control-Request-Headers: authorization,content-type,x-stainless-os\r\n"
            await app.send(preflight(path, more=asked))
            status, headers = await app.head()
            assert (status, readable(headers)) == (204, True), path
            assert headers["access-control-allow-methods"] == "GET, HEAD, POST"
            assert headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
            assert int(headers["access-control-max-age"]) > 0
            assert "access-control-allow-private-network" not in headers
            assert "content-length" not in headers
        await app.send(preflight(more="Access-Control-Request-Private-Network: true\r\n"))
        assert (await app.head())[1]["access-control-allow-private-network"] == "true"
        for odd in ("a, b c", "a\x80", "", "," * 10, "a" * 3000):
            await app.send(preflight(more=f"Access-Control-Request-Headers: {odd}\r\n"))
            assert "access-control-allow-headers" not in (await app.head())[1]
        assert (await app.ask(post("a", headers=PAGE))).document == {"tag": "a"}
        assert len(it.engine.asked) == 1
        assert_refused(await app.ask(preflight("/llmdeploy/switch")), 404)


@on_loops
async def test_a_page_can_read_every_answer() -> None:
    async def handler(peer: Peer, asked: EngineRequest) -> None:
        if asked.document["user"] == "fail":
            await peer.answer(b'{"error": {"message": "no"}}', "500 Oops", b"access-control-allow-origin: *\r\n")
        elif asked.document["user"] == "break":
            await peer.begin_stream()
            await peer.write(chunked(b'data: {"error": {"message": "no"}}\n\n'))
        else:
            await echo(peer, asked)

    async with world(handler, Limits(body=1000)) as it:
        requests = [
            post(headers=PAGE),
            post(headers=PAGE, stream=True),
            post("fail", headers=PAGE),
            post("break", headers=PAGE),
            post(headers=PAGE, body=b"{}"),
            post(headers=PAGE, body=b"a" * 100_000)[:300],
            post(headers=PAGE + "Content-Encoding: gzip\r\n"),
            get("/v1/models", PAGE),
            get("/metrics", PAGE),
            get("/v1/nothing", PAGE),
            get(CHAT, PAGE),
        ]
        for request in requests:
            assert readable((await it.ask(request)).headers), request
        assert not [name for name in (await it.ask(post())).headers if name.startswith(("access", "vary"))]
        it.gateway.route.refuse(ERROR)
        assert readable((await it.ask(post(headers=PAGE))).headers)


@on_loops
async def test_a_page_learns_that_its_body_came_too_slowly() -> None:
    async with world(limits=Limits(head_seconds=0.1)) as it:
        app = await it.app()
        await app.send(post(headers=PAGE)[:-1])
        answer = await app.answer()
        assert (answer.status, readable(answer.headers)) == (408, True)


@on_loops
async def test_with_a_key_the_named_origins_may_use_the_gateway() -> None:
    async with world(api_key="secret", origins=NAMED) as it:
        app = await it.app()
        for origin in ("https://app.example", "http://127.0.0.1:8080", "app://obsidian.md", "tauri://localhost"):
            await app.send(preflight(origin=origin))
            status, headers = await app.head()
            assert (status, readable(headers, origin)) == (204, True), origin
            answer = await app.ask(post("a", headers=f"{KEY}Origin: {origin}\r\n"))
            assert (answer.status, readable(answer.headers, origin)) == (200, True)
            answer = await app.ask(post("a", headers=f"Origin: {origin}\r\n"))
            assert (answer.status, readable(answer.headers, origin)) == (401, True)
        for origin in ("https://evil.example", "null", "http://app.example", "https://app.example:8443"):
            answer = await app.ask(preflight(origin=origin))
            assert_refused(answer, 403, origin)
            assert answer.headers["vary"] == "origin"
            answer = await app.ask(post("a", headers=f"{KEY}Origin: {origin}\r\n"))
            assert answer.status == 200, "the key decides; the browser keeps the answer from the page"
            assert "access-control-allow-origin" not in answer.headers


@on_loops
async def test_the_hint_names_a_command_that_lets_the_page_in() -> None:
    async with world(api_key="secret", origins=("https://a.example",)) as it:
        answer = await it.ask(preflight(origin="https://b.example"))
        hint = answer.error["llmdeploy"]["hint"]
        assert "`llmdeploy config set gateway.origins 'https://a.example https://b.example'`" in hint
        hint = (await it.ask(preflight(origin="null"))).error["llmdeploy"]["hint"]
        assert "config set" not in hint
    async with world(origins=("https://a.example",)) as it:
        for origin in ("https://a.example", "https://$(touch x).example"):
            hint = (await it.ask(post(headers=f"Origin: {origin}\r\n"))).error["llmdeploy"]["hint"]
            assert ("&& llmdeploy config set gateway.origins https://a.example`" in hint) == ("$(" not in origin)


MAY = {
    "https://app.example": True,
    "HTTPS://App.Example": True,
    "https://app.example.evil": False,
    "https://x.apps.example": True,
    "https://x.y.apps.example": True,
    "https://apps.example": False,
    "https://.apps.example": False,
    "https://evilapps.example": False,
    "http://x.apps.example": False,
    "chrome-extension://abcdefghijklmnop": True,
    "chrome-extension://abcdefghijklmnoq": False,
    "app://": True,
    "app://anything": True,
    "apps://anything": False,
    "app://any thing": False,
    "app://a, https://b": False,
    "app://a/b": False,
    "https://x.apps.example@evil.apps.example": False,
    "tauri://localhost": True,
    "tauri://other": False,
    "http://localhost": True,
    "https://[::1]:5": True,
    "http://localhost:": False,
    "http://localhost:1:2": False,
    "ws://localhost": False,
    "": False,
}


@pytest.mark.parametrize(("origin", "may"), MAY.items(), ids=repr)
def test_origins_that_may_use_the_gateway(origin: str, may: bool) -> None:
    assert may_use(origin.encode(), NAMED) is may


def test_values_that_the_setting_accepts() -> None:
    rule = Origins()
    for good in (
        *NAMED,
        "app://*",
        "vscode-webview://*",
        "moz-extension://0a-b",
        "http://192.168.1.5:3000",
        "https://[fd00::1]",
    ):
        assert rule.accepts([good]), good
    for bad in (
        "*",
        "https://*",
        "http://",
        "null",
        "https://a.example/",
        "https://a b",
        "file://*",
        "a.example",
        "https://$(x)",
        "",
    ):
        assert not rule.accepts([bad]), bad
    assert rule.read("https://a.example, app://*") == ["https://a.example", "app://*"]
    assert not rule.accepts("https://a.example")
