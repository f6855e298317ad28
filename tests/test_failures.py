"""Failed starts of llama.cpp: the log of the real engine, and the cause and the fix that users get."""

from __future__ import annotations

import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmdeploy.config import Settings
from llmdeploy.engines.diagnosis import Diagnosis, Exited
from llmdeploy.engines.llamacpp import engine
from tests.conftest import SELFTEST, World, copy_selftest, free_port

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"

NEWER = "take a newer one: `pip install --upgrade xllamacpp`, or put a newer `llama-server` on PATH"
LESS = "ask for less: `--context 2048 --parallel 1`, or take a smaller model"
CONVERTED = "take a GGUF made by llama.cpp's own converter"
ANOTHER_MMPROJ = "give another with `--mmproj`"


def edited(folder: Path, source: Path, old: bytes, new: bytes) -> Path:
    """Write a copy with one text replaced by another of the same length, so that everything else stays in place."""
    content = source.read_bytes()
    assert len(old) == len(new)
    assert old in content
    return _written(folder, content.replace(old, new))


def with_number(folder: Path, source: Path, key: str, number: int) -> Path:
    """Write a copy with another value of the field `key`, a number of 32 bits."""
    content = bytearray(source.read_bytes())
    at = content.index(key.encode()) + len(key) + 4  # the type follows the key
    struct.pack_into("<I", content, at, number)
    return _written(folder, bytes(content))


def truncated(folder: Path, source: Path, size: int) -> Path:
    return _written(folder, source.read_bytes()[:size])


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "changed.gguf"
    path.write_bytes(content)
    return path


def mmproj_of_another_model(folder: Path) -> Path:
    """Write a whole projector whose output is 96 wide; the self-test model is 128 wide."""
    import gguf
    import numpy as np

    path = folder / "mmproj-other.gguf"
    reader, writer = gguf.GGUFReader(MMPROJ), gguf.GGUFWriter(path, "clip")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = 96 if name == "clip.vision.projection_dim" else field.contents()
            writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        last_layer = tensor.name in {"mm.2.weight", "mm.2.bias"}
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data[:96] if last_layer else tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run_llama_cpp(
    weights: Path, mmproj: Path | None = None, *, context: int = 512, port: int | None = None, memory: int | None = None
) -> tuple[list[str], int]:
    """Start the real engine with unchecked flags. Return its log and its exit status.

    `memory` limits the address space, in bytes.
    """
    flags = {
        "--model": weights, "--ctx-size": context, "--parallel": 1, "--threads": 1, "--host": "127.0.0.1",
        "--port": port or free_port(), "--alias": "x", **({"--mmproj": mmproj} if mmproj else {}),
    }  # fmt: skip
    limit: Callable[[], None] | None = None
    if memory is not None:
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # noqa: E731
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmdeploy.engines.llamacpp.server_program",
            *(str(word) for pair in flags.items() for word in pair),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={"GGML_NO_BACKTRACE": "1"},
        preexec_fn=limit,
        timeout=20,
    )
    return done.stdout.splitlines(), done.returncode


def diagnosis(log: list[str], status: int) -> Diagnosis | None:
    return engine.engine(Settings()).diagnose(log, Exited(status))


WEIGHTS_CASES = [
    (
        "unknown architecture",
        lambda folder: edited(folder, WEIGHTS, b"qwen2vl", b"qwen9xl"),
        Diagnosis("this llama.cpp does not know the architecture `qwen9xl`", NEWER),
    ),
    (
        "truncated in its tensors",
        lambda folder: truncated(folder, WEIGHTS, 1_500_000),
        Diagnosis("the GGUF is truncated or damaged", "fetch the file again"),
    ),
    (
        "a tensor under another name",
        lambda folder: edited(folder, WEIGHTS, b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"),
        Diagnosis("the GGUF lacks the tensor `blk.0.attn_q.weight`: it was made for another program", CONVERTED),
    ),
    (
        "another shape",
        lambda folder: with_number(folder, WEIGHTS, "qwen2vl.embedding_length", 256),
        Diagnosis(
            "the GGUF's tensor `token_embd.weight` has the wrong shape: it was made for another program", CONVERTED
        ),
    ),
    (
        "fewer layers than its tensors",
        lambda folder: with_number(folder, WEIGHTS, "qwen2vl.block_count", 3),
        Diagnosis(
            "the GGUF has 50 tensors, and this architecture has 38: it was made for another program", CONVERTED
        ),
    ),
    (
        "no block count",
        lambda folder: edited(folder, WEIGHTS, b"qwen2vl.block_count", b"qwen2vl.block_xount"),
        Diagnosis(
            "llama.cpp cannot load the model: error loading model hyperparameters: "
            "key not found in model: qwen2vl.block_count",
            "try another GGUF of it",
        ),
    ),
    (
        "unknown tokenizer",
        lambda folder: edited(folder, WEIGHTS, b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0qwenX"),
        Diagnosis(
            "llama.cpp cannot load the model: error loading model vocabulary: unknown pre-tokenizer type: 'qwenX'",
            "try another GGUF of it",
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), [case[1:] for case in WEIGHTS_CASES], ids=[c[0] for c in WEIGHTS_CASES])
def test_real_logs_of_bad_weights(tmp_path: Path, make: Callable[[Path], Path], expected: Diagnosis) -> None:
    log, status = run_llama_cpp(make(tmp_path))
    assert (status, diagnosis(log, status)) == (1, expected), log


MMPROJ_CASES = [
    (
        "of another model",
        mmproj_of_another_model,
        Diagnosis(
            "the vision projector belongs to another model: it is 96 wide and the model 128",
            "give the right one with `--mmproj`",
        ),
    ),
    (
        "truncated",
        lambda folder: truncated(folder, MMPROJ, 400_000),
        Diagnosis("the vision projector is truncated or damaged", "fetch the file again"),
    ),
    (
        "unknown type",
        lambda folder: edited(folder, MMPROJ, b"qwen2.5vl_merger", b"qwen9.9vl_merger"),
        Diagnosis("this llama.cpp does not know the vision projector's type `qwen9.9vl_merger`", NEWER),
    ),
    (
        "a model in its place",
        lambda folder: WEIGHTS,
        Diagnosis("llama.cpp cannot load the vision projector", ANOTHER_MMPROJ),
    ),
    (
        "cut in its header",
        lambda folder: truncated(folder, MMPROJ, 900),
        Diagnosis("the GGUF is truncated or damaged", "fetch the file again"),
    ),
]


@pytest.mark.parametrize(("make", "expected"), [case[1:] for case in MMPROJ_CASES], ids=[c[0] for c in MMPROJ_CASES])
def test_real_logs_of_bad_projectors(tmp_path: Path, make: Callable[[Path], Path], expected: Diagnosis) -> None:
    log, status = run_llama_cpp(WEIGHTS, make(tmp_path))
    assert (status, diagnosis(log, status)) == (1, expected), log


def test_the_real_log_of_a_failed_assertion(tmp_path: Path) -> None:
    """llama.cpp ends itself: the cause is in its own words only."""
    log, status = run_llama_cpp(WEIGHTS, with_number(tmp_path, MMPROJ, "clip.vision.projection_dim", 256))
    found = diagnosis(log, status)
    assert status == -signal.SIGABRT
    assert found is not None
    assert found.cause == "an internal check of llama.cpp failed: GGML_ASSERT(ggml_nelements(a) == ne0*ne1) failed"


def test_real_log_of_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        log, status = run_llama_cpp(WEIGHTS, port=other.getsockname()[1])
    assert diagnosis(log, status) == Diagnosis(
        "another program took the port while the server started", "give another with `--port`"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its address space")
@pytest.mark.parametrize("context", [2_000_000_000, 4_000_000])
def test_real_log_of_a_context_that_is_too_large(context: int) -> None:
    # A memory limit makes the start fail; llama.cpp fails in one of two places, depending on the size.
    log, status = run_llama_cpp(WEIGHTS, context=context, memory=3 * 1024**3)
    assert diagnosis(log, status) == Diagnosis("llama.cpp could not get the memory it needs", LESS), log


# Lines of builds and machines that are not here: of llama.cpp's sources and of its users' reports.
LINES = [
    (
        "alloc_buffer: allocating 4608.00 MiB on device 0: cudaMalloc failed: out of memory",
        Diagnosis("llama.cpp could not get the memory it needs", LESS),
    ),
    (
        "ggml_metal_graph_compute: command buffer 0 failed with status 5 error: "
        "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        Diagnosis("llama.cpp could not get the memory it needs", LESS),
    ),
    (
        "llama_model_load: error loading model: done_getting_tensors: wrong number of tensors; expected 23, got 21",
        Diagnosis("the GGUF has 23 tensors, and this architecture has 21: it was made for another program", CONVERTED),
    ),
    (
        "error: invalid argument: --metrics",
        Diagnosis(
            "this `llama-server` does not know the flag `--metrics`: it is too old",
            "update it, or set `engines.llamacpp.server` to a newer one",
        ),
    ),
    (
        "clip_init: failed to load model 'm.gguf': load_hparams: unknown ffn op: 9",
        Diagnosis("llama.cpp cannot load the vision projector: load_hparams: unknown ffn op: 9", ANOTHER_MMPROJ),
    ),
    (
        "0.00.057.178 E srv  load_model: something new has failed",
        Diagnosis("llama.cpp says: load_model: something new has failed", "`llmdeploy logs` has the rest"),
    ),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[line[:40] for line, _ in LINES])
def test_known_lines(line: str, expected: Diagnosis) -> None:
    assert diagnosis(["loading model", line, "exiting"], 1) == expected


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (-signal.SIGKILL, "the server was killed from outside (SIGKILL)"),
        (-signal.SIGTERM, "the server was killed from outside (SIGTERM)"),
        (-signal.SIGILL, "this processor lacks instructions that the engine's build uses (AVX2)"),
    ],
)
def test_signal_goes_before_the_log(status: int, cause: str) -> None:
    found = diagnosis(["ggml_aligned_malloc: insufficient memory (attempted to allocate 1.00 MB)"], status)
    assert found is not None
    assert found.cause == cause


def test_log_without_a_known_line() -> None:
    assert diagnosis([], 1) is None
    assert diagnosis(["srv  init: initializing ...", ""], 3) is None


def test_old_error_is_not_the_cause_of_a_crash() -> None:
    assert diagnosis(["0.00.057.178 E srv  operator(): a request was wrong"], -signal.SIGSEGV) is None


# The same through the front: one sentence, one hint, nothing left.

LOG = "; its log is `[FOLDER]/state/server.log`"

FRONT = [
    (
        lambda folder: edited(folder, WEIGHTS, b"qwen2vl", b"qwen9xl"), None,
        "error: the server ended before it was ready: this llama.cpp does not know the architecture `qwen9xl`",
        f"hint: {NEWER}{LOG}",
    ),
    (
        lambda folder: edited(folder, WEIGHTS, b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"), None,
        "error: the server ended before it was ready: "
        "the GGUF lacks the tensor `blk.0.attn_q.weight`: it was made for another program",
        f"hint: {CONVERTED}{LOG}",
    ),
    (
        lambda folder: copy_selftest(folder, mmproj=False), mmproj_of_another_model,
        "error: the server ended before it was ready: "
        "the vision projector belongs to another model: it is 96 wide and the model 128",
        f"hint: give the right one with `--mmproj`{LOG}",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "mmproj", "error", "hint"), FRONT, ids=["architecture", "tensor", "mmproj"])
@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["foreground", "detached"])
def test_serve_reports_cause_and_fix(
    world: World,
    weights: Callable[[Path], Path],
    mmproj: Callable[[Path], Path] | None,
    error: str,
    hint: str,
    detach: list[str],
) -> None:
    arguments = ["serve", weights(world.work), *(["--mmproj", mmproj(world.work)] if mmproj else []), *detach]
    result = world.run(*arguments)
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-2:] == [error, hint]
    assert [line for line in result.stderr.splitlines() if not line.startswith(("[TIME] ", "     "))] == [error, hint]
    assert not world.processes()
    assert world.run("status").stdout.startswith("failed: ")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo strange words; exit 3", "the server ended before it was ready (status 3): strange words"),
        ("echo strange words; echo; exit 3", "the server ended before it was ready (status 3): strange words"),
        ("exit 255", "the server ended before it was ready (status 255): it wrote nothing"),
        ("kill -SEGV $$", "the server ended before it was ready (SIGSEGV): it wrote nothing"),
    ],
)
def test_unknown_failure_shows_the_last_line_and_the_log(world: World, script: str, message: str) -> None:
    program = world.work / "llama-server"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "version: 1"; exit 0; }}\n{script}\n')
    program.chmod(0o755)
    result = world.run("serve", "selftest", LLMDEPLOY_ENGINES_LLAMACPP_SERVER=str(program))
    assert result.status == 1
    assert result.stderr.splitlines()[-2:] == [f"error: {message}", "hint: its log is `[FOLDER]/state/server.log`"]
    assert not world.processes()
