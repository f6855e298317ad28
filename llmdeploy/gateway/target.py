"""The servers that requests go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Adapt = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Target:
    """One server that serves one model. Two targets are never equal: a restarted server is another target."""

    engine: str
    model: str
    """The model's name, as applications send it and the server knows it."""
    host: str
    port: int
    capabilities: tuple[str, ...] = ("text",)
    """`text`, `image`, and further ones that the engine reports."""
    context: int | None = None
    """Tokens that one request may use; None if unknown."""
    adapt: Adapt | None = None
    """A function that translates a request into the engine's dialect; None if the engine needs none.

    It returns the same object if nothing changes.
    """
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the fields, by route, that the engine would ignore or answer in a form of its own."""
    closes_streams: bool = False
    """Whether the server closes a connection after a chunked answer without having announced it."""
    tls: bool = False
    """Whether the server is reached over TLS."""
    key: str = field(default="", repr=False)
    """The server's own key, which the gateway sends and applications never see; empty if the server asks for none."""
    prefix: str = ""
    """The path before every route of a server behind a proxy, such as `/ollama`."""

    @property
    def authority(self) -> str:
        """The value of `Host` in requests to the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"
