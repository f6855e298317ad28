"""A server that runs already and is not ours: watched, and never ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Event, Thread
from typing import TYPE_CHECKING

from llmdeploy.service.health import reachable

if TYPE_CHECKING:
    from llmdeploy.engines.base import ServerSpec
    from llmdeploy.service.process import ProcessId

LOOK = 1.0
"""Seconds between two looks at it."""
PATIENCE = 15.0
"""Seconds it may be away: a service manager starts it again."""


class Attached:
    """What `Child` is for a server of our own, for one of another's."""

    server: ProcessId | None = None

    def __init__(self, spec: ServerSpec, on_line: Callable[[str], None]) -> None:
        self.ended: Future[int] = Future()
        """Done when it has been away for too long."""
        self.away = False
        """Whether it was not there at the last look."""
        self._let_go = Event()
        on_line(f"attached to {spec.base_url}, which keeps a log of its own")
        Thread(target=self._watch, args=(spec, on_line), daemon=True).start()

    def let_go(self) -> None:
        """Watch it no more."""
        self._let_go.set()

    def kill(self) -> None:
        """It is not ours to end."""
        self.let_go()

    def _watch(self, spec: ServerSpec, on_line: Callable[[str], None]) -> None:
        seen = time.monotonic()
        while not self._let_go.wait(LOOK):
            now = time.monotonic()
            self.away = not reachable(spec)
            if not self.away:
                seen = now
            elif now > seen + PATIENCE:
                on_line(f"{spec.base_url} has not answered for {PATIENCE:g} s")
                break
        self.ended.set_result(0)
