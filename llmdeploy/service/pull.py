"""Weights of models, fetched for engines and not served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import fit, hardware
from llmdeploy.engines import registry
from llmdeploy.errors import DoesNotFit, EngineMissing, LlmdeployError, ModelNotFound, UsageError
from llmdeploy.models import lock, requirements
from llmdeploy.models.reference import HubRepo, parse
from llmdeploy.models.stores import folders
from llmdeploy.paths import state_dir
from llmdeploy.service.events import Download, Note
from llmdeploy.service.ports import free_port
from llmdeploy.service.starter import Starter

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.lock import Pin
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.plan import Plan
    from llmdeploy.service.events import OnEvent
    from llmdeploy.service.order import Order

LOG = "pull.log"
"""Of a daemon that is started only to fetch."""
LeftOut = Callable[[str, LlmdeployError], None]
"""Told of an engine that is left out, and why."""


@dataclass(frozen=True)
class Asked:
    """What is to be fetched, and how."""

    order: Order
    pin: Pin | None = None
    """What it must be, by the lock."""
    folder: Path | None = None
    """Where the files go, instead of the cache that all engines share."""
    exact: bool = False
    """Whether they must be of its source at a commit that is known: they are to be locked."""

    @property
    def anywhere(self) -> bool:
        """Whether the same files of another program will do."""
        return not (self.exact or self.pin or self.folder)


class Pull:
    """One model for one engine: `look`, `fit`, `fetch`, and in any case `close`."""

    need: Requirements
    plan: Plan | None = None

    def __init__(self, asked: Asked, emit: OnEvent) -> None:
        self.order = asked.order
        self.asked = asked
        self.engine = registry.get(asked.order.settings.engine, asked.order.settings)
        self._artefact: Any = None
        self._emit = emit
        self._starter = Starter(self.engine, emit, state_dir() / LOG, asked.order.timeout)

    def look(self, *, start: bool) -> None:
        """Find what is needed, and what of it is missing; asks the source.

        `start`: have the engine's daemon run, where only that can fetch. Raises EngineMissing, ModelNotFound,
        DownloadFailed, that of what cannot be locked too.
        """
        if self.engine.daemon(self.order.wishes, free_port()) is not None and start:
            self._starter.reach_engine(self.order.wishes)
        self._artefact = self.engine.artefact(self.order.model, anywhere=self.asked.anywhere)
        if saved := self.engine.saved(self._artefact):
            self._emit(Note(saved))
        self.need = self.engine.need(self._artefact, self.asked.folder)
        if self.asked.folder and self.need.folder != self.asked.folder:
            raise UsageError(
                f"`{self.need.source}` is on this machine already, so nothing is fetched into `{self.asked.folder}`",
                "leave `--dir` out",
            )
        if self.asked.exact:
            lock.pin(str(self.order.model), self.engine.name, self.need)
        if self.asked.pin:
            lock.require_same(self.asked.pin, self.need)

    def fit(self, machine: Hardware) -> None:
        """See that the machine's memory holds it, where its sizes can be had. Raises DoesNotFit, ModelInvalid."""
        self.plan = fit.foreseen(self.engine, self._artefact, machine, self.order.wishes)
        if self.plan is not None:
            self.plan.require_fit(str(self.order.model))

    def fetch(self) -> bool:
        """Fetch what is missing; whether anything was. Raises DownloadFailed."""
        if self.asked.folder and isinstance(repo := parse(self.need.source), HubRepo):
            folders.save(self.asked.folder, repo, [file.name for file in self.need.files])
        if self.need.present and (self.asked.folder or self.engine.present(self._artefact)):
            return False
        self.engine.pull(
            self._artefact,
            lambda file, done, total: self._emit(Download(file, done, total)),
            self.asked.folder,
        )
        return True

    @property
    def pin(self) -> Pin:
        return lock.pin(str(self.order.model), self.engine.name, self.need)

    @property
    def serves_as(self) -> str:
        """What `serve` takes to serve it: its name, or where it lies in a folder."""
        if self.asked.folder is None:
            return str(self.order.model)
        gguf = next((file.name for file in self.need.files if file.name.endswith(".gguf")), None)
        return str(self.asked.folder if gguf is None else self.asked.folder / gguf)

    def close(self) -> None:
        """End a daemon that was started for it."""
        self._starter.stop()


class Pulls:
    """Several pulls, of which none fetches a byte before all are known to be possible."""

    def __init__(self, emit: OnEvent, left_out: LeftOut | None = None) -> None:
        """`left_out`: told of engines that cannot be used for it; None: that is an error."""
        self._emit = emit
        self._left_out = left_out
        self._stack = ExitStack()

    def __enter__(self) -> Pulls:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def look(self, asked: Iterable[Asked], *, start: bool, fit: bool) -> list[Pull]:
        """Those that can be done: engine, disk and, where `fit` is asked, memory. Raises what keeps them from it."""
        machine = hardware.detect() if fit else None
        found = []
        for one in asked:
            pull = Pull(one, self._emit)
            self._stack.callback(pull.close)
            try:
                self._check(pull, machine, start=start)
            except (EngineMissing, ModelNotFound, DoesNotFit) as error:
                if self._left_out is None:
                    raise
                self._left_out(pull.engine.name, error)
                continue
            found.append(pull)
        if not found:
            raise ModelNotFound("no engine here can use it", "name an engine with `--engine`: its error tells more")
        requirements.require_room([pull.need for pull in found])
        return found

    def _check(self, pull: Pull, machine: Hardware | None, *, start: bool) -> None:
        if self._left_out and not (status := pull.engine.status()).usable:
            raise EngineMissing(status.detail, status.hint)
        pull.look(start=start)
        if machine is not None:
            pull.fit(machine)
