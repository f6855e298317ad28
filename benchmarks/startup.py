"""Measure the start-up time against a Typer and Rich app of two commands that is installed the same way.

python benchmarks/startup.py [--rounds N] [--served] [--json]

Every figure is the median over the rounds; in each round every command runs once, in random order. Exits with 1 if a
ratio is over its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

REFERENCE = '''
import typer
from rich.console import Console

main = typer.Typer()


@main.command()
def hello() -> None:
    """Say hello."""
    Console().print("hello")


@main.command()
def goodbye() -> None:
    """Say goodbye."""
    Console().print("goodbye")
'''

# Catalog names for `models show`, which must be instant for many at once.
NAMES = [
    "qwen2.5-vl:7b", "qwen2.5:7b", "qwen2.5-coder:32b", "qwen3:0.6b", "qwen3:8b", "qwen3:30b",
    "qwen3-coder:30b", "qwen3-vl:8b", "qwen3.5:9b", "qwen3.6:27b", "llama3.1:8b", "llama3.3:70b",
    "gemma3:27b", "gemma4:e4b", "gpt-oss:20b", "gpt-oss:120b", "deepseek-r1:32b", "mistral-small3.2:24b",
    "ministral-3:8b", "phi4:14b", "qwq:32b",
]  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command, its environment, and the exit status and text it must produce."""

    name: str
    argv: list[str]
    status: int
    says: str
    environment: dict[str, str]

    def seconds(self) -> float:
        """Run the command, check its exit status and output, and return the seconds it took."""
        start = time.perf_counter()
        done = subprocess.run(self.argv, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        elapsed = time.perf_counter() - start
        if done.returncode != self.status or self.says not in done.stdout:
            sys.exit(f"`{self.name}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return elapsed


@dataclass(frozen=True)
class Measured:
    """A command, its reference, and the limit of the ratio of their times."""

    command: Command
    reference: Command
    limit: float


@dataclass(frozen=True)
class Figure:
    """Times in ms and their ratio."""

    name: str
    ms: float
    reference: str
    reference_ms: float
    ratio: float
    limit: float

    @property
    def within(self) -> bool:
        return self.ratio <= self.limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="how often each command runs (20)")
    parser.add_argument("--served", action="store_true", help="measure `status` with the self-test model served too")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that started processes are stopped too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = console_script()
        with served(script, folder / "served", wanted=options.served) as environment:
            figures = run(commands(script, folder, environment), options.rounds)
    print(json.dumps([asdict(figure) for figure in figures], indent=2) if options.json else table(figures))
    return 0 if all(figure.within for figure in figures) else 1


def console_script() -> Path:
    """Return the `llmdeploy` script installed for the running Python."""
    script = Path(sysconfig.get_path("scripts")) / "llmdeploy"
    if not script.exists():
        sys.exit(f"llmdeploy is not installed for {sys.executable}")
    return script


def write_reference(script: Path, folder: Path) -> Path:
    """Write the reference app, with a copy of llmdeploy's console script to start it."""
    (folder / "reference_app.py").write_text(REFERENCE)
    copy = folder / "reference"
    copy.write_text(script.read_text().replace("llmdeploy.__main__", "reference_app"))
    shutil.copymode(script, copy)
    return copy


def commands(script: Path, folder: Path, serving: dict[str, str] | None) -> list[Measured]:
    reference = str(write_reference(script, folder))
    plain = environment(folder / "state")
    command = Command("reference hello", [reference, "hello"], 0, "hello", plain)
    help_ = Command("reference --help", [reference, "--help"], 0, "goodbye", plain)

    def ours(*arguments: str, status: int = 0, says: str) -> Command:
        name = " ".join(["llmdeploy", *arguments[:2]]) + (f" ({len(arguments) - 2} names)" if arguments[2:] else "")
        return Command(name, [str(script), *arguments], status, says, plain)

    def completion(*words: str, says: str) -> Command:
        asked = {"_LLMDEPLOY_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
        asked["COMP_WORDS"] = "\n".join(["llmdeploy", *words])
        return Command(" ".join(["llmdeploy", *words]) + "<Tab>", [str(script)], 0, says, plain | asked)

    measured = [
        Measured(ours("--version", says="llmdeploy"), command, 0.5),
        Measured(completion("st", says="status"), command, 0.6),
        Measured(completion("serve", "--eng", says="--engine"), command, 0.6),
        Measured(completion("serve", "self", says="selftest"), command, 0.6),
        Measured(ours("--help", says="doctor"), help_, 1.2),
        Measured(ours("models", "show", *NAMES, says="hf://google/gemma-3-27b-it"), command, 1.7),
        Measured(ours("status", status=1, says="nothing is served"), command, 0.9),
    ]
    if serving is not None:
        status = Command("llmdeploy status (served)", [str(script), "status"], 0, "ready: `selftest`", serving)
        measured.append(Measured(status, command, 0.9))
    return measured


def environment(state: Path) -> dict[str, str]:
    """Return this environment with another state folder and without variables that would change the figures."""
    foreign = ("LLMDEPLOY_", "_LLMDEPLOY_", "_TYPER_", "COMP_", "PYTHON", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "LLMDEPLOY_STATE_DIR": str(state)}


@contextmanager
def served(script: Path, state: Path, *, wanted: bool) -> Iterator[dict[str, str] | None]:
    """Serve the self-test model in the background, if wanted."""
    if not wanted:
        yield None
        return
    serving = environment(state)
    port = free_port()
    try:
        started = subprocess.run([script, "serve", "selftest", "--detach", "--port", port], env=serving, stdout=2)
        if started.returncode:
            sys.exit("the self-test model could not be served")
        yield serving
    finally:
        subprocess.run([script, "stop"], env=serving, stdout=2)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(measured: list[Measured], rounds: int) -> list[Figure]:
    """Run all commands in every round; a ratio is the median of the rounds' ratios."""
    every = {command.name: command for it in measured for command in (it.command, it.reference)}
    for command in every.values():
        command.seconds()  # a first run, which writes bytecode and reads the disk
    times: list[dict[str, float]] = []
    for _ in range(rounds):
        order = random.sample(list(every.values()), len(every))
        times.append({command.name: command.seconds() for command in order})

    def ms(name: str) -> float:
        return round(1000 * median(one[name] for one in times), 1)

    return [
        Figure(
            name=it.command.name,
            ms=ms(it.command.name),
            reference=it.reference.name,
            reference_ms=ms(it.reference.name),
            ratio=round(median(one[it.command.name] / one[it.reference.name] for one in times), 3),
            limit=it.limit,
        )
        for it in measured
    ]


def table(figures: list[Figure]) -> str:
    lines = [f"{'command':<34}{'ms':>8}  {'reference':<18}{'ms':>8}{'ratio':>8}{'limit':>8}"]
    for it in figures:
        verdict = "" if it.within else "  over"
        lines.append(
            f"{it.name:<34}{it.ms:>8.1f}  {it.reference:<18}{it.reference_ms:>8.1f}{it.ratio:>8.2f}{it.limit:>8.1f}"
            + verdict
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
