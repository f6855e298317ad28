"""Streamed answers of the real engine, and of scripted servers that misbehave as it never would."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest

from llmdeploy.client import Answer, Conversation, Piece, Question
from llmdeploy.errors import NotServing, RequestFailed, TimedOut
from tests.conftest import World, until

TIMEOUT = 20.0


def ask(base_url: str, question: Question, timeout: float = TIMEOUT) -> tuple[list[Piece], Answer]:
    conversation = Conversation(base_url, question.body("selftest"), timeout)
    return list(conversation), conversation.answer


# The real engine


@pytest.fixture
def engine(served: World) -> str:
    return f"http://127.0.0.1:{served.port}"


def test_pieces_answer_and_usage(engine: str) -> None:
    pieces, answer = ask(engine, Question("Count to 5", temperature=0))
    assert len(pieces) > 4
    assert "".join(piece.text for piece in pieces) == answer.text == "1 2 3 4 5"
    assert answer.reasoning == ""
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == 10
    assert answer.usage["total_tokens"] == answer.usage["prompt_tokens"] + 10
    assert 0 < answer.ttft <= answer.duration < TIMEOUT


def test_max_tokens_limits_the_answer(engine: str) -> None:
    pieces, answer = ask(engine, Question("sing", temperature=0, max_tokens=7))
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == 7
    assert re.fullmatch(r"la( la)*( l)? ?", answer.text)
    assert 1 < len(pieces) <= 7


def test_the_first_piece_comes_before_the_last(engine: str) -> None:
    """Take the quickest of three long answers, so that delays of a busy machine do not matter."""
    answers = [ask(engine, Question("sing", temperature=0, max_tokens=3000))[1] for _ in range(3)]
    assert min(answer.ttft / answer.duration for answer in answers) < 1 / 2


def test_a_system_prompt_reaches_the_engine(engine: str) -> None:
    without, with_system = (
        ask(engine, Question("ping", temperature=0, max_tokens=1, system=system))[1].usage
        for system in (None, "You are a test. " * 4)
    )
    assert without is not None
    assert with_system is not None
    assert with_system["prompt_tokens"] > without["prompt_tokens"] + 20


def test_a_seed_repeats_the_answer(engine: str) -> None:
    """Untrained questions get varying answers, but the same answer with the same seed."""
    question = Question("Count", temperature=2, max_tokens=12)
    once, again = ([ask(engine, replace(question, seed=seed))[1].text for seed in range(8)] for _ in range(2))
    assert once == again
    assert len(set(once)) > 1


def test_proxy_of_the_environment_is_ignored(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(engine, Question("Count to 2", temperature=0))[1].text == "1 2"


def test_conversation_can_be_abandoned(engine: str) -> None:
    pieces = iter(Conversation(engine, Question("sing", temperature=0).body("selftest"), TIMEOUT))
    assert isinstance(next(pieces), Piece)
    pieces.close()  # type: ignore[attr-defined] # __iter__ is a generator
    assert ask(engine, Question("Count to 2", temperature=0))[1].text == "1 2"


def test_a_killed_engine_breaks_the_answer_off(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    server = json.loads(world.run("status", "--json").stdout)["server_pid"]
    body = Question("sing", temperature=0, max_tokens=6000).body("selftest")
    conversation = Conversation(f"http://127.0.0.1:{world.port}", body, TIMEOUT)
    heard: list[Piece] = []

    def listen() -> None:
        for piece in conversation:
            heard.append(piece)
            if len(heard) == 5:
                os.kill(server, signal.SIGKILL)

    with pytest.raises(RequestFailed, match=r"^the answer broke off: ") as caught:
        listen()
    assert 5 <= len(heard) < 6000
    assert caught.value.hint == "`llmdeploy status` tells whether the server still runs"
    assert not hasattr(conversation, "answer")
    until(lambda: not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE)


def test_nothing_listens(world: World) -> None:
    with pytest.raises(NotServing) as caught:
        ask(f"http://127.0.0.1:{world.port}", Question("x"))
    assert caught.value.message == f"nothing answers at `http://127.0.0.1:{world.port}/v1/chat/completions`"
    assert caught.value.hint == "`llmdeploy status` tells what is served"


# Scripted servers


@contextmanager
def scripted(response: bytes, *, silent: bool = False) -> Iterator[str]:
    """Run a server that reads one request, sends these bytes and closes; if `silent`, it waits for the client."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while (line := self.rfile.readline()) not in {b"\r\n", b""}:
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            self.wfile.write(response)
            if silent:
                self.wfile.flush()
                self.rfile.read()  # until the client has hung up

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def http(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def stream(*lines: str | bytes, end: bytes = b"\n", cut: int = 0) -> bytes:
    """Build a response with server-sent events that is `cut` bytes shorter than its Content-Length."""
    body = b"".join((line.encode() if isinstance(line, str) else line) + end for line in lines)
    whole = http("200 OK", "text/event-stream", body)
    return whole[: len(whole) - cut]


def delta(**words: Any) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': words, 'finish_reason': None}]}, ensure_ascii=False)}"


HELLO = delta(role="assistant", content="Hello")
STOP = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
USAGE = 'data: {"choices":[],"usage":{"completion_tokens":2}}'
DONE = "data: [DONE]"

BROKEN_OFF = "`llmdeploy status` tells whether the server still runs"
LOGS = "`llmdeploy logs` tells more"

FAILURES = [
    (
        "no finish reason",
        stream(HELLO, "", DONE, ""),
        "the answer broke off: the stream did not end properly",
        BROKEN_OFF,
    ),
    ("nothing at all", stream(), "the answer broke off: the stream did not end properly", BROKEN_OFF),
    (
        "error event",
        stream(HELLO, "", 'data: {"error":{"code":500,"message":"out of cheese","type":"server_error"}}', ""),
        "the answer broke off: out of cheese",
        BROKEN_OFF,
    ),
    (
        "llama.cpp's error field",
        stream(HELLO, "", 'error: {"code":500,"message":"out of cheese"}', ""),
        "the answer broke off: out of cheese",
        BROKEN_OFF,
    ),
    ("bare error event", stream('data: {"error":"no"}', ""), "the answer broke off: no", BROKEN_OFF),
    ("not JSON", stream(HELLO, "", "data: <html>", ""), "the answer broke off: not JSON: <html>", BROKEN_OFF),
    ("not an object", stream("data: [1]", ""), "the answer broke off: not a JSON object: [1]", BROKEN_OFF),
    (
        "long and not JSON",
        stream(f"data: {'x' * 10_000}"),
        f"the answer broke off: not JSON: {'x' * 80}",
        BROKEN_OFF,
    ),
    (
        "500 with a page",
        http("500 Internal Server Error", "text/html", b"<html>\n<h1>Oh no</h1>\n</html>"),
        "the server refused the request (500): <html> <h1>Oh no</h1> </html>",
        LOGS,
    ),
    (
        "502 without a word",
        http("502 Bad Gateway", "text/plain", b""),
        "the server refused the request (502): Bad Gateway",
        LOGS,
    ),
    (
        "404 in OpenAI's shape",
        http("404 Not Found", "application/json", b'{"error":{"code":404,"message":"File Not Found","type":"x"}}'),
        "the server refused the request (404): File Not Found",
        LOGS,
    ),
    (
        "400 with a bare error",
        http("400 Bad Request", "application/json", b'{"error":"text"}'),
        "the server refused the request (400): text",
        LOGS,
    ),
    (
        "400 with some JSON",
        http("400 Bad Request", "application/json", b'["text"]'),
        "the server refused the request (400): ['text']",
        LOGS,
    ),
    (
        "not HTTP",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        None,
        BROKEN_OFF,
    ),
    ("closed without an answer", b"", None, BROKEN_OFF),
    ("closed in the middle", stream(HELLO, "", STOP, "", cut=40), None, BROKEN_OFF),
    # The finish reason arrived, but the body is incomplete: such an answer is an error.
    ("closed before the last bytes", stream(HELLO, "", STOP, "", DONE, "", cut=1), None, BROKEN_OFF),
]


@pytest.mark.parametrize(("response", "message", "hint"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_invalid_answers(response: bytes, message: str | None, hint: str) -> None:
    with scripted(response) as url, pytest.raises(RequestFailed) as caught:
        ask(url, Question("x"))
    if message is None:  # the text is httpx's
        assert re.fullmatch(r"the answer broke off: \S.*", caught.value.message)
    else:
        assert caught.value.message == message
    assert caught.value.hint == hint


@pytest.mark.parametrize("response", [b"", stream(HELLO, "", cut=-1)], ids=["from the start", "in the middle"])
def test_silent_server_times_out(response: bytes) -> None:
    if response:
        response = response.replace(b"Content-Length: ", b"Content-Length: 9")
    with scripted(response, silent=True) as url, pytest.raises(TimedOut) as caught:
        ask(url, Question("x"), timeout=0.2)
    assert caught.value.message == f"no answer from `{url}/v1/chat/completions` for 0.2 s"
    assert caught.value.hint == "wait longer with `--timeout`"


NO_LINE_ENDS = "a\u2028b\u2029c\u0085d"

ANSWERS = [
    ("plain", stream(HELLO, "", delta(content=" you"), "", STOP, "", USAGE, "", DONE, ""), "Hello you", ""),
    ("CRLF", stream(HELLO, "", delta(content=" you"), "", STOP, "", DONE, "", end=b"\r\n"), "Hello you", ""),
    ("comments and fields", stream(": ping", "event: x", "id: 3", HELLO, "", ":", STOP, "", "retry: 5"), "Hello", ""),
    ("no blanks", stream(HELLO.replace("data: ", "data:"), "", STOP.replace("data: ", "data:"), ""), "Hello", ""),
    ("no [DONE], no last line end", stream(HELLO, "", STOP, cut=0).rstrip(b"\n") + b" ", "Hello", ""),
    ("llama.cpp's reasoning", stream(delta(reasoning_content="Hm."), HELLO, STOP), "Hello", "Hm."),
    ("vLLM's and Ollama's reasoning", stream(delta(reasoning="Hm."), HELLO, STOP), "Hello", "Hm."),
    ("nulls", stream(delta(role="assistant", content=None, reasoning=None), HELLO, STOP), "Hello", ""),
    ("other scripts", stream(delta(content="你好"), STOP), "你好", ""),
    # Unescaped in JSON, as llama.cpp sends them; some libraries split lines there.
    ("line ends that are none", stream(delta(content=NO_LINE_ENDS), STOP), NO_LINE_ENDS, ""),
    ("nothing said", stream(STOP), "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("response", "text", "reasoning"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_valid_answers(response: bytes, text: str, reasoning: str) -> None:
    with scripted(response) as url:
        pieces, answer = ask(url, Question("x"))
    assert (answer.text, answer.reasoning, answer.finish_reason) == (text, reasoning, "stop")
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text or piece.reasoning for piece in pieces)
    assert answer.usage == ({"completion_tokens": 2} if b"usage" in response else None)
    assert 0 <= answer.ttft <= answer.duration


def test_character_split_between_packets() -> None:
    """Two packets that split a character and a line."""
    whole = stream(delta(content="né"), STOP)
    cut = whole.index("é".encode()) + 1
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(whole[:cut])
                halves.wait(0.1)
                connection.sendall(whole[cut:])

        halves = threading.Event()  # never set: separates the packets in time
        thread = threading.Thread(target=serve)
        thread.start()
        _, answer = ask(f"http://127.0.0.1:{listener.getsockname()[1]}", Question("x"))
        thread.join()
    assert answer.text == "né"
