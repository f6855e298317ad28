"""The benchmarks run. No test depends on their figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

GATEWAY = Path(__file__).parents[1] / "benchmarks" / "gateway.py"
PULL = GATEWAY.with_name("pull.py")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"])  # where the benchmark looks for them
MISSING = [program for program in ("nginx", "wrk", "gcc") if shutil.which(program, path=PATH) is None]
ROWS = {
    "memory at rest: PSS, MiB",
    "memory once it is warm: PSS, MiB",
    "memory after requests: PSS, MiB",
    "memory of `llmdeploy serve` at rest: PSS, MiB",
    "small requests, 1 connection: requests/s",
    "small requests, 1 connection: CPU us/request",
    "small requests, 1 connection: latency p50, us",
    "small requests, 1 connection: latency p99, us",
    "small requests, 1 connection: added to p50, us",
    "small requests, 1 connection: added to p99, us",
    "small requests, 32 connections: requests/s",
    "small requests, 32 connections: CPU us/request",
    "first byte of a stream: latency p50, us",
    "first byte of a stream: latency p99, us",
    "first byte of a stream: added to p50, us",
    "first byte of a stream: added to p99, us",
    "10-MB bodies, 1 connection: requests/s",
    "10-MB bodies, 1 connection: CPU ms/request",
    "10-MB bodies, 4 connections: requests/s",
    "10-MB bodies, 4 connections: CPU ms/request",
    "a client's abort, seen upstream after: ms",
}
for streams in ("1 stream", "32 streams", "256 streams"):
    ROWS |= {f"{streams} of 50 chunks/s: delay p{percent}, us" for percent in (50, 99)}
    ROWS |= {f"{streams} of 50 chunks/s: chunks in time, %", f"{streams} of 50 chunks/s: CPU us/chunk"}
    ROWS |= {f"{streams} at full speed: chunks/s", f"{streams} at full speed: CPU us/chunk"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_gateway_benchmark_runs_and_cleans_up(tmp_path: Path) -> None:
    """Check the rows, the goals and the exit status, and that no process or file is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    document = tmp_path / "figures.json"
    command = [sys.executable, str(GATEWAY), "--quick", "--json", str(document)]
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if not line.startswith("warning: the machine")] == []
    table, goals = done.stdout.split("\n\n")
    assert {line[:52].rstrip() for line in table.splitlines()[1:]} == ROWS
    assert [line.split()[-1] in ("ok", "missed") for line in goals.splitlines()[1:]] == [True] * 9
    assert done.returncode == (1 if " missed\n" in goals else 0)
    assert set(json.loads(document.read_text())["figures"]) == ROWS
    assert list(folder.iterdir()) == []
    assert [
        it.pid for it in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(it.info["cmdline"] or ())
    ] == []


@pytest.mark.skipif(shutil.which("wrk", path="/usr/local/sbin:/usr/sbin") is not None, reason="wrk is always found")
def test_gateway_benchmark_reports_missing_programs(tmp_path: Path) -> None:
    """Run without wrk: the benchmark says how to install it."""
    done = subprocess.run(
        [sys.executable, str(GATEWAY)], env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: not installed: ")
    assert "`wrk`" in error
    assert hint.startswith("hint: apt install ")
    assert "wrk" in hint


@pytest.mark.skipif(os.name != "posix", reason="ends what it started as POSIX does")
def test_pull_benchmark_runs_and_cleans_up(tmp_path: Path) -> None:
    """Check that both transports are measured, and that the exit status reflects the ratios."""
    command = [sys.executable, str(PULL), "--mb", "2", "--rounds", "1", "--json"]
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.stderr == ""
    figures = json.loads(done.stdout)
    assert [figure["transport"] for figure in figures] == ["HTTP", "Xet"]
    assert all(figure["mb_s"] > 0 and figure["ratios"] == [figure["ratio"]] for figure in figures)
    assert done.returncode == (0 if all(figure["ratio"] >= figure["limit"] for figure in figures) else 1)
    assert list(tmp_path.iterdir()) == []
