"""The server that requests go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Adapt = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Target:
    """One server that answers for one model. Two are never equal: a server that was started again is another one."""

    engine: str
    model: str
    """The name that applications send and the server knows."""
    host: str
    port: int
    capabilities: tuple[str, ...] = ("text",)
    """`text`, `image`, and what the engine knows beyond."""
    context: int | None = None
    """Tokens one request may use, where that is known."""
    adapt: Adapt | None = None
    """The request in the engine's dialect, the same object where it is; None where its bytes can go as they are."""
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the engine would ignore, or answer in a form of its own: the names of fields, by route."""
    tls: bool = False
    prefix: str = ""
    """The path before every route, of a server behind a proxy: `/ollama`."""

    @property
    def authority(self) -> str:
        """What requests name as their host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"
