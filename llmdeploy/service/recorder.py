"""Keeps the service's record on disk up to date."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from llmdeploy.errors import LlmdeployError
from llmdeploy.service import state

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmdeploy.service.state import Record

RECORD_WATCH = 1.0
"""Seconds between two looks at the record while it serves, and between two writings of a download's progress."""


class Recorder:
    """The record of the service, in memory and on disk."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._began = time.monotonic()
        self._written = 0.0
        self._is_outdated = False
        """Whether the file is older than `record`."""

    @property
    def elapsed(self) -> float:
        """Seconds since the service began."""
        return time.monotonic() - self._began

    @property
    def was_written_lately(self) -> bool:
        """Whether the file was written within the last `RECORD_WATCH` seconds."""
        return self.elapsed <= self._written + RECORD_WATCH

    def update(self, **changes: object) -> None:
        """Change fields of the record, and write it. Raises StateUnwritable."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type] # checked where it is called
        self._written = self.elapsed
        self._is_outdated = True
        state.write(self.record)
        self._is_outdated = False

    def update_start(self, **changes: object) -> None:
        """Change fields that tell how far a start is; nothing is changed while a server is ready."""
        if self.record.state == "ready" and "state" not in changes:
            return  # it serves: what goes on is the receipt's or a switch's
        with suppress(LlmdeployError):  # a record that cannot be written any more ends no start
            self.update(**changes)

    def fail(self, error: LlmdeployError) -> None:
        """Put the error on record; if that cannot be written, no record is better than one that says `starting`."""
        with suppress(LlmdeployError):  # the first failure is the one to tell
            try:
                self.update(state="failed", switch=None, error=error.as_document())
            except LlmdeployError:
                state.forget()

    async def watch(self, keep_token: Callable[[], None] = lambda: None) -> None:
        """Write the record again if it was deleted, or a full disk did not take it: commands find the service by it.

        `keep_token` does the same with the token, by which they may give it orders.
        """
        while True:
            await asyncio.sleep(RECORD_WATCH)
            with suppress(LlmdeployError, OSError):  # the disk may be full; the next round tries again
                if self._is_outdated or state.read() is None:
                    self.update()
                keep_token()
