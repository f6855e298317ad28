"""Heads, and what of them goes on to the next. But for the length they repeat: each is read once."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from llmdeploy.http1 import HOP_BY_HOP, Request, Response, lines, parse_request, parse_response

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
    if len(head) > _REMEMBERED:
        return _asked_anew(head)
    found = _LENGTH.search(head)
    if found is None:
        return _asked(head, b"")
    start, end = found.span(1)
    known = _asked(head[:start], head[end:])
    return Asked(known.head.of_length(int(found[1])), known.onward)


def answered(head: bytes) -> Answered:
    """Raises BadFraming."""
    if len(head) > _REMEMBERED:
        return _answered_anew(head)
    found = _LENGTH.search(head)
    if found is None:
        return _answered(head, b"")
    start, end = found.span(1)
    known = _answered(head[:start], head[end:])
    return Answered(known.head.of_length(int(found[1])), known.onward, known.is_stream)


def _asked_anew(head: bytes) -> Asked:
    request = parse_request(head)
    return Asked(request, lines(request.fields, _NOT_SENT | request.connection))


def _answered_anew(head: bytes) -> Answered:
    response = parse_response(head)
    content_type = response.get(b"content-type") or b""
    onward = lines(response.fields, _NOT_ANSWERED | response.connection)
    return Answered(response, onward, content_type.startswith(b"text/event-stream"))


# Remembered by what stands before and after the length: all else is, byte for byte, what was read and checked. One text
# would not do: it could be that of a head whose length is missing.
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,18})\r\n")


@lru_cache(256)
def _asked(before: bytes, after: bytes) -> Asked:
    return _asked_anew(before + b"0" + after if after else before)


@lru_cache(256)
def _answered(before: bytes, after: bytes) -> Answered:
    return _answered_anew(before + b"0" + after if after else before)
