"""Ways to the upstream that benchmarks/gateway.py compares: direct, through nginx, through the gateway."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from startup import free_port

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
PR_SET_PDEATHSIG = 1
STOPS_WITHIN = 20.0  # seconds
LIBC = ctypes.CDLL(None)
NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream engine {{
    server 127.0.0.1:{upstream};
    keepalive 512;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 0;
    keepalive_requests 1000000000;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Cores:
    """Numbers of the cores for the proxy and for the load."""

    proxy: int
    load: int


@dataclass(frozen=True)
class Way:
    """One way to the upstream: its port, and the process id of its proxy."""

    name: str
    port: int
    pid: int | None = None

    @contextmanager
    def cpu(self) -> Iterator[Cpu]:
        """Measure the CPU time that the process takes during the block."""
        spent = Cpu()
        before = self._cpu_seconds()
        yield spent
        spent.us = 1e6 * (self._cpu_seconds() - before)

    def _cpu_seconds(self) -> float:
        # The clock of clock_getcpuclockid(3): user and system time in ns; /proc has ticks of 10 ms only.
        return 0.0 if self.pid is None else time.clock_gettime((~self.pid << 3) | 2)


@dataclass
class Cpu:
    """CPU time in us."""

    us: float = 0.0


def pss(pid: int | None) -> float:
    """Return the proportional set size (PSS) of a process in MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024


def _settle(core: int | None) -> None:
    """Prepare the child process: set its core, ignore Ctrl-C, and end it when this process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if core is not None:
        os.sched_setaffinity(0, {core})
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def started(
    command: list[str], core: int | None = None, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, on `core` if given, until the end of the block."""
    settle = partial(_settle, core)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=environment, preexec_fn=settle)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    sys.exit(f"error: `{process.args[0]}` could not be started")  # type: ignore[index]


@contextmanager
def nginx(upstream: int, folder: Path, core: int) -> Iterator[Way]:
    port = int(free_port())
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
    # Without `-e`, Debian's nginx opens its log in /var/log before it reads the configuration.
    with started(["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)], core) as process:
        wait_for_port(process, port)
        yield Way("nginx", port, process.pid)


@contextmanager
def gateway(upstream: int, core: int) -> Iterator[Way]:
    script = Path(__file__).with_name("gateway_alone.py")
    with started([sys.executable, str(script), str(upstream)], core) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("error: the gateway could not be started")
        yield Way("gateway", int(line), process.pid)
