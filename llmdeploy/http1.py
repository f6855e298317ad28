"""HTTP/1.1 framing: heads are parsed, and bodies are followed to their end. Bytes in, bytes out, no sockets.

Bytes that two readers could read in two ways are refused, so that the gateway and the engine behind it never disagree
on the end of a request.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import httptools

MAX_HEAD = 64 * 1024
"""Bytes of the longest head that is accepted."""
MAX_LINE = 8000
"""Bytes of the longest line of a request's head that is accepted. llama.cpp takes 8,192."""
MAX_FIELDS = 90
"""Headers of a request that are accepted. llama.cpp takes 100, and the gateway adds some."""
END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding"
    b" upgrade".split()
)
"""Headers for one connection only. They are never passed on, nor are those that `Connection` names."""

Fields = list[tuple[bytes, bytes]]
"""Headers in the order received: names in lower case, values without surrounding white space."""

_REQUEST_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n")
_ABSOLUTE = re.compile(r"http://([^/?#]+)(.*)", re.IGNORECASE)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_BEGINNING = re.compile(rb"[A-Z]{1,20}(?: |$)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]{0,128})?\r\n")
_CHUNK_BEGINNING = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:[ \t]{0,8}(?:;[\t -~\x80-\xff]{0,128})?\r?)?)?")


class BadFraming(Exception):
    """Bytes that are not an HTTP message, or are ambiguous. `status` is the status of the answer to a client."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Request(NamedTuple):
    """The head of a request."""

    method: str
    target: bytes
    """Path and query, as received."""
    path: str
    is_1_1: bool
    host: bytes
    fields: Fields
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    connection: frozenset[bytes]
    """Headers that `Connection` names, which are not passed on; without `close` and `keep-alive`."""
    length: int
    """Bytes of the body; 0 if it is chunked."""

    def get(self, name: bytes) -> bytes | None:
        """Return the value of the first header of that name, or None."""
        return next((value for it, value in self.fields if it == name), None)

    def of_length(self, length: int) -> Request:
        """Return the same head with another length of the body; `fields` keep the old one."""
        return Request(*self[:-1], length)


class Response(NamedTuple):
    """The head of a response."""

    status: int
    reason: bytes
    fields: Fields
    chunked: bool
    keep_alive: bool
    connection: frozenset[bytes]
    length: int | None

    def get(self, name: bytes) -> bytes | None:
        """Return the value of the first header of that name, or None."""
        return next((value for it, value in self.fields if it == name), None)

    def of_length(self, length: int) -> Response:
        """Return the same head with another length of the body; `fields` keep the old one."""
        return Response(*self[:-1], length)


# Heads


class _Fields:
    """The headers that httptools reports."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))


class _Framing(NamedTuple):
    host: bytes | None
    length: int | None
    chunked: bool
    expect: bytes | None
    close: bool
    connection: frozenset[bytes]


_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"connection"})
_SINGLE = frozenset(b"origin authorization x-api-key content-type content-encoding".split())
"""Headers besides those of the framing whose meaning would depend on the reader if a request had two of them."""
_CLOSE_OR_KEEP = frozenset({b"close", b"keep-alive"})


def check_beginning(head: bytes | bytearray) -> None:
    """Raise BadFraming for bytes that cannot become a head, rather than wait for an end that never comes."""
    if not _BEGINNING.match(head):
        what = "this is TLS; the address speaks plain HTTP" if head[0] == 0x16 else "this is not an HTTP request"
        raise BadFraming(what)
    if head.count(b"\n") != head.count(b"\r\n"):
        raise BadFraming("a line of the head does not end in CR LF")
    if len(head) > MAX_HEAD:
        raise BadFraming(f"the head is longer than {MAX_HEAD} bytes", 431)


def parse_request(head: bytes) -> Request:
    """Parse a complete head, which ends with its empty line. Raises BadFraming."""
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise BadFraming("the request line is not valid HTTP/1.1")
    fields = _fields(httptools.HttpRequestParser, head)
    _require_single(fields)
    if len(fields) > MAX_FIELDS:
        raise BadFraming(f"the head has more than {MAX_FIELDS} headers", 431)
    if len(head) > MAX_LINE and any(len(it) > MAX_LINE for it in head.split(b"\r\n")):
        raise BadFraming(f"a line of the head is longer than {MAX_LINE} bytes", 431)
    framing = _framing(fields)
    method, target, is_1_1 = line[1].decode(), line[2], line[3] == b"1"
    host = framing.host
    if host is None:
        if is_1_1:
            raise BadFraming("an HTTP/1.1 request needs one `Host`")
        host = b""
    if framing.chunked and not is_1_1:
        raise BadFraming("an HTTP/1.0 body cannot be chunked")
    if target[0] != 0x2F:
        host, target = _origin_form(method, target, host)
    if host and not _HOST.fullmatch(host):
        raise BadFraming("`Host` is not a name or an address")
    if framing.expect is not None and framing.expect.lower() != b"100-continue":
        raise BadFraming("`Expect` is only supported with 100-continue", 417)
    return Request(
        method=method,
        target=target,
        path=target.partition(b"?")[0].decode(),
        is_1_1=is_1_1,
        host=host,
        fields=fields,
        chunked=framing.chunked,
        keep_alive=is_1_1 and not framing.close,
        expects_continue=is_1_1 and framing.expect is not None,
        connection=framing.connection,
        length=framing.length or 0,
    )


def parse_response(head: bytes) -> Response:
    """Parse a complete head, which ends with its empty line. Raises BadFraming."""
    line = _STATUS_LINE.match(head)
    if line is None:
        raise BadFraming("the status line is not valid HTTP/1.1")
    fields = _fields(httptools.HttpResponseParser, head)
    framing = _framing(fields)
    is_1_1 = line[1] == b"1"
    return Response(
        status=int(line[2]),
        reason=line[3] or b"",
        fields=fields,
        chunked=framing.chunked,
        keep_alive=is_1_1 and not framing.close,
        connection=framing.connection,
        length=framing.length,
    )


def _fields(parser: type[httptools.HttpRequestParser | httptools.HttpResponseParser], head: bytes) -> Fields:
    """Return the headers, each checked: no folding, bare CR or LF, control character, or space before a colon."""
    found = _Fields()
    try:
        parser(found).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # the client offers another protocol, which is ignored
    except httptools.HttpParserError as error:
        raise BadFraming(f"the head is malformed: {error}") from None
    return found.fields


def _require_single(fields: Fields) -> None:
    """Raise BadFraming if a header occurs twice that decides who may send the request, or how it is read."""
    found: set[bytes] = set()
    for name, _ in fields:
        if name in found:
            raise BadFraming(f"there is more than one `{name.decode().title()}`")
        if name in _SINGLE:
            found.add(name)


def _framing(fields: Fields) -> _Framing:
    """Return the headers that define the end of the message. Raises BadFraming if one occurs twice."""
    host: bytes | None = None
    length: int | None = None
    expect: bytes | None = None
    chunked = False
    connection: frozenset[bytes] = frozenset()
    for name, value in fields:
        if name not in _FRAMING:
            continue
        if name == b"host":
            if host is not None:
                raise BadFraming("there is more than one `Host`")
            host = value
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise BadFraming("`Content-Length` is not one number")
            length = int(value)
        elif name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise BadFraming("a `Transfer-Encoding` other than chunked is not supported")
            chunked = True
        elif name == b"connection":
            connection |= frozenset(token.strip(b" \t") for token in value.lower().split(b","))
        else:
            expect = value
    if chunked and length is not None:
        raise BadFraming("`Content-Length` and `Transfer-Encoding` contradict each other")
    return _Framing(host, length, chunked, expect, b"close" in connection, connection - _CLOSE_OR_KEEP)


def _origin_form(method: str, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """Return host and path of a target in the form for proxies, `http://host/path`, which overrides `Host`."""
    if method == "OPTIONS" and target == b"*":
        return host, target
    absolute = _ABSOLUTE.fullmatch(target.decode())
    if absolute is None or (absolute[2] and absolute[2][0] not in "/?"):
        raise BadFraming("the target of the request is not a path")
    path = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
    return absolute[1].encode(), path.encode()


def lines(fields: Fields, without: frozenset[bytes]) -> bytes:
    """Return the header lines without the named headers."""
    return b"".join([b"%b: %b\r\n" % field for field in fields if field[0] not in without])


# Bodies


class Body(Protocol):
    """The progress through a body, up to its end."""

    done: bool
    """Whether the body is complete."""

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """Return how many bytes of `data` belong to the body, and add their content to `payload`. Raises BadFraming."""

    @property
    def at_boundary(self) -> bool:
        """Whether another chunk could be inserted after the bytes that were fed so far."""


class Length:
    """A body of a known length."""

    __slots__ = ("_left", "done")
    at_boundary = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        size = len(data)
        if size >= self._left:
            size = self._left
            self.done = True
        self._left -= size
        if payload is not None:
            payload.append(data[:size])
        return size


class UntilClose:
    """A body that ends with its connection."""

    __slots__ = ("done",)
    at_boundary = False

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        if payload is not None:
            payload.append(data)
        return len(data)


# The part of a chunk that comes next. Plain integers: they are compared for every piece of an answer.
_SIZE = 0
_DATA = 1
_CRLF = 2
_END = 3


class Chunked:
    """A chunked body. Trailers are refused: they are not used in practice, and readers disagree on them."""

    __slots__ = ("_left", "_rest", "_state", "done")

    def __init__(self) -> None:
        self._left = 0
        self._rest = b""
        self._state = _SIZE
        self.done = False

    @property
    def at_boundary(self) -> bool:
        return self._state == _SIZE and not self._rest

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        before = len(self._rest)
        if before:
            data = self._rest + data
            self._rest = b""
        at, size, state = 0, len(data), self._state
        while at < size:
            if state == _SIZE:
                line = _CHUNK.match(data, at)
                if line is None:
                    self._keep(data[at:], _CHUNK_BEGINNING)
                    break
                at = line.end()
                self._left = int(line[1], 16)
                state = _DATA if self._left else _END
            elif state == _DATA:
                end = at + self._left
                if payload is not None:
                    payload.append(data[at:end])
                if end > size:
                    self._left = end - size
                    break
                at, state = end, _CRLF
            elif data.startswith(b"\r\n", at):
                at += 2
                if state == _END:
                    self.done = True
                    self._state = state
                    return at - before
                state = _SIZE
            else:
                self._keep(data[at:], _CR)
                break
        self._state = state
        return size - before

    def _keep(self, rest: bytes, beginning: re.Pattern[bytes]) -> None:
        """Keep the beginning of a line until its end comes. Raises BadFraming if it cannot become a valid line."""
        if not beginning.fullmatch(rest):
            raise BadFraming("a chunk of the body is malformed")
        self._rest = rest


_CR = re.compile(rb"\r?")


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
