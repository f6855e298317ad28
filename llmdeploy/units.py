"""Numbers of bytes and seconds, for people."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def in_gib(size: float) -> str:
    """A number of bytes: GiB, or MiB below one, or KiB below one of these."""
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= MIB or size == 0 else f"{size / 1024:.0f} KiB"


def in_time(seconds: float) -> str:
    """A length of time, to the second: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
