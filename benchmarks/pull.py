"""Measure the throughput of `llmdeploy pull` against `hf download`, of the same repository from a Hub on loopback.

python benchmarks/pull.py [--rounds N] [--mb N] [--json]

The repository has one large file, several medium ones and some small ones; it is fetched over plain HTTP and over Xet.
In each round every command runs once, in random order, into an empty cache, which is then compared with the repository.
The time is that of the whole command. A ratio is the median of the rounds' ratios. Exits with 1 if a ratio is below its
limit. Needs four times the repository's size on the disk.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
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

REPO = "bench/model"
LIMIT = 0.95
WEIGHTS = (0.6, 0.1, 0.1, 0.1, 0.1)
"""Share of each weights file in the repository's size."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}
PIECE = 1 << 24


@dataclass(frozen=True)
class Command:
    """A download command and its environment."""

    name: str
    argv: list[str]
    transport: str
    environment: dict[str, str]

    def seconds(self, repository: Path, folder: Path) -> float:
        """Run the command, check that it fetched every file, and return the seconds it took."""
        home = folder / "home"
        environment = self.environment | {"HOME": str(home), "HF_HOME": str(home / "hf")}
        home.mkdir()
        os.sync()  # so that earlier writes do not slow this run
        start = time.perf_counter()
        done = subprocess.run(self.argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        elapsed = time.perf_counter() - start
        wrong = [] if done.returncode else missing(repository, home)
        shutil.rmtree(home)
        if done.returncode or wrong:
            sys.exit(f"`{self.name}` ended with {done.returncode}, without {wrong}:\n{done.stdout}{done.stderr}")
        return elapsed


@dataclass(frozen=True)
class Figure:
    """Rates and ratio for one transport."""

    transport: str
    mb_s: float
    reference_mb_s: float
    ratio: float
    ratios: list[float]
    """Ratios of all rounds, sorted."""
    limit: float = LIMIT

    @property
    def within(self) -> bool:
        return self.ratio >= self.limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each command runs (5)")
    parser.add_argument("--mb", type=int, default=1500, metavar="N", help="the size of the repository (1500)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that started processes are stopped too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = folder / "hub" / REPO
        write_repository(repository, options.mb * 1_000_000)
        with served(folder) as url:
            figures = run(commands(url), repository, folder, options.rounds)
    print(json.dumps([asdict(figure) for figure in figures], indent=2) if options.json else table(figures))
    return 0 if all(figure.within for figure in figures) else 1


def write_repository(folder: Path, size: int) -> None:
    """Write a Hugging Face model with random weights, so that nothing can be compressed or deduplicated."""
    folder.mkdir(parents=True)
    names = [f"model-{part:05}-of-{len(WEIGHTS):05}.safetensors" for part in range(1, len(WEIGHTS) + 1)]
    for number, (name, share) in enumerate(zip(names, WEIGHTS, strict=True)):
        write_safetensors(folder / name, f"layer.{number}", int(size * share) // 2 * 2)
    index = {"metadata": {}, "weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
    small = {"config.json": CONFIG, "generation_config.json": {}, "model.safetensors.index.json": index}
    tokenizer = {"model": {"type": "BPE", "vocab": {f"token{number}": number for number in range(100_000)}}}
    for name, document in {**small, "tokenizer.json": tokenizer, "tokenizer_config.json": {}}.items():
        (folder / name).write_text(json.dumps(document))


def write_safetensors(path: Path, tensor: str, size: int) -> None:
    header = json.dumps({tensor: {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, PIECE):
            file.write(os.urandom(min(PIECE, size - start)))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Run a Hub with the repository in another process; yield its URL."""
    script = Path(__file__).with_name("pull_hub.py")
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, script, folder / "hub"], env=environment, stdin=-1, stdout=-1, text=True
    ) as hub:
        assert hub.stdin is not None
        assert hub.stdout is not None
        try:
            if not (url := hub.stdout.readline().strip()):
                sys.exit("the Hub did not start")
            yield url
        finally:
            hub.stdin.close()


def commands(url: str) -> list[tuple[Command, Command]]:
    """Build for each transport the command of llmdeploy and the reference."""
    scripts = Path(sysconfig.get_path("scripts"))
    ours = [str(scripts / "llmdeploy"), "pull", f"hf://{REPO}", "--engine", "vllm"]
    reference = [str(scripts / "hf"), "download", REPO]
    foreign = ("LLMDEPLOY_", "HF_", "XDG_", "PYTHON")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    plain |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    transports = {"HTTP": plain | {"HF_HUB_DISABLE_XET": "1"}, "Xet": plain}
    return [
        (
            Command("llmdeploy pull", ours, transport, environment),
            Command("hf download", reference, transport, environment),
        )
        for transport, environment in transports.items()
    ]


def missing(repository: Path, home: Path) -> list[str]:
    """List the files of the repository that are missing or different in the Hub's cache."""
    cache = home / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots"
    snapshot = next(cache.glob("*"), cache)
    names = [path.name for path in repository.iterdir()]
    _, mismatch, errors = filecmp.cmpfiles(repository, snapshot, names, shallow=False)
    return mismatch + errors


def run(pairs: list[tuple[Command, Command]], repository: Path, folder: Path, rounds: int) -> list[Figure]:
    every = [command for pair in pairs for command in pair]
    every[0].seconds(repository, folder)  # a first run, which writes bytecode and reads the disk
    times: list[dict[int, float]] = []
    for _ in range(rounds):
        order = random.sample(every, len(every))
        times.append({id(command): command.seconds(repository, folder) for command in order})
    megabytes = sum(path.stat().st_size for path in repository.iterdir()) / 1e6

    def rate(command: Command) -> float:
        return round(median(megabytes / one[id(command)] for one in times), 1)

    figures = []
    for ours, reference in pairs:
        ratios = sorted(round(one[id(reference)] / one[id(ours)], 3) for one in times)
        figures.append(Figure(ours.transport, rate(ours), rate(reference), round(median(ratios), 3), ratios))
    return figures


def table(figures: list[Figure]) -> str:
    lines = [f"{'transport':<12}{'llmdeploy pull':>20}{'hf download':>20}{'ratio':>8}{'rounds':>14}{'limit':>8}"]
    for it in figures:
        verdict = "" if it.within else "  below"
        rates = f"{it.mb_s:>15.0f} MB/s{it.reference_mb_s:>15.0f} MB/s"
        rounds = f"{it.ratios[0]:.2f} to {it.ratios[-1]:.2f}"
        lines.append(f"{it.transport:<12}{rates}{it.ratio:>8.2f}{rounds:>14}{it.limit:>8.2f}{verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
