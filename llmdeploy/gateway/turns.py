"""The turns of connections with many requests at once: they share a part of each turn of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

SECONDS = 0.005
"""Seconds in each turn of the event loop for the requests of all such connections."""


class Waiting(Protocol):
    """A connection with more requests."""

    def go_on(self) -> None:
        """Answer some more of them."""


class Turns:
    """The connections that have more requests than are answered at once, in the order of their turns."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._is_due = False
        """Whether the event loop will run the next turns."""

    def add(self, connection: Waiting) -> None:
        """Let a connection go on when it is its turn."""
        self._waiting.append(connection)
        self._run_later()

    def _run_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_due = False
        end = time.monotonic() + SECONDS
        try:
            while self._waiting:
                self._waiting.popleft().go_on()
                if time.monotonic() >= end:
                    break
        finally:
            if self._waiting:
                self._run_later()
