"""The cache of heads: each is parsed once, and never mistaken for another."""

from __future__ import annotations

import pytest

from llmdeploy.gateway import header_cache
from llmdeploy.gateway.header_cache import cached_request, cached_response
from llmdeploy.http1 import BadFraming, parse_request, parse_response

ASKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\nX-A: b\r\nAuthorization: Bearer s\r\n\r\n"
)
ANSWERED = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %b\r\nx-a: b\r\n\r\n"


def test_a_request_head_is_parsed_once_whatever_the_content_length() -> None:
    header_cache._remembered_request.cache_clear()
    for length in (0, 7, 123456, 7):
        head = ASKED % str(length).encode()
        assert cached_request(head).head == parse_request(head)._replace(fields=cached_request(head).head.fields)
        assert cached_request(head).head.length == length
        assert cached_request(head).onward == b"x-a: b\r\n"
    assert header_cache._remembered_request.cache_info().misses == 1


def test_a_response_head_is_parsed_once_whatever_the_content_length() -> None:
    header_cache._remembered_response.cache_clear()
    for length in (0, 7, 123456, 7):
        head = ANSWERED % (b"text/event-stream; charset=utf-8", str(length).encode())
        assert cached_response(head).head == parse_response(head)._replace(fields=cached_response(head).head.fields)
        assert cached_response(head).head.length == length
        assert cached_response(head).is_stream
    assert header_cache._remembered_response.cache_info().misses == 1
    assert not cached_response(ANSWERED % (b"application/json", b"1")).is_stream


FOLDED = [b"\r\n 1", b"1\n", b"1\r\n\t2", b"1\r\nTransfer-Encoding: chunked"]


@pytest.mark.parametrize(
    "length",
    [
        b"",
        b" ",
        b"+1",
        b"1 2",
        b"1, 1",
        b"0x1",
        b"1\r\nContent-Length: 1",
        b"1\r\ncontent-length: 2",
        b"9" * 19,
        *FOLDED,
    ],
)
def test_the_cache_accepts_no_malformed_length(length: bytes) -> None:
    cached_request(ASKED % b"1")
    cached_response(ANSWERED % (b"text/plain", b"1"))
    for _ in range(2):
        with pytest.raises(BadFraming):
            cached_request(ASKED % length)
        with pytest.raises(BadFraming):
            cached_response(ANSWERED % (b"text/plain", length))


def test_heads_without_a_length_and_with_an_empty_one_differ() -> None:
    with_length = cached_request(ASKED % b"5")
    without = cached_request((ASKED % b"5").replace(b"Content-Length: 5\r\n", b""))
    assert (with_length.head.length, without.head.length) == (5, 0)
    before, _, after = (ASKED % b"5").partition(b"5")
    with pytest.raises(BadFraming):
        cached_request(before + after)


def test_a_long_head_is_not_cached() -> None:
    size = header_cache._remembered_request.cache_info().currsize
    long = cached_request(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 3000 + b"\r\n\r\n")
    assert len(long.onward) > 3000
    assert header_cache._remembered_request.cache_info().currsize == size
