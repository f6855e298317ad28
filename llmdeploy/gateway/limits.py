"""The bounds on what applications can make the gateway spend."""

from __future__ import annotations

from dataclasses import dataclass

SMALL_BODY = 64 * 1024
"""Bytes of the largest body on routes that no engine answers, and of the largest body that is gathered as it comes."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the memory, the time and the connections that applications can make the gateway spend."""

    body: int = 64 * 2**20
    """Largest body of a request to an engine, in bytes."""
    held: int = 200
    """Largest number of requests that wait for a server."""
    hold_seconds: float = 600
    """Seconds that a held request waits for a server."""
    head_seconds: float = 10
    """Seconds for the first request to begin, for the complete head of a request, and for a pause within its body."""
    body_rate: float = 1024
    """Bytes per second at which a body must come on average, after its first `head_seconds`."""
    body_seconds: float = 300
    """Seconds for the complete body of a request."""
    buffered: int = 2**29
    """Bytes of all incomplete requests and request bodies in memory from which no request grows beyond a small one."""
    idle_seconds: float = 75
    """Seconds after which a connection without a request is closed."""
    unread_seconds: float = 60
    """Seconds after which a connection is ended whose client takes nothing of what is written to it."""
    lost_seconds: float = 2
    """Seconds that a request whose server cannot be reached waits for another server, or for a restart to begin."""
    clients: int = 4000
    """Largest number of connections of applications."""

    @property
    def shortest(self) -> float:
        """The shortest of the times, in seconds."""
        waits = (self.hold_seconds, self.idle_seconds, self.lost_seconds, self.unread_seconds)
        return min(self.head_seconds, self.body_seconds, *waits)
