"""Answers, in one piece or as a stream, and their cells in the matrix."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

PATIENCE = 60
"""Seconds to wait for an answer."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    @cached_property
    def document(self) -> dict[str, Any]:
        """The JSON document of an answer in one piece."""
        assert self.headers["content-type"].startswith("application/json"), self.headers
        document: dict[str, Any] = json.loads(self.content)
        return document

    @cached_property
    def error(self) -> dict[str, Any]:
        """The error of a refusal, which has the same form whether the gateway or the engine refused."""
        assert list(self.document) == ["error"], self.document
        error: dict[str, Any] = self.document["error"]
        assert set(error) == {"message", "type", "param", "code", "llmdeploy"}
        assert set(error["llmdeploy"]) == {"source", "engine", "hint"}
        assert error["message"]
        assert error["type"] == ("invalid_request_error" if self.status < 500 else "server_error")
        return error

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, whose form is checked."""
        blocks = self.content.decode().replace("\r\n", "\n").split("\n\n")
        assert blocks.pop() == ""
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks), blocks
        assert blocks.pop() == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks]

    @property
    def cell(self) -> str:
        if self.status != 200:
            return f"{self.status} {self.error['code']}"
        return f"200 {' '.join(self.read.finishes)}"

    @cached_property
    def read(self) -> Read:
        """The choices and the usage; raises AssertionError if the form is not OpenAI's."""
        return _streamed(self.events) if self.is_stream else _whole(self.document)


@dataclass
class Read:
    kind: str
    model: str
    texts: list[str] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """The token probabilities of the first choice."""
    calls: list[dict[str, Any]] = field(default_factory=list)


def _whole(document: dict[str, Any]) -> Read:
    _check_head(document)
    read = Read(document["object"], document["model"], usage=document["usage"])
    choices = sorted(document["choices"], key=lambda choice: choice["index"])
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    for choice in choices:
        message = choice.get("message", choice)
        if read.kind == "chat.completion":
            assert message["role"] == "assistant"
        read.texts.append(message["text"] if message is choice else message["content"] or "")
        read.finishes.append(choice["finish_reason"])
        read.calls += message.get("tool_calls") or []
    read.logprobs = (choices[0].get("logprobs") or {}).get("content") or []
    return read


def _streamed(events: list[dict[str, Any]]) -> Read:
    """Read a stream, and assert its form.

    The head is the same in all events, the role comes first, and each finish reason once, with only usage after it.
    """
    assert len({(event["id"], event["model"], event["object"]) for event in events}) == 1
    _check_head(events[0])
    read = Read(events[0]["object"], events[0]["model"])
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    for event in events:
        read.usage = event.get("usage") or read.usage
        for choice in event["choices"]:
            at = choice["index"]
            assert at not in finishes, "something comes after the end"
            delta = choice.get("delta", choice)
            if delta is not choice:
                assert delta.get("role", "assistant" if at in texts else None) == "assistant"
            texts[at] = texts.get(at, "") + (delta.get("content", delta.get("text")) or "")
            if choice["finish_reason"] is not None:
                finishes[at] = choice["finish_reason"]
            if at == 0:
                read.logprobs += (choice.get("logprobs") or {}).get("content") or []
    assert texts.keys() == finishes.keys()
    read.texts = [texts[at] for at in sorted(texts)]
    read.finishes = [finishes[at] for at in sorted(finishes)]
    return read


def _check_head(document: dict[str, Any]) -> None:
    assert {"id", "object", "created", "model", "choices"} <= set(document)
    assert document["object"] in {"chat.completion", "chat.completion.chunk", "text_completion"}
    assert isinstance(document["model"], str)
    assert isinstance(document["id"], str)
    assert isinstance(document["created"], int)


def check_usage(usage: dict[str, Any] | None) -> None:
    assert usage is not None
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["completion_tokens"] > 0


def ask(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def leave(port: int, body: bytes) -> None:
    """Request a stream, and close the connection at its first piece."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.read1(1)
    connection.close()
    response.close()
