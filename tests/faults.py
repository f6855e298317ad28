"""Random faults for a running service: what breaks, and how it is mended. `test_faults.py` says what must hold."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import psutil

from tests.conftest import World

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    const char *name = getenv("FAULTS_CLOCK");
    if (status == 0 && clock == CLOCK_REALTIME && name) {
        FILE *file = fopen(name, "r");
        long jump = 0;
        if (file) { if (fscanf(file, "%ld", &jump) != 1) jump = 0; fclose(file); }
        now->tv_sec += jump;
    }
    return status;
}
"""
"""A library that moves the clock of the processes that load it: the machine's own clock belongs to others too."""

STALL = 5
"""Seconds after which a frozen server is started again."""
STOPPED = (0.3, 4.0)
"""Seconds that a process is stopped for: less than after which a frozen server is started again."""


class ShutIn(World):
    """A world whose processes have their own shared memory, where it can be looked at: others use the machine's."""

    memory: Path | None = None

    def command(self, *arguments: str | Path) -> list[str]:
        command = super().command(*arguments)
        if self.memory is None:
            return command
        script = 'mount --bind "$0" /dev/shm && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(self.memory), *command]


class Faulty:
    """A world whose processes, files, disk and clock can be broken."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.world = ShutIn(folder)
        self.random = random
        self._disk = folder / "disk"
        self._disk.mkdir()
        self.has_disk = _mount(self._disk)
        self.world.state = self._disk / "state"
        self.world.environment["LLMDEPLOY_STATE_DIR"] = str(self.world.state)
        self.memory = folder / "memory"
        self.memory.mkdir()
        if self.has_disk:  # who may mount one may mount the other
            self.world.memory = self.memory
        self.world.environment["LLMDEPLOY_GATEWAY_STALL_TIMEOUT"] = str(STALL)
        self._jump = folder / "jump"
        self.has_clock = self._load_clock(folder)

    def close(self) -> None:
        self.world.close()
        if self.has_disk:
            subprocess.run(["umount", "--lazy", self._disk], check=False)

    def _load_clock(self, folder: Path) -> bool:
        library = folder / "clock.so"
        source = library.with_suffix(".c")
        source.write_text(CLOCK)
        compiler = shutil.which("cc")
        if compiler is None or subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"]).returncode:
            return False
        self.world.environment |= {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(self._jump)}
        return True

    # The processes

    def processes(self, kind: str) -> list[psutil.Process]:
        """List the processes of one kind: `service`, `watchdog` or `engine`."""
        return [process for process in self.world.processes() if _kind(process) == kind]

    def signal(self, kind: str, number: int) -> None:
        found = self.processes(kind)
        if found:
            with contextlib.suppress(psutil.Error):
                self.random.choice(found).send_signal(number)

    @contextmanager
    def stopped(self, kind: str) -> Iterator[None]:
        found = self.processes(kind)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        try:
            yield
        finally:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.resume()

    @contextmanager
    def limited(self, resource: int, most: Callable[[psutil.Process], int]) -> Iterator[None]:
        """Limit what the service may have of something."""
        before: dict[psutil.Process, tuple[int, int]] = {}
        for process in self.processes("service"):
            with contextlib.suppress(psutil.Error):
                before[process] = process.rlimit(resource)
                process.rlimit(resource, (most(process), before[process][1]))
        try:
            yield
        finally:
            for process, limits in before.items():
                with contextlib.suppress(psutil.Error):
                    process.rlimit(resource, limits)

    # The disk and the clock

    @contextmanager
    def full(self, *, inodes: bool) -> Iterator[None]:
        """Fill the disk of the state folder; without a disk of its own, the service may write no file."""
        if not self.has_disk:
            with self.limited(psutil.RLIMIT_FSIZE, lambda _: 0):
                yield
            return
        filler = self._disk / "filler"
        filler.mkdir()
        try:
            with contextlib.suppress(OSError):
                if inodes:
                    for number in range(10_000):
                        (filler / str(number)).touch()
                with (filler / "0").open("wb", buffering=0) as file:
                    for piece in (b"\0" * 2**16, b"\0"):
                        with contextlib.suppress(OSError):
                            while file.write(piece):
                                pass
            yield
        finally:
            shutil.rmtree(filler)

    @contextmanager
    def jumped(self, seconds: int) -> Iterator[None]:
        self._jump.write_text(str(seconds))
        try:
            yield
        finally:
            self._jump.unlink()

    # The files

    def lose(self, name: str) -> None:
        for path in self.world.state.glob(name):
            with contextlib.suppress(OSError):
                path.unlink()

    @contextmanager
    def replaced(self, name: str) -> Iterator[None]:
        """Put a folder where the service has a file."""
        path = self.world.state / name
        self.lose(name)
        with contextlib.suppress(OSError):
            path.mkdir()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.rmdir()


Fault = Callable[[Faulty, ExitStack], None]
"""Breaks something; the stack mends it."""


def _signal(kind: str, number: int) -> Fault:
    return lambda it, _: it.signal(kind, number)


def _stop(kind: str) -> Fault:
    return lambda it, stack: stack.enter_context(it.stopped(kind))


def _lose(name: str) -> Fault:
    return lambda it, _: it.lose(name)


def _garbage(it: Faulty, _: ExitStack) -> None:
    with contextlib.suppress(OSError):
        (it.world.state / "deployment.json").write_bytes(it.random.randbytes(100))


def _no_descriptors(it: Faulty, stack: ExitStack) -> None:
    stack.enter_context(it.limited(psutil.RLIMIT_NOFILE, lambda process: process.num_fds()))


FROZEN = "an engine that stays stopped"

BLOWS: dict[str, Fault] = {
    FROZEN: _signal("engine", signal.SIGSTOP),
    "kill -9 of the engine": _signal("engine", signal.SIGKILL),
    "kill of the engine": _signal("engine", signal.SIGTERM),
    "kill -9 of the watchdog": _signal("watchdog", signal.SIGKILL),
    "kill of the watchdog": _signal("watchdog", signal.SIGTERM),
    "a stopped engine": _stop("engine"),
    "a stopped watchdog": _stop("watchdog"),
    "a stopped service": _stop("service"),
    "a deleted record": _lose("deployment.json"),
    "a broken record": _garbage,
    "a deleted token": _lose("token"),
    "deleted logs": _lose("*.log*"),
    "deleted sockets": _lose("*.sock*"),
    "a deleted lock": _lose("service.lock"),
    "a folder for a log": lambda it, stack: stack.enter_context(it.replaced("server.log")),
}
"""Faults that happen in a moment."""

CONDITIONS: dict[str, Fault] = {
    "a disk without blocks": lambda it, stack: stack.enter_context(it.full(inodes=False)),
    "a disk without inodes": lambda it, stack: stack.enter_context(it.full(inodes=True)),
    "no descriptors": _no_descriptors,
    "a clock a day ahead": lambda it, stack: stack.enter_context(it.jumped(86_400)),
    "a clock a year behind": lambda it, stack: stack.enter_context(it.jumped(-31_536_000)),
}
"""Faults that last for a while, in which another may happen."""


def _kind(process: psutil.Process) -> str:
    """Return what a process of the service is; empty for a command."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if any(word.endswith("watchdog.py") for word in words):
            return "watchdog"
        if any(word.endswith(("server_program", "server_program.py", "llama-server")) for word in words):
            return "engine"
        if "serve" in words and "LLMDEPLOY_TICKET" in process.environ():
            return "service"
    return ""


def _mount(folder: Path) -> bool:
    """Mount a small disk of its own; return whether that is allowed here."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=2000,mode=0700", "tmpfs", str(folder)]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
