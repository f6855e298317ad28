"""The decision whether a new server starts beside the old one or after it. Only `held_memory` looks at processes."""

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
"""Bytes that are worth waiting for; less is not waited for."""


@dataclass(frozen=True)
class HeldMemory:
    """The memory of the machine that a server holds, in bytes."""

    memory: int = 0
    gpus: tuple[tuple[int, int], ...] = ()
    """The memory of each GPU: (index, bytes)."""


@dataclass(frozen=True)
class Placement:
    """The decision, with its reason."""

    beside: bool
    plan: Plan
    """The plan of the new server."""
    reason: str


def decide(beside: Plan, alone: Plan, *, shares: bool, allowed: bool = True) -> Placement:
    """Place the new server beside the old one if that costs it nothing, otherwise after it.

    `beside` is its plan for the machine as it is, `alone` its plan for the machine without the old server; `shares`:
    whether one daemon is behind both servers; `allowed`: whether the user allows both at once.
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
    """Return why the old server has to go first, whatever memory is free; empty if it need not."""
    if not allowed:
        return "one after the other, as asked for"
    return "one engine of this kind runs at a time, so the old server goes first" if shares else ""


def without(machine: Hardware, held: HeldMemory) -> Hardware:
    """Return the machine as it will be once a server that holds this memory is gone."""
    given = dict(held.gpus)
    gpus = tuple(
        gpu if gpu.memory_free is None else replace(gpu, memory_free=gpu.memory_free + given.get(gpu.index, 0))
        for gpu in machine.gpus
    )
    memory = min(machine.memory_total, machine.memory_available + held.memory)
    return replace(machine, memory_available=memory, gpus=gpus)


def held_memory(server: ProcessId | None, gpus: tuple[tuple[int, int], ...]) -> HeldMemory:
    """Return what a server holds: the memory of its processes, and the GPU memory that `taken` measured."""
    return HeldMemory(_memory(server) if server else 0, gpus)


def taken(before: Hardware, now: Hardware) -> tuple[tuple[int, int], ...]:
    """Return the memory that a start has taken of each GPU: (index, bytes).

    `now` is the machine when the server is ready: later other programs come and go. The GPU's own list of processes
    is of no use, as NVML knows them by the pids of the host, which a container does not see.
    """
    free = {gpu.index: gpu.memory_free for gpu in now.gpus}
    gpus = [
        (gpu.index, gpu.memory_free - (free.get(gpu.index) or 0))
        for gpu in before.gpus
        if gpu.memory_free is not None and free.get(gpu.index) is not None
    ]
    return tuple((index, size) for index, size in gpus if size > WORTH_WAITING)


def is_free(machine: Hardware, wanted: Hardware) -> bool:
    """Return whether nearly all memory that was expected to be free is free: other programs use memory too."""
    close = [(machine.memory_available, wanted.memory_available)]
    close += [(a.memory_free or 0, b.memory_free or 0) for a, b in zip(machine.gpus, wanted.gpus, strict=False)]
    return all(have >= want - WORTH_WAITING or have >= 0.95 * want for have, want in close)


def _memory(server: ProcessId) -> int:
    """Return the bytes that a process and its children do not share: the kernel gives mapped files back by itself."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(server.pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                memory = one.memory_info()
                total += max(0, memory.rss - getattr(memory, "shared", 0))
    return total
