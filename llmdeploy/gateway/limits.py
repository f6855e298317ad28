"""How much the gateway takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each is a bound on what applications can make the gateway hold or wait for."""

    body: int = 64 * 2**20
    """Bytes of one request body."""
    held: int = 200
    """Requests that wait for a server at once."""
    hold_seconds: float = 600
    """A held request waits at most so long."""
    head_seconds: float = 10
    """For a head to come, and for each further piece of a body."""
    buffered: int = 2**30
    """Bytes of request bodies in memory, all requests together."""
    idle_seconds: float = 75
    """A connection without a request is closed after so long."""
    lost_seconds: float = 2
    """A request whose server cannot be reached waits so long for another, or for word that one comes."""
