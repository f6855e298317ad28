"""Hostile files of every kind that llmdeploy reads, and a measurement of how they are read.

`python -m tests.hostile_files 20000` reads that many, each made from its number alone, and prints the results as JSON:
how long the slowest took, how much memory the largest took, and what was raised besides errors for the user. The suite
reads fewer of them in `test_hostile_files.py`; a single one is repeated with `python -m tests.hostile_files gguf:17`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llmdeploy.errors import LlmdeployError
from tests.hostile_documents import document, toml
from tests.hostile_headers import gguf, safetensors

SELFTEST = Path(__file__).parents[1] / "llmdeploy" / "selftest"
SPECIAL = ("folder", "pipe", "device", "broken link", "loop", "sparse")


def special(choice: random.Random, file: Path) -> None:
    """Put something other than a small file at that place."""
    match choice.choice(SPECIAL):
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "device":
            file.symlink_to(choice.choice(["/dev/zero", "/dev/random", "/dev/null", "/dev/tty"]))
        case "broken link":
            file.symlink_to("nothing")
        case "loop":
            file.symlink_to(file.name)
        case "sparse":
            with file.open("wb") as stream:
                stream.write(choice.choice([b"", b"GGUF\3\0\0\0", b"{", struct.pack("<Q", 2 ** choice.randrange(64))]))
                stream.truncate(2 ** choice.randrange(20, 40))


def put(choice: random.Random, file: Path, make: Callable[[random.Random], bytes], size: int | None = None) -> None:
    """Write the file that `make` makes, or sometimes something else in its place."""
    if choice.random() < 0.03:
        special(choice, file)
        return
    with file.open("wb") as stream:
        stream.write(make(choice))
        if size is not None and size > stream.tell():
            stream.truncate(size)


# --- One function for each kind of file: it makes one in a folder and returns the function that reads it


def read_gguf(choice: random.Random, folder: Path) -> Callable[[], object]:
    from llmdeploy.models import facts, gguf_header, ollama_compat, remote_file

    file = folder / choice.choice(["x.gguf", "x-00001-of-00002.gguf"])
    size = choice.choice([None, None, 2_000_000, 2**30, 2**36])
    put(choice, file, gguf, size)

    def at_the_source() -> None:
        with file.open("rb") as stream:
            end = os.fstat(stream.fileno()).st_size
            remote = remote_file.opened(lambda start, stop: os.pread(stream.fileno(), stop - start, start), end, "x")
            ollama_compat.reason(gguf_header.read_remote("hf://o/r/x.gguf", remote))

    if choice.random() < 0.3 and file.is_file():
        return at_the_source
    return lambda: planned(facts.read_gguf(file))


def read_safetensors(choice: random.Random, folder: Path) -> Callable[[], object]:
    from llmdeploy.models.hf_model import HfModel

    shutil.copy(SELFTEST / "hf" / "config.json", folder)
    size = choice.choice([None, None, 3_000_000, 2**30])
    for number in range(choice.choice([1, 1, 1, 2])):
        put(choice, folder / f"model{number}.safetensors", safetensors, size)
    return lambda: planned(HfModel(folder).facts())


def read_config(choice: random.Random, folder: Path) -> Callable[[], object]:
    from llmdeploy.engines.vllm import fit
    from llmdeploy.models.hf_model import HfModel
    from llmdeploy.plan import Wishes

    real = json.loads((SELFTEST / "hf" / "config.json").read_text())
    put(choice, folder / "config.json", lambda choice: document(choice, real))
    model = HfModel(folder)

    def read() -> None:
        if model.format == "hf":
            model.remote_code()
            fit.plan(model.facts(), machine(), Wishes(), {}, choice.choice(["cpu", "cuda"])).require_fit("x")

    return read


def read_index(choice: random.Random, folder: Path) -> Callable[[], object]:
    from llmdeploy.models.safetensors import INDEX, indexed

    real = {"metadata": {"total_size": 5}, "weight_map": {f"layer.{n}": f"model-{n % 3}" for n in range(50)}}
    put(choice, folder / INDEX, lambda choice: document(choice, real))
    return lambda: indexed(folder / INDEX)


def read_lock(choice: random.Random, folder: Path) -> Callable[[], object]:
    from llmdeploy.models import lock

    put(choice, folder / "llmdeploy.lock", lambda choice: toml(choice, LOCK))
    return lambda: lock.read(folder / "llmdeploy.lock")


def read_catalog(choice: random.Random, folder: Path) -> Callable[[], object]:
    from llmdeploy.models.catalog import reader, schema

    put(choice, folder / "catalog.toml", lambda choice: toml(choice, CATALOG))
    return lambda: reader.entries(schema.read(folder / "catalog.toml"), own=True)


def read_manifest(choice: random.Random, folder: Path) -> Callable[[], object]:
    """Make a store of Ollama's with a hostile model beside a good one, which must be listed."""
    from llmdeploy.models.stores import ollama
    from tests.model_places import pack, selftest_layers

    store = folder / "models"
    manifest = pack(store, "bad/latest", ("params", b'{"stop": ["x"]}'), ("license", b"MIT"), ("template", b"y"))
    real = json.loads(manifest.read_text())
    for file in [manifest, *(store / "blobs").iterdir()]:
        if choice.random() < 0.5:
            content = json.loads(file.read_bytes()) if file.read_bytes()[:1] == b"{" else real
            file.unlink()
            put(choice, file, lambda choice, content=content: document(choice, content))  # type: ignore[misc]
    pack(store, "good/latest", ("model", b"GGUF"), *selftest_layers()[1:], model_family="good")

    def read() -> None:
        assert "good" in {
            str(model.reference).partition("://")[2].partition(":")[0] for model in ollama.read(store).models
        }

    return read


KINDS: dict[str, Callable[[random.Random, Path], Callable[[], object]]] = {
    "gguf": read_gguf,
    "safetensors": read_safetensors,
    "config": read_config,
    "index": read_index,
    "lock": read_lock,
    "catalog": read_catalog,
    "manifest": read_manifest,
}
SHARES = {"gguf": 6, "safetensors": 4, "config": 4, "index": 2, "lock": 2, "catalog": 1, "manifest": 1}
"""The shares of the kinds among all files."""

LOCK = """version = 1
[[model]]
model = "qwen3:8b"
engine = "llamacpp"
source = "hf://Qwen/Qwen3-8B-GGUF"
revision = "0123456789abcdef0123456789abcdef01234567"
files = [
    {name = "a.gguf", size = 5027783488, digest = "%s"},
]
""" % ("ab" * 32)
CATALOG = """[models."my:7b"]
hub = { plain = "owner/name", awq = "owner/name-awq" }
gguf = { file = "x-{quant}.gguf", quants = ["Q4_K_M", "Q8_0"], repo = "owner/name-gguf", bytes = { Q8_0 = 5 } }
context = 4096
"""


@cache
def machine() -> Any:
    from tests import machines

    return machines.load("cpu-only")


def planned(facts: Any) -> None:
    """Make a plan, as `serve` does with the facts."""
    from llmdeploy.plan import Wishes, compute_buffer, free_memory, make_plan

    plan = make_plan(facts, Wishes(), free_memory(machine(), on_gpu=False), overhead=(compute_buffer(facts),))
    plan.require_fit("x")


# --- The measurement


@dataclass
class Result:
    """What became of the files of one kind."""

    files: int = 0
    refused: int = 0
    seconds: float = 0.0
    """The longest time of a processor that one took."""
    waited: float = 0.0
    """The longest time that passed, on a machine that has other things to do."""
    slowest: str = ""
    mib: float = 0.0
    """The most memory that one took."""
    largest: str = ""
    bugs: dict[str, str] = field(default_factory=dict)
    """Other exceptions than those for the user: file -> exception."""


def read_one(name: str, result: Result) -> None:
    """Make and read the file of a name such as `gguf:17`."""
    kind, number = name.split(":")
    with tempfile.TemporaryDirectory() as folder:
        read = KINDS[kind](random.Random(f"{kind}:{number}"), Path(folder))
        before = reset_peak()
        begin, began = time.process_time(), time.perf_counter()
        try:
            read()
        except LlmdeployError as error:
            result.refused += 1
            if len(error.message) > 2000:
                result.bugs[name] = f"a message of {len(error.message)} letters"
        except Exception as error:  # to be reported
            result.bugs[name] = f"{type(error).__name__}: {error}"[:200]
        seconds, mib = time.process_time() - begin, (peak() - before) / 1024
        result.waited = max(result.waited, time.perf_counter() - began)
    result.files += 1
    if seconds > result.seconds:
        result.seconds, result.slowest = seconds, name
    if mib > result.mib:
        result.mib, result.largest = mib, name


def reset_peak() -> int:
    """Return the memory of this process in KiB, from which on the peak counts."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    with suppress(OSError):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def names(count: int) -> Iterator[str]:
    """Yield the names of so many files, the kinds mixed."""
    row = [kind for kind, share in SHARES.items() for _ in range(share)]
    for number in range(count):
        yield f"{row[number % len(row)]}:{number}"


def main(arguments: list[str]) -> None:
    results = {kind: Result() for kind in KINDS}
    os.environ["LLMDEPLOY_STATE_DIR"] = tempfile.mkdtemp()
    try:
        for kind in KINDS:  # what is imported is not counted
            read_one(f"{kind}:0", Result())
        for name in names(int(arguments[0])) if arguments[0].isdigit() else arguments:
            read_one(name, results[name.partition(":")[0]])
    finally:
        shutil.rmtree(os.environ["LLMDEPLOY_STATE_DIR"])
    print(json.dumps({kind: asdict(result) for kind, result in results.items()}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
