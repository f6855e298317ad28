"""Measure the cost of the gateway against nginx and no proxy: requests, streams, large bodies, memory, aborts.

python benchmarks/gateway.py [--rounds N] [--quick] [--json FILE]

In each round every figure is taken directly, through nginx and through the gateway, one right after the other; the next
round reverses the order. The table has the medians over the rounds; a ratio (gateway to nginx) is the median of the
rounds' ratios. The proxy has its own core, the load and the upstream share another. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median

import gateway_ways as ways
from gateway_figures import ABORT, FULL, QUICK, Bench, Size, service_memory
from gateway_load import Load, Upstream
from gateway_ways import Cores, Way

NEEDED = {"nginx": "nginx-light", "wrk": "wrk", "gcc": "gcc"}  # program: Debian package
WAYS = ("direct", "nginx", "gateway")
SMALL = "small requests, 32 connections"
PACED = "256 streams of 50 chunks/s"
SERVICE_MEMORY = "memory of `llmdeploy serve` at rest: PSS, MiB"

Taken = dict[str, dict[str, list[float]]]
"""Values by figure and way, one for each round."""


@dataclass(frozen=True)
class Goal:
    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each figure is taken (5; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="short rounds, to check that the benchmark runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round to FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that started processes are stopped too
    cores = usable_cores()
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        taken = take(Path(folder), cores, size, options.rounds or (1 if options.quick else 5))
    goals = judged(taken)
    print(table(taken), verdicts(goals), sep="\n\n")
    if options.json:
        document = {"figures": taken, "goals": [asdict(goal) | {"reached": goal.reached} for goal in goals]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if all(goal.reached for goal in goals) else 1


def usable_cores() -> Cores:
    """Choose a core for the proxy and one for the load. Exit if they or a program are missing."""
    os.environ["PATH"] = ways.SEARCH_PATH
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        names = ", ".join(f"`{program}`" for program in missing)
        sys.exit(f"error: not installed: {names}\nhint: apt install {' '.join(NEEDED[name] for name in missing)}")
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        sys.exit("error: this needs Linux and two cores")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"warning: the machine is busy (load {busy:.1f}): only CPU figures are reliable", file=sys.stderr)
    proxy, load = sorted(os.sched_getaffinity(0))[:2]
    return Cores(proxy, load)


def take(folder: Path, cores: Cores, size: Size, rounds: int) -> Taken:
    load = Load(folder, cores)
    load.build()
    taken: Taken = defaultdict(lambda: defaultdict(list))
    with ways.started(load.upstream_command, cores.load) as process:
        bench = Bench(load, Upstream(process), size)
        take_memory(bench, folder, cores, taken)
        with ExitStack() as stack:
            every = [Way("direct", bench.upstream.port)]
            every.append(stack.enter_context(ways.nginx(bench.upstream.port, folder, cores.proxy)))
            every.append(stack.enter_context(ways.gateway(bench.upstream.port, cores.proxy)))
            for _ in range(rounds):
                take_round(bench, every, taken)
                every.reverse()
    return taken


def take_round(bench: Bench, every: list[Way], taken: Taken) -> None:
    for scenario in bench.scenarios():
        figures = {way.name: scenario(way) for way in every}
        for name in figures["gateway"]:
            for way, values in figures.items():
                if name in values:
                    taken[name][way].append(values[name])
            if "latency" in name:
                for proxy in ("nginx", "gateway"):
                    added = figures[proxy][name] - figures["direct"][name]
                    taken[name.replace("latency", "added to")][proxy].append(added)


def take_memory(bench: Bench, folder: Path, cores: Cores, taken: Taken) -> None:
    """Take the memory figures once, of fresh processes."""
    upstream = bench.upstream.port
    for starting in (ways.nginx(upstream, folder, cores.proxy), ways.gateway(upstream, cores.proxy)):
        with starting as way:
            for name, value in bench.memory(way).items():
                taken[name][way.name].append(value)
    taken[SERVICE_MEMORY]["gateway"].append(service_memory(folder))


def table(taken: Taken) -> str:
    lines = [f"{'':<52}{'direct':>12}{'nginx':>12}{'gateway':>12}{'ratio':>8}"]
    for name, values in taken.items():
        cells = [f"{shown(values.get(way)):>12}" for way in WAYS]
        ratio = f"{gateway_to_nginx(values):>8.2f}" if {"nginx", "gateway"} <= values.keys() else ""
        lines.append(f"{name:<52}{''.join(cells)}{ratio}".rstrip())
    return "\n".join(lines)


def shown(values: list[float] | None) -> str:
    if not values:
        return "-"
    value = median(values)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def gateway_to_nginx(values: dict[str, list[float]]) -> float:
    return median(
        ours / theirs if theirs else inf for ours, theirs in zip(values["gateway"], values["nginx"], strict=True)
    )


def judged(taken: Taken) -> list[Goal]:
    def ratio(name: str) -> float:
        return gateway_to_nginx(taken[name])

    def ours(name: str) -> float:
        return median(taken[name]["gateway"])

    in_time = f"{PACED}: chunks in time, %"
    growth = 100 * (ours("memory after requests: PSS, MiB") / ours("memory once it is warm: PSS, MiB") - 1)
    large = [ratio(f"10-MB bodies, {count}: CPU ms/request") for count in ("1 connection", "4 connections")]
    return [
        Goal(f"{PACED}: CPU us/chunk, of nginx's", ratio(f"{PACED}: CPU us/chunk"), 1.3),
        Goal(f"{PACED}: delay p99, of nginx's", ratio(f"{PACED}: delay p99, us"), 2),
        # On a busy machine nginx is late too.
        Goal(in_time, ours(in_time), min(99.9, median(taken[in_time]["nginx"])), at_least=True),
        Goal(f"{SMALL}: requests/s, of nginx's", ratio(f"{SMALL}: requests/s"), 0.4, at_least=True),
        Goal("10-MB bodies: CPU ms/request, of nginx's", max(large), 2),
        Goal("memory at rest: PSS, MiB", ours("memory at rest: PSS, MiB"), 40),
        Goal(SERVICE_MEMORY, ours(SERVICE_MEMORY), 40),
        Goal("memory: growth over requests, %", growth, 5),
        Goal(ABORT, ours(ABORT), 100),
    ]


def verdicts(goals: list[Goal]) -> str:
    lines = [f"{'goal':<52}{'value':>12}{'limit':>15}"]
    for goal in goals:
        limit = f"{'>=' if goal.at_least else '<='} {goal.limit:.4g}"
        lines.append(f"{goal.name:<52}{goal.value:>12.2f}{limit:>15}  {'ok' if goal.reached else 'missed'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
