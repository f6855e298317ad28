"""Whether a new server finds room beside the one that serves, or only once that one is gone. Pure but for `held`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmdeploy.units import MIB, in_gib

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware
    from llmdeploy.plan import Plan
    from llmdeploy.service.process import ProcessId

WORTH_WAITING = 64 * MIB
"""Bytes; less is no matter of waiting until it is free."""


@dataclass(frozen=True)
class HeldMemory:
    """What a server holds of a machine, in bytes."""

    memory: int = 0
    gpus: tuple[tuple[int, int], ...] = ()
    """(index, bytes) of each GPU."""


@dataclass(frozen=True)
class Placement:
    beside: bool
    plan: Plan
    """Of the new server."""
    reason: str


def decide(beside: Plan, alone: Plan, *, shares: bool, allowed: bool = True) -> Placement:
    """Side by side, where that costs the new server nothing.

    `beside` is its plan for the machine as it is, `alone` for the machine without the old server; `shares`: the two
    are one daemon's. `allowed`: the user has nothing against it.
    """
    if reason := one_after_the_other(shares=shares, allowed=allowed):
        return Placement(False, alone, reason)
    taken = max(beside.needed_bytes, beside.takes or 0)
    if beside.available and taken > beside.available.bytes:
        return Placement(False, alone, f"{in_gib(taken)} needed and {in_gib(beside.available.bytes)} free beside it")
    if (beside.context.value, beside.parallel.value) != (alone.context.value, alone.parallel.value):
        reason = (
            f"beside it {beside.context.value} tokens x {beside.parallel.value} would fit, "
            f"alone {alone.context.value} x {alone.parallel.value}"
        )
        return Placement(False, alone, reason)
    free = f", {in_gib(beside.available.bytes)} free" if beside.available else ""
    return Placement(True, beside, f"both fit side by side: {in_gib(beside.needed_bytes)} needed{free}")


def one_after_the_other(*, shares: bool, allowed: bool) -> str:
    """Why the old server has to go first whatever room there is; empty where it need not."""
    if not allowed:
        return "one after the other, as asked for"
    return "one engine of this kind runs at a time, so the old server goes first" if shares else ""


def without(machine: Hardware, held: HeldMemory) -> Hardware:
    """The machine once a server is gone."""
    given = dict(held.gpus)
    gpus = tuple(
        gpu if gpu.memory_free is None else replace(gpu, memory_free=gpu.memory_free + given.get(gpu.index, 0))
        for gpu in machine.gpus
    )
    memory = min(machine.memory_total, machine.memory_available + held.memory)
    return replace(machine, memory_available=memory, gpus=gpus)


def held_memory(server: ProcessId | None, gpus: tuple[tuple[int, int], ...]) -> HeldMemory:
    """What a server holds: the machine's memory by its processes, that of GPUs as `taken` found it."""
    return HeldMemory(_memory(server) if server else 0, gpus)


def taken(before: Hardware, now: Hardware) -> tuple[tuple[int, int], ...]:
    """What a start has taken of each GPU: (index, bytes). `now` is when it is ready; later others come and go.

    NVML knows processes by the machine's own pids, which a container does not see.
    """
    free = {gpu.index: gpu.memory_free for gpu in now.gpus}
    gpus = [
        (gpu.index, gpu.memory_free - (free.get(gpu.index) or 0))
        for gpu in before.gpus
        if gpu.memory_free is not None and free.get(gpu.index) is not None
    ]
    return tuple((index, size) for index, size in gpus if size > WORTH_WAITING)


def is_free(machine: Hardware, wanted: Hardware) -> bool:
    """Whether nearly all that was expected to be free is: others use memory too."""
    close = [(machine.memory_available, wanted.memory_available)]
    close += [(a.memory_free or 0, b.memory_free or 0) for a, b in zip(machine.gpus, wanted.gpus, strict=False)]
    return all(have >= want - WORTH_WAITING or have >= 0.95 * want for have, want in close)


def _memory(server: ProcessId) -> int:
    """Bytes that a process and its children have for themselves: mapped files are the kernel's to give back."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(server.pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                memory = one.memory_info()
                total += max(0, memory.rss - getattr(memory, "shared", 0))
    return total
