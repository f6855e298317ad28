"""Answers of the gateway itself, and the access to it."""

from __future__ import annotations

import time
from dataclasses import replace
from unittest.mock import patch

from llmdeploy.gateway.denials import MOST_CLIENTS, Denials
from tests.gateway_world import (
    CHAT,
    ERROR,
    assert_refused,
    get,
    on_loops,
    post,
    world,
)

# Answers without an engine


@on_loops
async def test_health_answers_at_once_in_every_state() -> None:
    async with world(pointed=False) as it:
        answer = await it.ask(get("/health"))
        assert (answer.status, answer.document) == (503, {"status": "waiting", "reason": "starting"})
        it.gateway.route.refuse(ERROR)
        assert (await it.ask(get("/health"))).document["reason"] == ERROR.message
        it.gateway.route.point(it.target)
        answer = await it.ask(get("/health"))
        assert (answer.status, answer.document) == (200, {"status": "ok", "engine": "llamacpp", "model": "m"})


@on_loops
async def test_models_lists_the_one_that_is_served_and_remembers_it_while_requests_wait() -> None:
    async with world(pointed=False) as it:
        assert (await it.ask(get("/v1/models"))).document == {"object": "list", "data": []}
        it.gateway.route.point(replace(it.target, model="Qwen/Qwen 3"))
        for _ in range(2):
            (model,) = (await it.ask(get("/v1/models"))).document["data"]
            assert abs(model.pop("created") - time.time()) < 60
            assert model == {
                "id": "Qwen/Qwen 3",
                "object": "model",
                "owned_by": "llmdeploy",
                "max_model_len": 4096,
                "capabilities": ["text", "image"],
            }
            assert (await it.ask(get("/v1/models/Qwen/Qwen%203"))).document["id"] == "Qwen/Qwen 3"
            assert_refused(await it.ask(get("/v1/models/other")), 404, "`other`")
            it.gateway.route.hold("restart")


@on_loops
async def test_head_is_answered_like_get_without_the_body() -> None:
    async with world() as it:
        app = await it.app()
        for path in ("/health", "/v1/models", "/metrics"):
            await app.send(get(path, method="HEAD"))
            head = await app.answer("HEAD")
            assert head.status == 200
            assert int(head.headers["content-length"]) > 0
        await app.send(get("/v1/models/no", method="HEAD") + get("/health"))
        assert (await app.answer("HEAD")).status == 404
        assert (await app.answer()).document["status"] == "ok"


@on_loops
async def test_other_routes_and_methods_are_refused() -> None:
    async with world() as it:
        app = await it.app()
        answer = await app.ask(get("/v1/chat"))
        assert_refused(answer, 404, "`/v1/chat`")
        assert CHAT in answer.error["llmdeploy"]["hint"]
        assert_refused(await app.ask(get("/llmdeploy/stop")), 404)
        for request, allowed in (
            (get(CHAT), "POST"),
            (get(CHAT, method="OPTIONS", headers="Origin: http://localhost:3000\r\n"), "POST"),
            (post(path="/health"), "GET, HEAD"),
            (get("/v1/models/m", method="DELETE"), "GET, HEAD"),
        ):
            answer = await app.ask(request)
            assert_refused(answer, 405)
            assert answer.headers["allow"] == allowed
        assert_refused(await app.ask(get("*", method="OPTIONS")), 404)
        assert it.engine.asked == []


@on_loops
async def test_the_target_of_a_request_may_be_an_absolute_url() -> None:
    async with world() as it:
        app = await it.app()
        answer = await app.ask(b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.status == 200
        answer = await app.ask(b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert_refused(answer, 403, "evil.example")


@on_loops
async def test_metrics_count_what_happened() -> None:
    async with world() as it:
        await it.ask(post())
        await it.ask(post(stream=True))
        await it.ask(get("/nothing/of/that/name"))
        it.gateway.route.point(replace(it.target, model='a "b"\n'))
        await it.ask(post())
        it.gateway.metrics.switched("ollama", "vllm", "done")
        answer = await it.ask(get("/metrics"))
        assert answer.headers["content-type"].startswith("text/plain; version=")
        lines = answer.body.decode().splitlines()
        chat = 'engine="llamacpp",model="m",route="/v1/chat/completions",status="200"'
        assert f"llmdeploy_requests_total{{{chat}}} 2.0" in lines
        assert any('model="a \\"b\\"\\n"' in line for line in lines)
        assert any('route="other",status="404"' in line for line in lines)
        assert 'llmdeploy_time_to_first_token_seconds_count{engine="llamacpp",model="m"} 1.0' in lines
        assert 'llmdeploy_stream_tokens_per_second_count{engine="llamacpp",model="m"} 1.0' in lines
        assert 'llmdeploy_switches_total{from="ollama",outcome="done",to="vllm"} 1.0' in lines
        assert "llmdeploy_requests_held 0.0" in lines


# Access


@on_loops
async def test_the_api_key_is_required_if_one_is_set() -> None:
    async with world(api_key="secret") as it:
        app = await it.app()
        for headers in ("", "Authorization: Bearer wrong\r\n", "Authorization: secret\r\n", "X-Api-Key: secre\r\n"):
            for request in (post("a", headers=headers), get("/v1/models", headers), get("/metrics", headers)):
                answer = await app.ask(request)
                assert_refused(answer, 401)
                assert answer.error["code"] == "invalid_api_key"
        for headers in (
            "Authorization: Bearer secret\r\n",
            "authorization: bearer  secret\r\n",
            "X-API-Key: secret\r\n",
        ):
            assert (await app.ask(post("a", headers=headers))).document == {"tag": "a"}
        assert (await app.ask(get("/health"))).status == 200
        foreign = post("a", headers="Authorization: Bearer secret\r\nOrigin: https://a.example\r\n")
        foreign = foreign.replace(b"Host: localhost", b"Host: llm.example")
        assert (await app.ask(foreign)).status == 200


@on_loops
async def test_requests_without_the_key_are_logged_once_a_minute() -> None:
    with patch("llmdeploy.gateway.gateway._log.warning") as logged:
        async with world(api_key="secret") as it:
            for _ in range(5):
                assert_refused(await it.ask(post()), 401)
            assert it.gateway.metrics.requests["", "", CHAT, "401"] == 5
    ((line,),) = [call.args for call in logged.call_args_list]
    assert line == "a client at 127.0.0.1 was refused, because its API key is missing or wrong"


def test_lines_about_refused_clients_are_few_however_many_there_are() -> None:
    denials = Denials()
    lines = [denials.note(f"10.0.{number // 250}.{number % 250}", number / 1000) for number in range(10_000)]
    assert len([line for line in lines if line]) == MOST_CLIENTS
    assert denials.note("10.0.0.1", 59.9) is None
    line = denials.note("10.0.0.1", 61)
    assert line is not None
    assert line.endswith(", 1 more times since this was last said")
    assert denials.note("10.9.9.9", 62)
    assert len(denials.clients) <= MOST_CLIENTS


@on_loops
async def test_web_pages_of_other_origins_may_not_use_the_gateway() -> None:
    def request(host: str, headers: str = "") -> bytes:
        return post(headers=headers).replace(b"Host: localhost", b"Host: " + host.encode())

    async with world() as it:
        app = await it.app()
        for host in ("evil.example", "127.evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80"):
            assert_refused(await app.ask(request(host)), 403, host)
        for origin in (
            "https://evil.example",
            "null",
            "http://127.evil.example",
            "http://localhost.evil.example",
            "chrome-extension://localhost",
            "app://localhost",
            "http://evil.example@localhost",
            "http://localhost/evil",
            "localhost",
        ):
            answer = await app.ask(request("localhost", f"Origin: {origin}\r\n"))
            assert_refused(answer, 403, origin)
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "origin"
        for host in ("LOCALHOST:1", "127.0.0.2", "[::1]:11435", "192.168.1.7:80"):
            assert (await app.ask(request(host))).status == 200
        for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8"):
            assert (await app.ask(request("localhost", f"Origin: {origin}\r\n"))).status == 200
