"""The decision whether a server that sends nothing works or hangs, made on samples that are taken while it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmdeploy.engines.vitals import Vitals

LONGEST_GAP = 10.0
"""Seconds between two samples from which on the time between them does not count: this process did not run either."""
FEWEST = 5
"""Number of samples below which nothing is decided."""


@dataclass(frozen=True)
class Sample:
    """A look at a server."""

    at: float
    """`monotonic()` of the look."""
    waiting: int = 0
    """Number of requests that wait for something from it."""
    received: int = 0
    """Number of pieces of answers that have come from it."""
    cpu: Mapping[int, float] = field(default_factory=dict)
    """Seconds of CPU time that each of its processes has used, by process id."""
    counters: str | None = None
    """The counters that it has reported; None if it has not answered."""
    is_stopped: bool = False
    """Whether a process of it is stopped by a signal."""


@dataclass(frozen=True)
class Body:
    """The part of a server that does not change while it runs."""

    vitals: Vitals
    pid: int | None
    """The server's own process; None if it is not on this machine, or belongs to somebody else."""
    on_gpu: bool = False
    """Whether the model is in the memory of a GPU."""


def hangs(samples: Sequence[Sample], limit: float, body: Body) -> bool:
    """Return whether the server shows no sign of life for `limit` seconds in which it should."""
    last = samples[-1]
    begins = [index for index, sample in enumerate(samples) if sample.at <= last.at - limit]
    if not begins:
        return False
    window = samples[begins[-1] :]
    return (
        len(window) >= FEWEST
        and all(sample.waiting or sample.is_stopped for sample in window)
        and all(after.at - before.at <= max(LONGEST_GAP, limit / 4) for before, after in pairwise(window))
        and window[0].received == last.received
        and len({sample.counters for sample in window if sample.counters is not None}) <= 1
        and (all(sample.is_stopped for sample in window) or not _computes(window, body))
    )


def _computes(window: Sequence[Sample], body: Body) -> bool:
    """Return whether the CPU time of its processes shows that it works."""
    first, last = window[0], window[-1]
    if any(sample.cpu.keys() - first.cpu.keys() for sample in window):
        return True  # it has started processes: a compiler, or a model's own
    seconds = last.at - first.at
    used = {pid: time - first.cpu[pid] for pid, time in last.cpu.items()}
    vitals = body.vitals
    if vitals.front_cores and used.pop(body.pid or 0, 0.0) >= vitals.front_cores * seconds:
        return True
    return max(used.values(), default=0.0) >= (vitals.gpu_cores if body.on_gpu else vitals.cores) * seconds


def is_stopped(samples: Sequence[Sample]) -> bool:
    """Return whether a process of the server is stopped, and was so at the look before."""
    return len(samples) > 1 and all(sample.is_stopped for sample in samples[-2:])
