"""A switch without the switch: all that can be checked before anything is touched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import hardware
from llmdeploy.engines import registry
from llmdeploy.errors import EngineMissing, ModelNotFound
from llmdeploy.service import placement
from llmdeploy.service.launch import remarks
from llmdeploy.service.placement import HeldMemory, Placement
from llmdeploy.service.ports import free_port

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.plan import Plan
    from llmdeploy.service.order import Order
    from llmdeploy.service.state import Record


@dataclass(frozen=True)
class DryRun:
    """The outcome of a switch, as far as it can be foreseen."""

    engine_version: str | None
    notes: tuple[str, ...]
    """Remarks: things that are not known yet, or will be done on the way."""
    plan: Plan | None = None
    """The plan; None if the weights are missing, or are known only to a daemon that does not run."""
    beside: bool | None = None
    """Whether it fits beside what serves; None if nothing serves, or it is not known."""
    room: str = ""
    """The reason for `beside`."""
    files: tuple[Path, ...] = ()
    """The engine's own configuration files, which the start writes."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "engine_version": self.engine_version,
            "notes": list(self.notes),
            "plan": self.plan and asdict(self.plan),
            "beside": self.beside,
            "room": self.room,
            "files": [str(file) for file in self.files],
        }


def dry_run(order: Order, record: Record | None, *, beside: bool = True) -> DryRun:
    """Check all that can be checked; `record`: what serves; `beside`: whether both servers may run at once.

    Raises the error that would make the switch fail.
    """
    engine = registry.get(order.settings.engine, order.settings)
    found = engine.status()
    if not found.usable:
        raise EngineMissing(found.detail, found.hint)
    daemon = engine.daemon.spec(order.wishes, free_port()) if engine.daemon else None
    weights = engine.resolve(order.model)
    if daemon is not None and daemon.argv:
        if isinstance(order.model, Path) and not order.model.exists():
            raise ModelNotFound(f"there is no file `{order.model}`", "`llmdeploy models` lists names that need no file")
        note = f"{engine.name} is started for it: what it has and needs is known then"
        reason = placement.one_after_the_other(shares=_shares(engine, record), allowed=beside) if record else ""
        return DryRun(found.version, (note,), beside=False if reason else None, room=reason)
    notes = remarks(order, weights)
    if not weights.is_present():
        fetched = () if weights.reused_from else (f"`{weights}` is not on this machine: it is fetched first",)
        return DryRun(found.version, (*notes, *fetched))
    plan, decided = _plan(order, engine, weights.facts(), record, beside=beside)
    plan.require_fit(str(order.model))
    spec = engine.server(weights, plan, served_name=order.served_name, port=free_port())
    fits, reason = (decided.beside, decided.reason) if decided else (None, "")
    return DryRun(found.version, notes, plan, fits, reason, tuple(spec.files))


def _plan(
    order: Order, engine: Engine, facts: ModelFacts, record: Record | None, *, beside: bool
) -> tuple[Plan, Placement | None]:
    """Return the plan, and whether the server fits beside what serves; None if nothing serves."""
    machine = hardware.detect()
    plan = engine.plan(facts, machine, order.wishes)
    if record is None:
        return plan, None
    shares = _shares(engine, record)
    # An external daemon counts the memory that it frees for another model itself.
    given = HeldMemory() if shares and record.server is None else _held(record)
    alone = engine.plan(facts, placement.without(machine, given), order.wishes)
    decided = placement.decide(plan, alone, shares=shares, allowed=beside)
    return decided.plan, decided


def _shares(engine: Engine, record: Record | None) -> bool:
    return record is not None and engine.name == record.engine and not engine.side_by_side


def _held(record: Record) -> HeldMemory:
    """Return the memory that the server on record holds, according to its receipt."""
    memory = (record.receipt or {}).get("memory") or {}
    gpus = memory.get("gpu_bytes") or {}
    return HeldMemory(int(memory.get("ram_bytes", 0)), tuple((int(index), int(size)) for index, size in gpus.items()))
