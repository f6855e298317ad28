"""The values and the text in a large body, counted while it comes, so that parsing it never takes long.

Sixty million bytes can be one image, which is parsed in no time, or twenty million empty arrays. Which of them it is
must be known before it is parsed, and the parser cannot be interrupted. So each piece is looked at when it comes.
"""

from __future__ import annotations

from llmdeploy.gateway.errors import Refused

STEP = 256 * 1024
"""Bytes that are looked at together. A body that is not larger is not looked at."""
MOST_VALUES = 300_000
"""Values in a body: texts, numbers, objects and arrays."""
MOST_TEXT = 16 * 2**20
"""Bytes of text with other characters than those of Base64; no context holds as much."""

_FEWER = "send less in one request"


class BodySize:
    """The values and the text of one body, as far as it has come."""

    __slots__ = ("_at", "_in_text", "_rest", "_text", "_values")

    def __init__(self) -> None:
        self._at = 0
        self._in_text = False
        """Whether the last byte was inside a string."""
        self._rest = b""
        """A backslash at the end of the last piece."""
        self._values = 1
        self._text = 0

    def look(self, body: bytearray, end: int, *, is_last: bool) -> Refused | None:
        """Count what has come up to `end`; return the refusal of the body if it is too much."""
        while end - self._at >= STEP or (is_last and self._at < end and end > STEP):
            with memoryview(body) as view:
                piece = bytes(view[self._at : min(self._at + STEP, end)])
            self._at += len(piece)
            self._count(piece)
            if self._values > MOST_VALUES:
                return _too_much(f"more than {MOST_VALUES:,} values")
            if self._text > MOST_TEXT:
                return _too_much(f"more than {MOST_TEXT // 2**20} MiB of text")
        return None

    def _count(self, piece: bytes) -> None:
        if self._in_text and not self._rest and b'"' not in piece and b"\\" not in piece and piece.isascii():
            return  # inside an image
        self._text += len(piece)
        text = self._rest + piece
        odd = (len(text) - len(text.rstrip(b"\\"))) % 2
        self._rest = text[len(text) - odd :]
        text = text[: len(text) - odd]
        if b"\\" in text:
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.split(b'"')
        outside = b"".join(parts[self._in_text :: 2])
        self._values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if len(parts) % 2 == 0:
            self._in_text = not self._in_text


def _too_much(what: str) -> Refused:
    return Refused(413, f"the body has {what}", code="too_large", hint=_FEWER)
