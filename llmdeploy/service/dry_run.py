"""A switch without the switch: what can be known of it before anything is touched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import hardware
from llmdeploy.engines import registry
from llmdeploy.errors import EngineMissing, ModelNotFound
from llmdeploy.service import placement
from llmdeploy.service.placement import HeldMemory, Placement
from llmdeploy.service.ports import free_port

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.plan import Plan
    from llmdeploy.service.order import Order
    from llmdeploy.service.state import Record


@dataclass(frozen=True)
class Rehearsal:
    engine_version: str | None
    notes: tuple[str, ...]
    """What is not known yet, or will be done on the way."""
    plan: Plan | None = None
    """None where the weights are not here, or only a daemon that does not run knows them."""
    beside: bool | None = None
    """Whether it fits beside what serves; None where nothing serves, or it is not known."""
    room: str = ""
    files: tuple[Path, ...] = ()
    """The backend's own configuration, which the start writes."""

    def document(self) -> dict[str, Any]:
        return {
            "engine_version": self.engine_version,
            "notes": list(self.notes),
            "plan": self.plan and asdict(self.plan),
            "beside": self.beside,
            "room": self.room,
            "files": [str(file) for file in self.files],
        }


def rehearse(order: Order, record: Record | None, *, beside: bool = True) -> Rehearsal:
    """Check all that can be checked; `record`: what serves; `beside`: whether both may run at once.

    Raises what would keep the switch from being done.
    """
    engine = registry.get(order.settings.engine, order.settings)
    found = engine.status()
    if not found.usable:
        raise EngineMissing(found.detail, found.hint)
    daemon = engine.daemon(order.wishes, free_port())
    artefact = engine.artefact(order.model)
    if daemon is not None and daemon.argv:
        if isinstance(order.model, Path) and not order.model.exists():
            raise ModelNotFound(f"there is no file `{order.model}`", "`llmdeploy models` lists names that need no file")
        note = f"{engine.name} is started for it: what it has and needs is known then"
        reason = placement.one_after_the_other(shares=_shares(engine, record), allowed=beside) if record else ""
        return Rehearsal(found.version, (note,), beside=False if reason else None, room=reason)
    saved = engine.saved(artefact)
    notes = (saved,) if saved else ()
    if not engine.present(artefact):
        return Rehearsal(found.version, notes or (f"`{artefact}` is not on this machine: it is fetched first",))
    plan, decided = _plan(order, engine, engine.facts(artefact), record, beside=beside)
    plan.require_fit(str(order.model))
    spec = engine.server(artefact, plan, served_name=order.served_name, port=free_port())
    fits, reason = (decided.beside, decided.reason) if decided else (None, "")
    return Rehearsal(found.version, notes, plan, fits, reason, tuple(spec.files))


def _plan(
    order: Order, engine: Engine[Any], facts: ModelFacts, record: Record | None, *, beside: bool
) -> tuple[Plan, Placement | None]:
    """The settings, and whether it finds room beside what serves, where anything does."""
    machine = hardware.detect()
    plan = engine.plan(facts, machine, order.wishes)
    if record is None:
        return plan, None
    shares = _shares(engine, record)
    # A daemon of another's counts what it lets go for a model itself.
    given = HeldMemory() if shares and record.server is None else _held(record)
    alone = engine.plan(facts, placement.without(machine, given), order.wishes)
    decided = placement.decide(plan, alone, shares=shares, allowed=beside)
    return decided.plan, decided


def _shares(engine: Engine[Any], record: Record | None) -> bool:
    return record is not None and engine.name == record.engine and not engine.side_by_side


def _held(record: Record) -> HeldMemory:
    """What serves holds of the machine, as its receipt says."""
    memory = (record.receipt or {}).get("memory") or {}
    gpus = memory.get("gpu_bytes") or {}
    return HeldMemory(int(memory.get("ram_bytes", 0)), tuple((int(index), int(size)) for index, size in gpus.items()))
