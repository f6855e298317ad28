"""Load of benchmarks/gateway.py: requests by wrk, streams and their upstream by gateway_load.c."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_ways import Cores, started

ROUTE = "/v1/chat/completions"
Counted = dict[str, Any]
ATTEMPTS = 100
LONGEST = 60.0  # seconds
HEARD_WITHIN = 5.0  # seconds to wait for a line of the upstream
WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local requests = {}

function init(arguments)
  local padding, different = tonumber(arguments[1]), tonumber(arguments[2])
  for i = 1, different do
    local text = "hi" .. string.rep("x", padding + i)
    wrk.body = '{"model":"bench","messages":[{"role":"user","content":"' .. text .. '"}]}'
    requests[i] = wrk.format()
  end
end

function request() return requests[math.random(#requests)] end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local line = '{"requests": %d, "seconds": %f, "failed": %d, "p50": %d, "p99": %d}'
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  print(line:format(summary.requests, summary.duration / 1e6, failed, p50, p99))
end
"""


class Upstream:
    """The engine's part: answers at once, streams at the rate that a request asks for, reports clients that left."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.port = int(self._line())

    def cut(self) -> int:
        """Wait until a client leaves in mid-stream; return the monotonic time in ns."""
        return int(self._line().split()[1])

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], HEARD_WITHIN)[0]:
            raise TimeoutError
        return self._process.stdout.readline()


@dataclass(frozen=True)
class Load:
    """Programs that load a way, on the core for the load."""

    folder: Path
    cores: Cores

    def build(self) -> None:
        """Build the streaming client and write wrk's script. In Python the client's own delays would be measured."""
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-o", self._program, source], check=True)
        self._script.write_text(WRK_SCRIPT)

    @property
    def _program(self) -> str:
        return str(self.folder / "gateway_load")

    @property
    def _script(self) -> Path:
        return self.folder / "wrk.lua"

    @property
    def upstream_command(self) -> list[str]:
        return [self._program, "upstream"]

    def requests(self, port: int, connections: int, seconds: float, length: int = 0, different: int = 1024) -> Counted:
        """Run wrk with requests of `different` lengths; return its counts, with latencies in us."""
        url = f"http://127.0.0.1:{port}{ROUTE}"
        command = ["wrk", "-t1", f"-c{connections}", "-d10m", "--latency", "-s", str(self._script), url, "--"]
        with started([*command, str(length), str(different)], self.cores.load) as wrk:
            counted: Counted = json.loads(interrupted(wrk, seconds).splitlines()[-1])
        if counted["failed"] or seconds > LONGEST:
            sys.exit(f"error: requests failed: {counted}")
        if not counted["requests"]:  # interrupted before the first answer
            return self.requests(port, connections, 2 * seconds, length, different)
        return counted

    def streams(self, port: int, count: int, chunks: int, interval_us: int = 0, requests: int = 1) -> Counted:
        """Run the streaming client; return its counts, with delays and the time to the first chunk in us."""
        numbers = [str(number) for number in (port, count, requests, chunks, interval_us)]
        with started([self._program, "streams", *numbers], self.cores.load) as client:
            counted: Counted = json.loads(client.communicate(timeout=120)[0])
        if counted["cut"] or counted["chunks"] != count * requests * chunks:
            sys.exit(f"error: streams were cut: {counted}")
        return counted


def interrupted(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Interrupt a process after `seconds`; return its output. wrk's own duration is in whole seconds only."""
    for _ in range(ATTEMPTS):
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # repeated, because wrk ignores it while it starts
    sys.exit("error: wrk does not stop")


def abort_seconds(port: int, upstream: Upstream) -> float:
    """Measure the seconds from a client's leaving in mid-stream until the upstream's connection is closed."""
    wishes = {
        "stream": True,
        "max_tokens": 1_000_000,
        "seed": 20_000,
    }  # the interval in us, in a field that is passed on
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": "bench", **wishes, "messages": messages}, separators=(",", ":"))
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=HEARD_WITHIN) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        came = b""
        while b"@" not in came:  # marks the time in a chunk
            came += (more := client.recv(65536))
            if not more or b" 200 " not in came[:16]:
                sys.exit(f"error: a stream did not begin: {came[:500]!r}")
        left = time.monotonic_ns()
    try:
        return (upstream.cut() - left) / 1e9
    except TimeoutError:
        return HEARD_WITHIN
