"""The parts of the gateway and of a client's connection that requests in progress use."""

from __future__ import annotations

import asyncio
from typing import Protocol

from llmdeploy.gateway.metrics import Metrics


class Client(Protocol):
    """The connection of an application, as the request in progress on it sees it."""

    transport: asyncio.Transport
    is_blocked: bool
    """Whether the application does not keep up with what is written to it."""
    is_local: bool
    """Whether the application runs on this machine."""

    @property
    def cors(self) -> bytes:
        """The header lines that let a web page read the answer to the current request."""

    def answer(self, status: int, body: bytes, content_type: bytes = ..., headers: bytes = ...) -> None:
        """Send a complete answer. `headers` are complete header lines."""

    def done(self) -> None:
        """Take note that the answer was sent to its end."""

    def break_off(self, *, reset: bool) -> None:
        """Close the connection in the middle of an answer; with `reset`, so that the client sees an error."""

    def release_body(self) -> None:
        """Take note that the body of the request is no longer needed."""

    async def writable(self) -> None:
        """Wait until the client keeps up, or is gone."""


class Work(Protocol):
    """A request in progress, as the connection of its client sees it."""

    def abandon(self) -> None:
        """Take note that the client has left."""

    def pause(self) -> None:
        """Stop sending: the client does not keep up."""

    def resume(self) -> None:
        """Send again."""


class Host(Protocol):
    """The gateway, as a request in progress sees it."""

    metrics: Metrics

    def report(self, error: BaseException) -> None:
        """Log an error that is a bug in the gateway."""
