"""The signs by which a server at work is told from one that hangs, as data of each engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vitals:
    """The signs of life of one engine's servers."""

    counters: tuple[str, ...] = ()
    """Beginnings of the lines of `/metrics` that change while it works; empty if it has none."""
    front_cores: float = 0.0
    """CPU cores that the server's own process may use while it only waits for its children; 0 if it works itself."""
    cores: float = 0.002
    """CPU cores in use by one process from which on it counts as working: what waits for a slow disk uses that much."""
    gpu_cores: float = 0.002
    """The same for a server on a GPU: some processes wait for the GPU in a busy loop."""
