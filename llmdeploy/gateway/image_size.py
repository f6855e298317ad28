"""The size of an image in pixels, from the first bytes of the file. Pure functions.

Engines decode a whole image before they look at its size, so 400 KiB of PNG can take more than a gigabyte there.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator

STEPS = (64, 64 * 1024, 2**20)
"""Bytes of a file that are looked at, in turns: the size of a JPEG comes after its metadata."""

_NO_SIZE = frozenset({0xC4, 0xC8, 0xCC})
"""The markers of a JPEG from 0xC0 to 0xCF that begin no frame."""


def size(base64: str) -> tuple[int, int] | None:
    """Return width and height of a file in Base64; None if it is not a PNG, JPEG, GIF, BMP or WebP that can be read."""
    for step in STEPS:
        try:
            data = binascii.a2b_base64(base64[: step * 4 // 3 // 4 * 4 + 4], strict_mode=True)
        except (binascii.Error, ValueError):
            return None
        found = _size(data)
        if found is not None and min(found) > 0:
            return found
        if found is not None or len(data) < step:
            break
    return None


def _size(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return (_big(data[16:20]), _big(data[20:24])) if data[12:16] == b"IHDR" and len(data) >= 24 else None
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        return _little(data[6:8]), _little(data[8:10])
    if data.startswith(b"BM") and len(data) >= 26:
        return _bitmap_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    if data.startswith(b"\xff\xd8"):
        return next(_jpeg_sizes(data), None)
    return None


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _bitmap_size(data: bytes) -> tuple[int, int]:
    if _little(data[14:18]) == 12:  # the header of OS/2
        return _little(data[18:20]), _little(data[20:22])
    # A negative height tells that the rows begin at the top.
    return _little(data[18:22]), abs(int.from_bytes(data[22:26], "little", signed=True))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return None


def _jpeg_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the sizes in the headers of frames, as far as the bytes go."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a byte of padding
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            yield _big(data[at + 7 : at + 9]), _big(data[at + 5 : at + 7])
            return
        else:
            at += 2 + _big(data[at + 2 : at + 4])
