"""A cache of parsed heads: clients and servers repeat theirs, with nothing but the content length changed."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from llmdeploy.http1 import HOP_BY_HOP, Request, Response, lines, parse_request, parse_response

MAX_CACHED = 2048
"""Bytes of the longest head that is cached, so that the cache stays small."""

# The engine must not compress its answer, because its stream is read here, nor see the gateway's key, the origin, and
# the cookies, which a browser sends to every port of this machine.
_NOT_SENT = HOP_BY_HOP | frozenset(
    b"host content-length content-type expect authorization x-api-key origin cookie accept-encoding".split()
)
_CORS = b"allow-origin allow-credentials allow-headers allow-methods expose-headers max-age".split()
_NOT_ANSWERED = HOP_BY_HOP | frozenset([b"content-length", *(b"access-control-" + name for name in _CORS)])


class ParsedRequest(NamedTuple):
    """The head of a request, and the part of it that the engine gets."""

    head: Request
    onward: bytes
    """The header lines for the engine, without `Host`, `Content-Length` and `Content-Type`."""
    origin: bytes | None = None
    """The origin of the web page that sent the request; None if there is none."""
    is_preflight: bool = False
    """Whether a browser asks with it what a web page may send."""
    encoding: bytes = b""
    """The encoding of a compressed body; empty for a plain one."""


class ParsedResponse(NamedTuple):
    """The head of a response, and the part of it that the application gets."""

    head: Response
    onward: bytes
    """The header lines for the application, without those for the framing."""
    is_stream: bool
    """Whether the body is a stream of server-sent events."""


def cached_request(head: bytes) -> ParsedRequest:
    """Return the parsed head of a request. Raises BadFraming."""
    if len(head) > MAX_CACHED:
        return _request(head)
    found = _LENGTH.search(head)
    if found is None:
        return _remembered_request(head, b"")
    start, end = found.span(1)
    known = _remembered_request(head[:start], head[end:])
    return ParsedRequest(known.head.of_length(int(found[1])), *known[1:])


def cached_response(head: bytes) -> ParsedResponse:
    """Return the parsed head of a response. Raises BadFraming."""
    if len(head) > MAX_CACHED:
        return _response(head)
    found = _LENGTH.search(head)
    if found is None:
        return _remembered_response(head, b"")
    start, end = found.span(1)
    known = _remembered_response(head[:start], head[end:])
    return ParsedResponse(known.head.of_length(int(found[1])), known.onward, known.is_stream)


def _request(head: bytes) -> ParsedRequest:
    request = parse_request(head)
    origin = request.get(b"origin")
    asks = request.method == "OPTIONS" and request.get(b"access-control-request-method") is not None
    encoding = (request.get(b"content-encoding") or b"").lower()
    return ParsedRequest(
        request,
        lines(request.fields, _NOT_SENT | request.connection),
        origin,
        asks and origin is not None,
        b"" if encoding == b"identity" else encoding,
    )


def _response(head: bytes) -> ParsedResponse:
    response = parse_response(head)
    content_type = response.get(b"content-type") or b""
    onward = lines(response.fields, _NOT_ANSWERED | response.connection)
    return ParsedResponse(response, onward, content_type.startswith(b"text/event-stream"))


# The cache's key is the two pieces before and after the length, so that every other byte is one that was parsed and
# checked. The two pieces joined would not do: they could be the text of a head that has no length.
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,18})\r\n")


@lru_cache(256)
def _remembered_request(before: bytes, after: bytes) -> ParsedRequest:
    return _request(before + b"0" + after if after else before)


@lru_cache(256)
def _remembered_response(before: bytes, after: bytes) -> ParsedResponse:
    return _response(before + b"0" + after if after else before)
