"""The streaming OpenAI-compatible client of `chat`. It does not depend on the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from llmdeploy.errors import NotServing, RequestFailed, TimedOut
from llmdeploy.images import Image

KEY_HINT = "give the key that it serves with: `export LLMDEPLOY_API_KEY=KEY`, or name its file as `api_key_file`"


@dataclass(frozen=True)
class Question:
    """One user turn: images, text and an optional system prompt. None leaves a value to the engine."""

    prompt: str
    images: Sequence[Image] = ()
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Return the body of a streaming request that also asks for the usage."""
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": image.data_url}} for image in self.images
        ]
        if self.prompt:
            parts.append({"type": "text", "text": self.prompt})
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": parts if self.images else self.prompt})  # type: ignore[dict-item]
        wishes = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in wishes.items() if value is not None},
        }


@dataclass(frozen=True)
class Piece:
    """One piece of the answer as it arrives; `reasoning` is the thinking of a reasoning model."""

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class Answer:
    """The complete answer to a question."""

    text: str
    reasoning: str
    finish_reason: str
    usage: dict[str, Any] | None
    ttft: float
    """Time to first token (TTFT), in seconds from sending the request."""
    duration: float
    """Seconds from sending the request to the end of the answer."""


class Conversation:
    """One streamed answer. Iterate over its pieces once, then read `answer`."""

    answer: Answer

    def __init__(self, base_url: str, body: Mapping[str, Any], timeout: float, api_key: str | None = None) -> None:
        """Prepare the request. `base_url` has no `/v1`; `timeout` limits each wait, in seconds."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = f"{base_url}/v1/chat/completions"
        self._body = body
        self._timeout = timeout

    def __iter__(self) -> Iterator[Piece]:
        """Send the request and yield the pieces. Raises NotServing, RequestFailed, TimedOut."""
        # trust_env: a proxy from the environment must not stand between this machine and itself.
        # verify: loading the certificates takes 35 ms, and plain HTTP needs none.
        client = httpx.Client(
            trust_env=False,
            verify=self._url.startswith("https:"),
            timeout=httpx.Timeout(self._timeout, connect=5),
        )
        self._began = time.monotonic()
        try:
            with client, client.stream("POST", self._url, json=self._body, headers=self._headers) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                yield from self._pieces(response)
        except httpx.TimeoutException as error:
            raise TimedOut(
                f"no answer from `{self._url}` for {self._timeout:g} s", "wait longer with `--timeout`"
            ) from error
        except httpx.ConnectError as error:
            raise NotServing(f"nothing answers at `{self._url}`", "`llmdeploy status` tells what is served") from error
        except httpx.HTTPError as error:
            raise _broken_off(str(error)) from error

    def _pieces(self, response: httpx.Response) -> Iterator[Piece]:
        first: float | None = None
        pieces: list[Piece] = []
        finish_reason, usage = "", None
        for event in _events(response):
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
                piece = _piece(choice.get("delta") or {})
                if piece.text or piece.reasoning:
                    first = first or time.monotonic()
                    pieces.append(piece)
                    yield piece
        if not finish_reason:
            raise _broken_off("the stream did not end properly")
        ended = time.monotonic()
        self.answer = Answer(
            text="".join(piece.text for piece in pieces),
            reasoning="".join(piece.reasoning for piece in pieces),
            finish_reason=finish_reason,
            usage=usage,
            ttft=(first or ended) - self._began,
            duration=ended - self._began,
        )


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of server-sent events."""
    for line in _lines(response):
        field, _, value = line.partition(":")
        if field not in {"data", "error"} or value.strip() == "[DONE]":
            continue
        try:
            event = json.loads(value)
        except ValueError:
            raise _broken_off(f"not JSON: {value.strip()[:80]}") from None
        if field == "error" or (isinstance(event, dict) and "error" in event):
            raise _broken_off(_message(event))
        if not isinstance(event, dict):
            raise _broken_off(f"not a JSON object: {value.strip()[:80]}")
        yield event


def _lines(response: httpx.Response) -> Iterator[str]:
    """Yield the lines of a stream. httpx's `iter_lines` also splits at U+2028 and similar, which JSON may contain."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    yield rest.decode(errors="replace")


def _piece(delta: dict[str, Any]) -> Piece:
    # Engines name the field differently: llama.cpp `reasoning_content`, others `reasoning`.
    return Piece(delta.get("content") or "", delta.get("reasoning_content") or delta.get("reasoning") or "")


def sees_no_images() -> RequestFailed:
    return RequestFailed(
        "the model that is served sees no images",
        "serve one that does, with its projector: `llmdeploy serve x.gguf --mmproj mmproj.gguf`",
    )


def _message(body: Any) -> str:
    """Extract the message of an error body: OpenAI's shape, a bare message, or Ollama's JSON inside a message."""
    error = body.get("error", body) if isinstance(body, dict) else body
    words = str(error.get("message", error) if isinstance(error, dict) else error)
    if words.startswith('{"error"'):
        with suppress(ValueError, RecursionError):
            return _message(json.loads(words))
    return words


def _refusal(response: httpx.Response) -> RequestFailed:
    try:
        body = response.json()
        message = _message(body)
    except ValueError:
        body, message = None, " ".join(response.text.split())[:200] or response.reason_phrase
    hint = KEY_HINT if response.status_code == 401 else _hint(body) or "`llmdeploy logs` tells more"
    return RequestFailed(f"the server refused the request ({response.status_code}): {message}", hint)


def _hint(body: Any) -> str:
    """Return the hint that the gateway adds to its errors; empty if there is none."""
    try:
        return str(body["error"]["llmdeploy"]["hint"])
    except (KeyError, TypeError):
        return ""


def _broken_off(why: str) -> RequestFailed:
    return RequestFailed(f"the answer broke off: {why}", "`llmdeploy status` tells whether the server still runs")
