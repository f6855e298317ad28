"""HTTP/1.1 framing, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy import http1
from llmdeploy.http1 import BadFraming, Body, Chunked, Length, UntilClose, parse_request, parse_response

HEAD = b"POST /a?b=c HTTP/1.1\r\nHost: x:1\r\nContent-Length: 3\r\nX-Y:  z \r\nEmpty:\r\n\r\n"


def test_a_request_is_parsed() -> None:
    head = parse_request(HEAD)
    assert (head.method, head.target, head.path, head.host) == ("POST", b"/a?b=c", "/a", b"x:1")
    assert (head.length, head.chunked, head.keep_alive, head.is_1_1) == (3, False, True, True)
    assert head.fields == [(b"host", b"x:1"), (b"content-length", b"3"), (b"x-y", b"z"), (b"empty", b"")]
    assert (head.get(b"x-y"), head.get(b"no")) == (b"z", None)


def test_a_response_is_parsed() -> None:
    head = parse_response(b"HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\nConnection: Keep-Alive, X\r\n\r\n")
    assert (head.status, head.reason, head.chunked, head.length, head.keep_alive) == (200, b"", True, None, True)
    assert head.connection == {b"x"}
    head = parse_response(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert (head.status, head.reason, head.length, head.keep_alive) == (404, b"Not Found", 0, False)
    assert not parse_response(b"HTTP/1.0 200 OK\r\n\r\n").keep_alive


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
def test_keep_alive_follows_the_version_and_the_headers(head: bytes, keep_alive: bool) -> None:
    assert parse_request(head).keep_alive is keep_alive


def test_a_target_may_be_an_absolute_url() -> None:
    head = parse_request(b"GET http://A:80?b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (head.host, head.target, head.path) == (b"A:80", b"/?b", "/")


def test_header_lines_leave_out_the_named_headers() -> None:
    assert http1.lines(parse_request(HEAD).fields, frozenset({b"host", b"content-length"})) == b"x-y: z\r\nempty: \r\n"


@pytest.mark.parametrize("head", [b"\x16\x03\x01", b"\0", b"get", b"GET/", b"GET / HTTP/1.1\n", b"GET\n", b" GET "])
def test_bytes_that_cannot_become_a_head_are_refused_at_once(head: bytes) -> None:
    with pytest.raises(BadFraming):
        http1.check_beginning(head)


def test_every_beginning_of_a_head_is_accepted() -> None:
    for end in range(1, len(HEAD)):
        http1.check_beginning(HEAD[:end])
        http1.check_beginning(bytearray(HEAD[:end]))


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b""),
        (b"005;a=b\r\nhello\r\n1 ;c\r\n!\r\n0\r\n\r\n", b"POST"),
        (b"A\r\n0\r\n\r\n12345\r\n00\r\n\r\n", b"\r\n"),
    ],
)
def test_chunks_are_followed_wherever_they_are_cut(body: bytes, rest: bytes) -> None:
    whole: list[bytes] = []
    assert Chunked().feed(body + rest, whole) == len(body)
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            chunks, payload, taken = Chunked(), [], 0
            for piece in (body[:first], body[first:second], body[second:] + rest):
                assert not chunks.done or not taken < len(body)
                taken += chunks.feed(piece, payload) if not chunks.done else 0
            assert (taken, chunks.done, b"".join(payload)) == (len(body), True, b"".join(whole))


def test_a_chunk_can_be_inserted_only_between_two_chunks() -> None:
    chunks = Chunked()
    assert chunks.at_boundary
    for byte in b"3\r\nabc\r":
        chunks.feed(bytes([byte]))
        assert not chunks.at_boundary
    chunks.feed(b"\n")
    assert chunks.at_boundary
    chunks.feed(b"0\r\n")
    assert not chunks.at_boundary


def test_a_written_chunk_is_read_back() -> None:
    payload: list[bytes] = []
    chunks = Chunked()
    chunks.feed(http1.chunk(b"a" * 300) + http1.LAST_CHUNK, payload)
    assert (chunks.done, payload) == (True, [b"a" * 300])


def outcome(body: Body, pieces: list[bytes]) -> tuple[bool, int, bytes] | str:
    payload: list[bytes] = []
    taken = 0
    try:
        for piece in pieces:
            if body.done:
                break
            taken += body.feed(piece, payload)
    except BadFraming:
        return "refused"
    return body.done, taken, b"".join(payload)


NEARLY_CHUNKS = st.lists(
    st.sampled_from([b"0\r\n\r\n", b"1\r\na\r\n", b"3;x\r\nabc\r\n", b"\r\n", b"\n", b"\r", b"2", b"a", b"g", b"; "])
).map(b"".join)


@given(NEARLY_CHUNKS | st.binary(max_size=60), st.data())
def test_the_pieces_that_a_body_comes_in_do_not_matter(data: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=4)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for make in (Chunked, UntilClose, lambda: Length(7)):
        assert outcome(make(), [data]) == outcome(make(), pieces)


@given(NEARLY_CHUNKS | st.binary(max_size=60))
def test_following_a_body_and_reading_it_agree(data: bytes) -> None:
    read, followed = Chunked(), Chunked()
    try:
        taken = read.feed(data, [])
    except BadFraming:
        with pytest.raises(BadFraming):
            followed.feed(data)
    else:
        assert followed.feed(data) == taken
        assert (followed.done, followed.at_boundary) == (read.done, read.at_boundary)


WORDS = b"GET POST / /v1 HTTP/1.1 HTTP/1.0 Host x Content-Length Transfer-Encoding chunked 3 , Connection close".split()
TOKENS = st.sampled_from([*WORDS, b" ", b"\r\n", b"\n", b"\r", b":", b": ", b"\t", b"\0", b"\xff"])


@given(st.lists(TOKENS, max_size=25).map(b"".join) | st.binary(max_size=80))
def test_a_head_is_read_or_refused(text: bytes) -> None:
    for head in (text + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n" + text + b"\r\n\r\n"):
        try:
            request = parse_request(head)
        except BadFraming:
            continue
        assert not (request.chunked and request.length)
        onward = http1.lines(request.fields, frozenset())
        assert onward.count(b"\r") == onward.count(b"\n") == onward.count(b"\r\n") == len(request.fields)
        assert b"\0" not in onward


@given(st.lists(TOKENS, max_size=25).map(b"".join))
def test_a_response_head_is_read_or_refused(text: bytes) -> None:
    for head in (text + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + text + b"\r\n\r\n"):
        try:
            response = parse_response(head)
        except BadFraming:
            continue
        assert not (response.chunked and response.length is not None)
        onward = http1.lines(response.fields, frozenset())
        assert onward.count(b"\r") == onward.count(b"\n") == onward.count(b"\r\n") == len(response.fields)
