"""Figures of benchmarks/gateway.py and how each is taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gateway_ways as ways
from first_answer import answers
from gateway_load import Load, Upstream, abort_seconds
from gateway_ways import Way
from startup import console_script, environment, free_port

CADENCE_US = 20_000
LARGE = 10_000_000  # bytes
ABORT = "a client's abort, seen upstream after: ms"
SERVED_WITHIN = 60.0  # seconds
CONNECTIONS = 32  # for the memory figures

Figures = dict[str, float]
"""Values by name; the name ends with the unit."""


@dataclass(frozen=True)
class Size:
    """Amount of work for each figure."""

    seconds: float
    large_seconds: float
    paced_chunks: int
    chunks: int
    first_bytes: int
    aborts: int
    requests: int
    """Number of requests over which memory must not grow."""


FULL = Size(seconds=3, large_seconds=3, paced_chunks=200, chunks=300_000, first_bytes=3000, aborts=5, requests=100_000)
QUICK = Size(seconds=0.2, large_seconds=0.6, paced_chunks=20, chunks=10_000, first_bytes=100, aborts=1, requests=1000)


@dataclass(frozen=True)
class Bench:
    """Functions that take the figures."""

    load: Load
    upstream: Upstream
    size: Size

    def scenarios(self) -> Iterator[Callable[[Way], Figures]]:
        """Yield functions that each take some figures of one way."""
        yield from (partial(self.small, count) for count in (1, 32))
        yield self.first_byte
        yield from (partial(self.paced, count) for count in (1, 32, 256))
        yield from (partial(self.full_speed, count) for count in (1, 32, 256))
        yield from (partial(self.large, count) for count in (1, 4))
        yield self.aborts

    def small(self, connections: int, way: Way) -> Figures:
        with way.cpu() as cpu:
            done = self.load.requests(way.port, connections, self.size.seconds)
        what = f"small requests, {several(connections, 'connection')}"
        figures = {f"{what}: requests/s": done["requests"] / done["seconds"]}
        if connections == 1:
            figures |= {f"{what}: latency p50, us": done["p50"], f"{what}: latency p99, us": done["p99"]}
        return figures | per(f"{what}: CPU us/request", cpu.us, done["requests"])

    def first_byte(self, way: Way) -> Figures:
        done = self.load.streams(way.port, 1, 1, requests=self.size.first_bytes)
        what = "first byte of a stream"
        return {f"{what}: latency p50, us": done["first_p50"], f"{what}: latency p99, us": done["first_p99"]}

    def paced(self, count: int, way: Way) -> Figures:
        with way.cpu() as cpu:
            done = self.load.streams(way.port, count, self.size.paced_chunks, CADENCE_US)
        what = f"{several(count, 'stream')} of 50 chunks/s"
        return {
            f"{what}: delay p50, us": done["delay_p50"],
            f"{what}: delay p99, us": done["delay_p99"],
            f"{what}: chunks in time, %": 100 * done["in_time"],
        } | per(f"{what}: CPU us/chunk", cpu.us, done["chunks"])

    def full_speed(self, count: int, way: Way) -> Figures:
        with way.cpu() as cpu:
            done = self.load.streams(way.port, count, self.size.chunks // count)
        what = f"{several(count, 'stream')} at full speed"
        figures = {f"{what}: chunks/s": done["chunks"] / done["seconds"]}
        return figures | per(f"{what}: CPU us/chunk", cpu.us, done["chunks"])

    def large(self, connections: int, way: Way) -> Figures:
        with way.cpu() as cpu:
            done = self.load.requests(way.port, connections, self.size.large_seconds, LARGE, different=1)
        what = f"10-MB bodies, {several(connections, 'connection')}"
        figures = {f"{what}: requests/s": done["requests"] / done["seconds"]}
        return figures | per(f"{what}: CPU ms/request", cpu.us / 1000, done["requests"])

    def aborts(self, way: Way) -> Figures:
        seconds = [abort_seconds(way.port, self.upstream) for _ in range(self.size.aborts)]
        return {ABORT: 1000 * max(seconds)}

    def memory(self, way: Way) -> Figures:
        """Take the memory of a fresh process at rest, when warm, and after many requests."""
        figures = {"memory at rest: PSS, MiB": ways.pss(way.pid)}
        for name, requests in (("once it is warm", self.size.requests // 10), ("after requests", self.size.requests)):
            done = 0
            while done < requests:
                done += self.load.requests(way.port, CONNECTIONS, self.size.seconds / 3)["requests"]
            figures[f"memory {name}: PSS, MiB"] = ways.pss(way.pid)
        return figures


def several(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def per(name: str, spent: float, count: int) -> Figures:
    """Divide what was spent by `count`; empty if the way has no process."""
    return {name: spent / count} if spent else {}


def service_memory(folder: Path) -> float:
    """Return the memory of `llmdeploy serve selftest` once its model answers, in MiB."""
    port = free_port()
    command = [str(console_script()), "--quiet", "serve", "selftest", "--port", port]
    with ways.started(command, environment=environment(folder)) as service:
        deadline = time.monotonic() + SERVED_WITHIN
        while not answers(port):
            if service.poll() is not None or time.monotonic() > deadline:
                sys.exit("error: the self-test model could not be served")
            time.sleep(0.05)
        return ways.pss(service.pid)
