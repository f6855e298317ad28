"""The bound on a server's memory, and what a server leaves behind: temporary files and shared memory."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.engines.diagnosis import Exited, over_bound
from llmdeploy.engines.vllm import fit
from llmdeploy.gateway.content import MOST_PIXELS_TOGETHER
from llmdeploy.plan import (
    BOUND_BYTES,
    IMAGES_BYTES,
    LEFT_BYTES,
    RESERVE_BYTES,
    VISION,
    MemoryBound,
    MemoryPart,
    Plan,
    Setting,
    memory_bound,
)
from llmdeploy.service import scratch
from llmdeploy.service.process import identify
from llmdeploy.service.server_process import Child
from llmdeploy.units import GIB, MIB
from tests.conftest import BUSY, SELFTEST, free_port, until

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux tells what a process takes")

GRACE = 0.3
RUNAWAY = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^a{3,1}$"}}}
"""A grammar whose repetition ends before it begins: llama.cpp takes all memory for it."""


def plan(needed: int, free: int | None) -> Plan:
    available = None if free is None else MemoryPart("available", free, "")
    return Plan(Setting(8192, ""), Setting(4, ""), (MemoryPart("weights", needed, ""),), available)


# The decision


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [
        (4 * GIB, 30 * GIB, 8 * GIB),
        (4 * GIB, None, 8 * GIB),
        (4 * GIB, 6 * GIB, 6 * GIB - GIB // 2),  # less than the headroom is free
        (4 * GIB, 4 * GIB, 4 * GIB + GIB // 2),  # the plan itself must always be possible
    ],
)
def test_bound_is_the_plan_with_headroom_and_leaves_memory(needed: int, free: int | None, expected: int) -> None:
    assert memory_bound(plan(needed, free), on_gpu=False).bytes == expected


def test_bound_of_a_server_that_sees_images_has_room_for_large_ones_in_each_slot() -> None:
    text = plan(4 * GIB, None)
    sees = replace(text, memory=(*text.memory, MemoryPart(VISION, 0, "")))
    added = memory_bound(sees, on_gpu=False).bytes - memory_bound(text, on_gpu=False).bytes
    assert added == sees.parallel.value * IMAGES_BYTES
    assert IMAGES_BYTES >= 6 * MOST_PIXELS_TOGETHER


@given(st.integers(0, 2**42), st.none() | st.integers(0, 2**42))
def test_any_bound_holds_the_plan_and_no_more_than_is_free(needed: int, free: int | None) -> None:
    bound = memory_bound(plan(needed, free), on_gpu=False)
    assert needed + RESERVE_BYTES <= bound.bytes <= needed * 3 // 2 + BOUND_BYTES
    if free is not None and needed <= free - LEFT_BYTES:
        assert bound.bytes <= free + RESERVE_BYTES - LEFT_BYTES


def test_addresses_are_not_limited_with_gpus() -> None:
    assert memory_bound(plan(GIB, None), on_gpu=False).is_hard
    assert not memory_bound(plan(GIB, None), on_gpu=True).is_hard


def test_vllm_is_bound_only_when_its_memory_is_that_of_the_plan() -> None:
    assert fit.bound(plan(GIB, None), {}, (), "cpu") is not None
    assert fit.bound(plan(GIB, None), {}, (), "cuda") is None
    assert fit.bound(plan(GIB, None), {"kv_cache_memory_bytes": "64G"}, (), "cpu") is None
    assert fit.bound(plan(GIB, None), {}, ("--swap-space", "64"), "cpu") is None


def test_diagnosis_of_a_server_above_its_bound() -> None:
    log = ["loading", "watchdog: ended, memory 3221225472 of 2147483648 bytes", ""]
    found = over_bound(log)
    assert found is not None
    assert found.cause == "it took 3.0 GiB of memory, and its bound is 2.0 GiB"
    assert over_bound([*log, "something else"]) is None
    assert over_bound([]) is None


# The watchdog


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", code


BY_A_WORKER = "import os, time\nif os.fork() == 0: held = b'x' * {size}\ntime.sleep(60)"


def test_a_group_above_its_bound_is_ended() -> None:
    lines: list[str] = []
    child = Child(python(BY_A_WORKER.format(size=200 * MIB)), {}, GRACE, lines.append, MemoryBound(100 * MIB, "", True))
    assert child.exit.result(20) == Exited(-9)
    assert over_bound(lines) is not None


def test_a_server_below_its_bound_is_left_alone() -> None:
    lines: list[str] = []
    code = "held = b'x' * 2**20; import time; print('held', flush=True); time.sleep(0.5); print('left', flush=True)"
    child = Child(python(code), {}, GRACE, lines.append, MemoryBound(100 * MIB, "", True))
    assert child.exit.result(20) == Exited(0)
    assert lines == ["held", "left"]


def test_a_server_is_what_the_kernel_ends_first_and_cannot_allocate_without_end() -> None:
    lines: list[str] = []
    code = (
        "import resource; print(open('/proc/self/oom_score_adj').read(), resource.getrlimit(resource.RLIMIT_DATA)[0])"
    )
    for bound in (MemoryBound(GIB, "", True), MemoryBound(GIB, "", False)):
        Child(python(code), {}, GRACE, lines.append, bound).exit.result(20)
    assert [line for line in lines if line.strip()] == ["900", f" {9 * GIB}", "900", " -1"]


def test_a_request_that_takes_all_memory_ends_at_the_bound() -> None:
    port, lines = free_port(), list[str]()
    program = (sys.executable, "-P", "-m", "llmdeploy.engines.llamacpp.server_program")
    model = ("--model", str(SELFTEST / "selftest-f16.gguf"), "--ctx-size", "2048", "--parallel", "1", "--threads", "1")
    argv = (*program, *model, "--host", "127.0.0.1", "--port", str(port), "--alias", "selftest")
    bound = MemoryBound(250 * MIB, "", True)
    child = Child(argv, {}, GRACE, lines.append, bound)
    try:
        until(lambda: any("listening" in line for line in lines), 20 * BUSY)
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "response_format": RUNAWAY}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())

        def ask() -> None:
            with suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)

        Thread(target=ask, daemon=True).start()
        assert child.exit.result(30 * BUSY) == Exited(-9)
        found = over_bound(lines)
        assert found is not None
        assert "its bound is 250 MiB" in found.cause
    finally:
        child.kill()


# What is left behind

SHARED_MEMORY = (
    "import mmap, os, sys, time\n"
    "file = os.open('/dev/shm/psm_{name}', os.O_RDWR | os.O_CREAT, 0o600); os.ftruncate(file, 4096)\n"
    "held = mmap.mmap(file, 4096); open(os.environ['TMPDIR'] + '/a-file', 'w').close(); print('made', flush=True)\n"
    "time.sleep(60)"
)


def leave(name: str) -> tuple[Child, Path]:
    """Start a server that makes shared memory and a temporary file, and wait until the watchdog knows of both."""
    lines: list[str] = []
    child = Child(python(SHARED_MEMORY.format(name=name)), {}, GRACE, lines.append)
    until(lambda: lines, 10 * BUSY)
    [folder] = [entry for entry in scratch._place()[0].iterdir() if entry.name.startswith(scratch._place()[1])]
    until(lambda: (folder / "shared-memory").exists() and name in (folder / "shared-memory").read_text(), 5 * BUSY)
    assert (folder / "a-file").exists()
    return child, folder


@pytest.mark.parametrize("how", ["killed", "let go"])
def test_shared_memory_and_files_are_removed_with_the_server(how: str) -> None:
    name = f"llmdeploytest{os.getpid()}"
    child, folder = leave(name)
    child.kill() if how == "killed" else child.let_go()
    child.exit.result(10 * BUSY)
    assert not folder.exists()
    assert not Path(f"/dev/shm/psm_{name}").exists()


def test_what_a_killed_watchdog_leaves_is_removed_by_the_next_command() -> None:
    name = f"llmdeploytest{os.getpid()}"
    child, folder = leave(name)
    assert child.server is not None
    scratch.remove_all()  # in use: it stays
    assert Path(f"/dev/shm/psm_{name}").exists()
    folder.mkdir()
    (folder / "shared-memory").write_text(f"/dev/shm/psm_{name}\n/etc/hostname\n")
    os.kill(child._guard.pid, 9)
    child.exit.result(10 * BUSY)
    until(lambda: identify(child.server.pid) is None if child.server else True)
    scratch.remove_all()
    assert not folder.exists()
    assert not Path(f"/dev/shm/psm_{name}").exists()
    assert Path("/etc/hostname").exists()


def test_sockets_have_names_short_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMDEPLOY_STATE_DIR", str(tmp_path / ("long" * 30)))
    folder = scratch.create()
    assert folder is not None
    try:
        assert len(str(folder)) <= scratch.LONGEST
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        scratch.remove_all()
    assert not folder.exists()


def test_shared_memory_is_recognised_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run-x"
    folder.mkdir()
    other = tmp_path / "other"
    other.touch()
    (folder / "shared-memory").write_text(str(other))
    scratch.remove(folder)
    assert other.exists()
    assert not folder.exists()
