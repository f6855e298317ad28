"""A number of bytes, as people read sizes of files."""

from __future__ import annotations

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def amount(size: int) -> str:
    """In the largest unit that it is one of: `5.2 GB`, `310 MB`, `12 bytes`."""
    for scale, unit in UNITS:
        if size >= scale:
            return f"{size / scale:.1f} {unit}" if size < 10 * scale else f"{size / scale:.0f} {unit}"
    return f"{size} bytes"
