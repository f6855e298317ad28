"""A switch without the switch: what can be known of it before anything is touched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import engines, hardware
from llmdeploy.errors import EngineMissing
from llmdeploy.service import room
from llmdeploy.service.ports import free_port
from llmdeploy.service.room import Held, Room

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.plan import Plan
    from llmdeploy.service.candidate import Order
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
    """Check all that can be checked; `record`: what serves. Raises what would keep the switch from being done.

    `beside`: whether the new server may start beside it.
    """
    engine = engines.get(order.settings.engine, order.settings)
    found = engine.status()
    if not found.usable:
        raise EngineMissing(found.detail, found.hint)
    daemon = engine.daemon(order.wishes, free_port())
    artefact = engine.artefact(order.model)
    if daemon is not None and daemon.argv:
        note = f"{engine.name} does not run now: what it has and needs is known once it is started"
        return Rehearsal(found.version, (note,))
    if not engine.present(artefact):
        return Rehearsal(found.version, (f"`{artefact}` is not on this machine: it is fetched first",))
    facts, machine = engine.facts(artefact), hardware.detect()
    plan = engine.plan(facts, machine, order.wishes)
    decided = None if record is None else _room(order, engine, facts, machine, plan, record, allowed=beside)
    plan = decided.plan if decided else plan
    plan.demand_fit(str(order.model))
    spec = engine.server(artefact, plan, served_name=order.served_name, port=free_port())
    reason = decided.reason if decided else ""
    return Rehearsal(found.version, (), plan, decided.beside if decided else None, reason, tuple(spec.files))


def _room(
    order: Order,
    engine: Engine[Any],
    facts: ModelFacts,
    machine: Hardware,
    beside: Plan,
    record: Record,
    *,
    allowed: bool,
) -> Room:
    """Whether it fits beside what serves."""
    shares = engine.name == record.engine and not engine.side_by_side
    # A daemon of another's counts what it lets go for a model itself.
    given = Held() if shares and record.server is None else _held(record)
    alone = engine.plan(facts, room.without(machine, given), order.wishes)
    return room.decide(beside, alone, shares=shares, allowed=allowed)


def _held(record: Record) -> Held:
    """What serves holds of the machine, as its receipt says."""
    memory = (record.receipt or {}).get("memory") or {}
    gpus = memory.get("gpu_bytes") or {}
    return Held(int(memory.get("ram_bytes", 0)), tuple((int(index), int(size)) for index, size in gpus.items()))
