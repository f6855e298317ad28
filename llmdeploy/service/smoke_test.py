"""The proof that a server answers: one token, and one image if its model takes images. Health alone proves neither."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from http.client import HTTPException
from typing import TYPE_CHECKING

from llmdeploy.background import within
from llmdeploy.errors import StartFailed, TimedOut
from llmdeploy.service.health import connection

if TYPE_CHECKING:
    from llmdeploy.engines.base import Request, ServerSpec
    from llmdeploy.service.stages import Ready

SIDE = 64
"""Width and height of the image in pixels: small enough to cost nothing, enough for the patches of every model."""


def run_smoke_test(ready: Ready) -> None:
    """Ask the server to answer, each question within the time of a start. Raises StartFailed, TimedOut."""
    try:
        _require_answers(ready.spec, ready.prepared.facts.capabilities, ready.order.timeout)
    except StartFailed as error:  # `llmdeploy logs` shows the log of the server that serves
        raise StartFailed(error.message, f"its log is `{ready.server.log_file}`") from error


def require_answer(spec: ServerSpec, seconds: float) -> None:
    """Ask the server for one token. Raises StartFailed, TimedOut."""
    _require_answer(spec, "no question", "Hello", seconds)


def _require_answers(spec: ServerSpec, capabilities: tuple[str, ...], seconds: float) -> None:
    require_answer(spec, seconds)
    if "image" in capabilities:
        url = "data:image/png;base64," + base64.b64encode(_red()).decode()
        image = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        _require_answer(spec, "no question about an image", image, seconds)


def _require_answer(spec: ServerSpec, what: str, content: object, seconds: float) -> None:
    messages = [{"role": "user", "content": content}]
    question: Request = {"model": spec.served_name, "messages": messages, "max_tokens": 1}
    body = spec.adapt(question) if spec.adapt else question
    try:
        status, answer = within(seconds, lambda: _asked(spec, body))
    except TimeoutError:
        raise TimedOut(f"the server answered {what} within {seconds:g} s", "give it longer with `--timeout`") from None
    except (OSError, HTTPException) as error:
        raise StartFailed(f"the server answers {what}: {error}", "") from error
    if status != 200 or not _has_choice(answer):
        words = " ".join(answer.decode(errors="replace").split())[:300]
        raise StartFailed(f"the server answers {what} ({status}): {words}", "")


def _asked(spec: ServerSpec, body: Request) -> tuple[int, bytes]:
    channel, path = connection(spec.base_url, timeout=None)
    try:
        headers = {"Content-Type": "application/json", **spec.headers}
        channel.request("POST", f"{path}/v1/chat/completions", json.dumps(body), headers)
        response = channel.getresponse()
        return response.status, response.read()
    finally:
        channel.close()


def _has_choice(answer: bytes) -> bool:
    try:
        return bool(json.loads(answer)["choices"][0]["message"])
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def _red() -> bytes:
    """Return a red square as PNG: header, image data and end, each with its length and checksum."""
    rows = (b"\0" + b"\xff\0\0" * SIDE) * SIDE
    chunks = {b"IHDR": struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
