"""Heads, and what of them goes on to the next. An application's repeat, and so do an engine's: each is read once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from llmdeploy.wire import HOP_BY_HOP, Request, Response, lines, parse_request, parse_response

_REMEMBERED = 2048
"""Bytes of a head that is remembered; a bound on what they can fill."""

# The engine must not answer in a coding that cannot be read here, nor learn the gateway's key, nor of other origins.
_NOT_SENT = HOP_BY_HOP | frozenset(
    b"host content-length content-type expect authorization x-api-key origin accept-encoding".split()
)
_CORS = b"allow-origin allow-credentials allow-headers allow-methods expose-headers max-age".split()
_NOT_ANSWERED = HOP_BY_HOP | frozenset([b"content-length", *(b"access-control-" + name for name in _CORS)])


class Asked(NamedTuple):
    head: Request
    onward: bytes
    """The headers that the engine is sent, but for its `Host`, the length and the type."""


class Answered(NamedTuple):
    head: Response
    onward: bytes
    """The headers that the application is sent, but for the framing."""
    is_stream: bool
    """Whether it is one of server-sent events."""


def asked(head: bytes) -> Asked:
    """Raises BadFraming."""
    return _asked(head) if len(head) <= _REMEMBERED else _asked_anew(head)


def answered(head: bytes) -> Answered:
    """Raises BadFraming."""
    return _answered(head) if len(head) <= _REMEMBERED else _answered_anew(head)


def _asked_anew(head: bytes) -> Asked:
    request = parse_request(head)
    return Asked(request, lines(request.fields, _NOT_SENT | request.connection))


def _answered_anew(head: bytes) -> Answered:
    response = parse_response(head)
    content_type = response.get(b"content-type") or b""
    onward = lines(response.fields, _NOT_ANSWERED | response.connection)
    return Answered(response, onward, content_type.startswith(b"text/event-stream"))


_asked: Callable[[bytes], Asked] = lru_cache(256)(_asked_anew)
_answered: Callable[[bytes], Answered] = lru_cache(256)(_answered_anew)
