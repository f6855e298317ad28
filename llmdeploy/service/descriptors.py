"""The files and connections that the service may have open."""

from __future__ import annotations

from contextlib import suppress

RESERVED = 32
"""Descriptors for the service itself: its record, logs, pipes, and a server that is started again."""
UNKNOWN = 1024
"""Descriptors that are assumed on a system without such a limit."""
FEWEST = 8
"""Connections of applications that are accepted under any limit."""
VARIABLE = "LLMDEPLOY_OPEN_FILES"
"""The variable that tells `watchdog.py` the limit for the server."""

_for_servers: dict[str, str] = {}
"""The environment that servers get, once the limit was raised."""


def raise_limit() -> int:
    """Raise the limit of open files to the highest that the system allows, and return it."""
    try:
        import resource
    except ImportError:  # Windows
        return UNKNOWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS refuses an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _for_servers[VARIABLE] = str(soft)
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNKNOWN if now < 0 else now


def for_servers() -> dict[str, str]:
    """Return the environment by which a server gets the limit that this process was started with, before it was raised.

    A program that waits with `select` fails on descriptors from 1024 up, which the usual limit keeps from it.
    """
    return _for_servers


def most_clients(descriptors: int, most: int) -> int:
    """Return how many connections of applications fit into so many descriptors; `most`: the largest number wanted.

    Each may need a second one, to the server: together they take 80 % of what the service does not need itself.
    """
    return max(FEWEST, min(most, (descriptors - RESERVED) * 4 // 10))
