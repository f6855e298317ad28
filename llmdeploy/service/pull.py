"""Downloads of weights for engines, without serving them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy import hardware
from llmdeploy.engines import registry
from llmdeploy.engines.base import plan_before_download
from llmdeploy.errors import DoesNotFit, EngineMissing, LlmdeployError, ModelNotFound, UsageError
from llmdeploy.models import lock, requirements
from llmdeploy.models.reference import HubRepo, parse
from llmdeploy.models.stores import folders
from llmdeploy.paths import state_dir
from llmdeploy.service.events import Download, Note
from llmdeploy.service.launch import remarks
from llmdeploy.service.ports import free_port
from llmdeploy.service.starter import Starter

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.lock_file import Pin
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.weights import Weights
    from llmdeploy.plan import Plan
    from llmdeploy.service.events import OnEvent
    from llmdeploy.service.order import Order

LOG = "pull.log"
"""The log of a daemon that is started only to download."""
LeftOut = Callable[[str, LlmdeployError], None]
"""Called with an engine that is left out, and the reason."""


@dataclass(frozen=True)
class PullOrder:
    """A download that is asked for."""

    order: Order
    pin: Pin | None = None
    """The files that it must be, according to `llmdeploy.lock`."""
    folder: Path | None = None
    """The folder for the files, instead of the cache that all engines share."""
    exact: bool = False
    """Whether the files must come from the model's own source, at a known commit: they are to be locked."""

    @property
    def anywhere(self) -> bool:
        """Whether the same files, found in another program's store, are good enough."""
        return not (self.exact or self.pin or self.folder)


class Pull:
    """The download of one model for one engine: `prepare`, `fit`, `fetch`, and in any case `close`."""

    need: Requirements
    plan: Plan | None = None
    _weights: Weights

    def __init__(self, wanted: PullOrder, emit: OnEvent) -> None:
        self.order = wanted.order
        self._wanted = wanted
        self.engine = registry.get(wanted.order.settings.engine, wanted.order.settings)
        self._emit = emit
        self._starter = Starter(self.engine, emit, state_dir() / LOG, wanted.order.timeout)

    def prepare(self, *, start: bool) -> None:
        """Find the files that are needed, and which of them are missing; asks the source.

        `start`: whether to start the engine's daemon, if only the daemon can download. Raises EngineMissing,
        ModelNotFound, DownloadFailed; the last one also for files that cannot be locked.
        """
        if self.engine.daemon is not None:
            self.engine.daemon.spec(self.order.wishes, free_port())  # raises EngineMissing without a program
            if start:
                self._starter.reach_engine(self.order.wishes)
                self.engine = self._starter.engine
        self._weights = self.engine.resolve(self.order.model, reuse=self._wanted.anywhere)
        for remark in remarks(self.order, self._weights):
            self._emit(Note(remark))
        self.need = self._weights.requirements(self._wanted.folder)
        if self._wanted.folder and self.need.folder != self._wanted.folder:
            raise UsageError(
                f"`{self.need.source}` is on this machine already, so nothing is fetched into `{self._wanted.folder}`",
                "leave `--dir` out",
            )
        if self._wanted.exact:
            lock.pin(str(self.order.model), self.engine.name, self.need)
        if self._wanted.pin:
            lock.require_same(self._wanted.pin, self.need)

    def fit(self, machine: Hardware) -> None:
        """Check that the model fits the machine's memory, if its sizes are known. Raises DoesNotFit, ModelInvalid."""
        self.plan = plan_before_download(self.engine, self._weights, machine, self.order.wishes)
        if self.plan is not None:
            self.plan.require_fit(str(self.order.model))

    def fetch(self) -> bool:
        """Download what is missing, and check locked files. Return whether any was missing. Raises DownloadFailed."""
        if self._wanted.folder and isinstance(repo := parse(self.need.source), HubRepo):
            folders.save(self._wanted.folder, repo, [file.name for file in self.need.files])
        missing = not (self.need.present and (self._wanted.folder or self._weights.is_present()))
        if missing:
            self._weights.download(self._show, self._wanted.folder)
        if self._wanted.pin:
            lock.require_unchanged(self._wanted.pin, self._wanted.folder, self._show)
        return missing

    def _show(self, file: str, done: int, total: int) -> None:
        self._emit(Download(file, done, total))

    @property
    def pin(self) -> Pin:
        """The entry of `llmdeploy.lock` for it."""
        return lock.pin(str(self.order.model), self.engine.name, self.need)

    @property
    def serves_as(self) -> str:
        """The argument with which `serve` serves it: its name, or its path in a folder."""
        if self._wanted.folder is None:
            return str(self.order.model)
        gguf = next((file.name for file in self.need.files if file.name.endswith(".gguf")), None)
        return str(self._wanted.folder if gguf is None else self._wanted.folder / gguf)

    def close(self) -> None:
        """End the daemon, if one was started for it."""
        self._starter.stop()


class Pulls:
    """Several pulls: none downloads a byte before all are known to be possible."""

    def __init__(self, emit: OnEvent, left_out: LeftOut | None = None) -> None:
        """`left_out`: called for each engine that cannot be used for it; None: that is an error."""
        self._emit = emit
        self._left_out = left_out
        self._stack = ExitStack()

    def __enter__(self) -> Pulls:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def prepare(self, orders: Iterable[PullOrder], *, start: bool, fit: bool) -> list[Pull]:
        """Check engine, disk and, with `fit`, memory; return the possible pulls. Raises the reason if none is."""
        machine = hardware.detect() if fit else None
        found = []
        for one in orders:
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
        pull.prepare(start=start)
        if machine is not None:
            pull.fit(machine)
