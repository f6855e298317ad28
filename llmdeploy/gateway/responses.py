"""The answers that the gateway makes itself."""

from __future__ import annotations

from http import HTTPStatus

from llmdeploy.errors import LlmdeployError
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.limits import Limits

JSON = b"application/json"
RETRY_AFTER = b"retry-after: 5\r\n"

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def head(status: int, content_type: bytes, framing: bytes, *, close: bool) -> bytes:
    """Return the head of an answer. `framing` holds complete header lines."""
    connection = b"connection: close\r\n" if close else b""
    phrase = _PHRASES.get(status, b"")
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%b%b\r\n" % (status, phrase, content_type, framing, connection)


def answer(status: int, body: bytes, content_type: bytes, headers: bytes, *, close: bool, bodiless: bool) -> bytes:
    """Return a complete answer. `headers` holds complete header lines. A `bodiless` one, to HEAD, has a length too."""
    framing = b"content-length: %d\r\n%b" % (len(body), headers)
    return head(status, content_type, framing, close=close) + (b"" if bodiless else body)


def bodiless(status: int, headers: bytes, *, close: bool) -> bytes:
    """Return a complete answer that never has a body. `headers` holds complete header lines."""
    connection = b"connection: close\r\n" if close else b""
    return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, _PHRASES.get(status, b""), headers, connection)


def event_of(body: bytes) -> bytes:
    """Return one server-sent event."""
    return b"data: %b\n\n" % body


# Refusals


def unavailable(error: LlmdeployError) -> Refused:
    """Return the refusal for the time without a server, if only a user can start one."""
    return Refused(503, error.message, type="service_unavailable", code=error.code, hint=error.hint)


def too_many_wait(held: int, reason: str) -> Refused:
    """Return the refusal for the case that too many requests wait already."""
    message = f"{held} requests are waiting already ({reason})"
    return Refused(503, message, type="service_unavailable", code="too_many_waiting", hint="try again in some seconds")


def waited_too_long(seconds: float, reason: str) -> Refused:
    """Return the refusal for the case that no server was ready in time."""
    message = f"no server was ready within {seconds:g} s ({reason})"
    return Refused(
        503, message, type="service_unavailable", code="not_ready", hint="`llmdeploy status` tells what is served"
    )


def unreachable(engine: str) -> Refused:
    """Return the refusal for the case that the engine cannot be reached."""
    return Refused(
        502,
        f"`{engine}` cannot be reached",
        type="engine_error",
        code="engine_unreachable",
        hint="`llmdeploy logs` tells more",
    )


def died(engine: str, id: str) -> Refused:
    """Return the refusal for the case that the engine ended while it had the request."""
    return Refused(
        502,
        f"`{engine}` ended before it answered this request ({id}), which is not sent again",
        type="engine_error",
        code="engine_died",
        hint="`llmdeploy logs` tells why it ended; if this request did it, change it",
    )


def model_missing(engine: str, model: str) -> Refused:
    """Return the refusal for the case that somebody has removed the model from the engine."""
    return Refused(
        503,
        f"`{engine}` does not have `{model}` any more; it is made again",
        type="service_unavailable",
        code="model_missing",
        hint="try again in some seconds",
    )


def broke_off(engine: str) -> Refused:
    """Return the refusal for the case that the engine ended in the middle of its answer."""
    return Refused(
        502,
        f"`{engine}` ended in the middle of its answer",
        type="engine_error",
        code="engine_died",
        hint="`llmdeploy logs` tells more",
    )


def switched_off(engine: str) -> Refused:
    """Return the refusal for the case that the engine was stopped before its answer was complete."""
    return Refused(
        503,
        f"`{engine}` was stopped before the answer was complete",
        type="service_unavailable",
        code="cut",
        hint="send the request again",
    )


def too_large(limit: int) -> Refused:
    """Return the refusal for the case that the body is too large."""
    size = f"{limit / 2**20:g} MiB" if limit >= 2**20 else f"{limit / 2**10:g} KiB"
    return Refused(413, f"the body is larger than {size}", code="too_large", hint="send less text or smaller images")


def compressed(encoding: bytes) -> Refused:
    """Return the refusal of a body that is compressed."""
    name = encoding.decode("latin-1")[:80]
    message = f"the body is encoded with `{name}`, which is not supported"
    return Refused(415, message, code="unsupported_encoding", hint="send it plain, without `Content-Encoding`")


def out_of_memory() -> Refused:
    """Return the refusal for the case that the bodies in memory have reached their limit."""
    message = "the requests in progress already use all the memory allowed for them"
    return Refused(
        503,
        message,
        type="service_unavailable",
        code="too_busy",
        hint="try again in some seconds",
        headers=RETRY_AFTER,
    )


def too_slow(seconds: float) -> Refused:
    """Return the refusal for the case that the request was not complete in time."""
    return Refused(408, f"the request was not complete within {seconds:g} s", code="too_slow", hint="send it again")


def body_too_slow(limits: Limits) -> Refused:
    """Return the refusal for the case that the body of a request came too slowly."""
    rate, pause, total = limits.body_rate, limits.head_seconds, limits.body_seconds
    message = f"the body came too slowly: it needs {rate:g} bytes/s, no pause of {pause:g} s, and {total:g} s at most"
    return Refused(408, message, code="too_slow", hint="send it again, over a faster connection")


def too_many_clients() -> Refused:
    """Return the refusal for the case that all connections are busy."""
    return Refused(
        503,
        "all the connections that the gateway may have are busy",
        type="service_unavailable",
        code="too_busy",
        hint="try again in some seconds",
        headers=RETRY_AFTER,
    )


def malformed(status: int, message: str) -> Refused:
    """Return the refusal for the case that the request is not valid HTTP/1.1."""
    return Refused(status, message, code="malformed_request", hint="send a valid HTTP/1.1 request")


def no_such_route(engine: str, path: str) -> Refused:
    """Return the refusal for the case that the engine lacks the route."""
    return Refused(
        404,
        f"`{engine}` has no route `{path}`",
        code="unknown_route",
        hint="use `/v1/chat/completions`, or another engine",
    )


def closing() -> Refused:
    """Return the refusal for the case that the gateway stops."""
    return Refused(
        503, "the gateway stops", type="service_unavailable", code="stopping", hint="`llmdeploy status` tells what runs"
    )


def bug(error: BaseException) -> Refused:
    """Return the refusal for an unexpected error: a bug in llmdeploy."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, LlmdeployError):
        return Refused(500, error.message, type="server_error", code=error.code, hint=error.hint)
    return Refused(500, message, type="server_error", code="internal_error", hint="`llmdeploy logs` tells more")
