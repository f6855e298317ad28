"""Bytes, seconds and large numbers as text for people."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def in_gib(size: float) -> str:
    """Format a number of bytes in the largest unit, up to GiB, of which there is at least one."""
    for unit, name in ((MIB, "MiB"), (1024, "KiB")):
        if unit <= size < 1024 * unit:
            return f"{size / unit:.0f} {name}"
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size:.0f} B"


def in_time(seconds: float) -> str:
    """Format a duration: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def in_words(count: int) -> str:
    """Format a large number with three digits: `8.29 billion`, `494 million`."""
    return f"{count / 1e9:.3g} billion" if count >= 999.5e6 else f"{count / 1e6:.3g} million"
