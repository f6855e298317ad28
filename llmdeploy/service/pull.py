"""The weights of one model for one engine: fetched, and not served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import engines
from llmdeploy.paths import state_dir
from llmdeploy.service.candidate import Candidate
from llmdeploy.service.ports import free_port

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.need import Need
    from llmdeploy.plan import Plan
    from llmdeploy.service.candidate import Order, Tell

LOG = "pull.log"
"""Of a daemon that is started only to fetch."""


class Pull:
    """`look`, `fetch`, and in any case `close`."""

    need: Need

    def __init__(self, order: Order, tell: Tell, folder: Path | None = None) -> None:
        """`folder`: where the files go, instead of the cache that all engines share."""
        self.order = order
        self.engine = engines.get(order.settings.engine, order.settings)
        self.folder = folder
        self._artefact: Any = None
        self._tell = tell
        self._candidate = Candidate(order, self.engine, tell, state_dir() / LOG)

    def look(self, *, start: bool) -> Need:
        """What is needed, and what of it is missing; asks the source.

        `start`: have the engine's daemon run, where only that can fetch. Raises EngineMissing, ModelNotFound,
        DownloadFailed.
        """
        if self.engine.daemon(self.order.wishes, free_port()) is not None and start:
            self._candidate.reach()
        self._artefact = self.engine.artefact(self.order.model)
        self.need = self.engine.need(self._artefact, self.folder)
        return self.need

    def plan(self, machine: Hardware) -> Plan:
        """Its settings on that machine. Raises DoesNotFit, DownloadFailed, ModelInvalid."""
        plan = self.engine.plan(self.engine.facts(self._artefact), machine, self.order.wishes)
        plan.demand_fit(str(self.order.model))
        return plan

    def fetch(self) -> bool:
        """Fetch what is missing; whether anything was. Raises DownloadFailed."""
        if self.need.present if self.folder else self.engine.present(self._artefact):
            return False
        self.engine.pull(
            self._artefact,
            lambda file, done, total: self._tell({"event": "download", "file": file, "done": done, "total": total}),
            self.folder,
        )
        return True

    def close(self) -> None:
        """End a daemon that was started for it."""
        self._candidate.stop()
