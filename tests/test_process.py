"""Processes beyond doubt, and the leash that ends a server whatever happens to its holder."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from llmdeploy.engines.diagnosis import Exited
from llmdeploy.service.process import (
    ProcessId,
    alive,
    identify,
    kill_group,
    kill_orphans,
    orphans,
    terminate,
    wait_gone,
    wait_identifiable,
)
from llmdeploy.service.server_process import GUARD, Child
from tests.conftest import until

GRACE = 0.3
WITHIN = 9.0


@dataclass(frozen=True)
class Run:
    lines: list[str]
    status: int
    seconds: float
    """Seconds from releasing the leash to the end."""
    server: ProcessId | None


def run(*argv: str, let_go_at: str | None = None, grace: float = GRACE, **env: str) -> Run:
    """Run a server on its leash; release the leash when it writes a line with this beginning, and wait for its end."""

    lines: list[str] = []
    told: queue.SimpleQueue[None] = queue.SimpleQueue()

    def on_line(line: str) -> None:
        lines.append(line)
        if let_go_at is not None and line.startswith(let_go_at):
            told.put(None)

    child = Child(argv, {**os.environ, **env}, grace, on_line)
    if let_go_at is not None:
        told.get(timeout=20)
        child.let_go()
    let_go = time.monotonic()
    ended = child.exit.result(20)
    assert isinstance(ended, Exited)
    status = ended.status
    return Run(lines, status, time.monotonic() - let_go, child.server)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux tells what is open")
def test_a_server_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockingIOError):
        Child(("sleep", "60"), {}, GRACE, print)
    assert len(os.listdir("/proc/self/fd")) == before


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", code


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Start an unrelated process in its own process group."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


# Identity


def test_a_process_is_known_by_pid_and_start(bystander: subprocess.Popen[bytes]) -> None:
    found = identify(bystander.pid)
    assert found is not None
    assert found.pid == bystander.pid
    assert found == identify(bystander.pid)
    assert alive(found)


def test_pid_that_does_not_exist() -> None:
    assert identify(2**22 + 1) is None  # beyond Linux's largest pid
    assert not alive(None)


def test_reused_pid_is_another_process(bystander: subprocess.Popen[bytes]) -> None:
    found = identify(bystander.pid)
    assert found is not None
    before = ProcessId(found.pid, found.started - 1)
    assert not alive(before)
    assert wait_gone(before, 0)
    terminate(before, kill=True)
    kill_group(before)
    assert alive(found)
    assert bystander.poll() is None


def test_a_zombie_is_not_alive(bystander: subprocess.Popen[bytes]) -> None:
    found = identify(bystander.pid)
    assert found is not None
    bystander.kill()  # and nothing waits for it
    assert wait_gone(found, WITHIN)
    assert psutil.Process(bystander.pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("name", [b"a) Z 1 1 (b", b"\xff\xfe", b"", b"two\nlines"])
def test_any_process_name(name: bytes) -> None:
    code = f"import ctypes, time; ctypes.CDLL(None).prctl(15, {name!r}); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        before = identify(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert before is not None
            assert identify(process.pid) == before
        finally:
            process.kill()


def test_waiting_ends(bystander: subprocess.Popen[bytes]) -> None:
    found = identify(bystander.pid)
    assert found is not None
    assert not wait_gone(found, 0.05)
    terminate(found)
    assert wait_gone(found, WITHIN)
    assert bystander.wait() == -signal.SIGTERM


# Output and exit


@pytest.mark.parametrize("status", [0, 1, 3, 127, 255])
def test_exit_statuses_come_through(status: int) -> None:
    assert run("sh", "-c", f"exit {status}").status == status


@pytest.mark.parametrize("name", ["SEGV", "KILL", "TERM", "ABRT", "ILL"])
def test_signals_come_through(name: str) -> None:
    assert run("sh", "-c", f"kill -{name} $$").status == -signal.Signals[f"SIG{name}"]


@pytest.mark.parametrize(
    ("program", "why"), [("/no/such/program", "No such file or directory"), ("/etc", "Permission denied")]
)
def test_a_program_that_cannot_be_run(program: str, why: str) -> None:
    result = run(program, "--flag")
    assert (result.lines, result.status) == ([f"cannot run `{program}`: {why}"], 127)
    assert result.server is None


WRITERS = [
    ("two streams, one log", "sh", "echo out; echo err >&2", ["out", "err"]),
    ("no end of line", "sh", "printf 'one\\ntwo'", ["one", "two"]),
    ("windows", "sh", "printf 'one\\r\\ntwo\\r\\n'", ["one", "two"]),
    ("blank lines", "sh", "printf 'one\\n\\ntwo\\n'", ["one", "", "two"]),
    ("not UTF-8", "sh", r"printf 'a\377b\nc\n'", ["a�b", "c"]),
    ("another script", "sh", "echo 你好", ["你好"]),
    ("nothing", "sh", ":", []),
]


@pytest.mark.parametrize(("program", "script", "lines"), [w[1:] for w in WRITERS], ids=[w[0] for w in WRITERS])
def test_output_comes_through(program: str, script: str, lines: list[str]) -> None:
    result = run(program, "-c", script)
    assert (result.lines, result.status) == (lines, 0)


@pytest.mark.parametrize("size", [2**16 + 1, 2**20, 2**20 + 1, 5_000_000])
def test_a_line_of_any_length_comes_through(size: int) -> None:
    """Write a line longer than every buffer: it arrives in pieces, and the next line is complete."""
    result = run(*python(f"print('x' * {size}); print('after')"))
    assert "".join(result.lines[:-1]) == "x" * size
    assert result.lines[-1] == "after"


def test_all_of_a_long_output_comes_through() -> None:
    result = run(*python("for n in range(100_000): print(n)"))
    assert result.lines == [str(number) for number in range(100_000)]


@pytest.mark.parametrize("script", ["echo 1; echo 1 >&2; exec sleep 60", "exec >&-; echo 1 >&2; exec sleep 60"])
def test_output_is_not_mistaken_for_the_pid(script: str) -> None:
    lines: list[str] = []
    child = Child(("sh", "-c", script), {}, GRACE, lines.append)
    server = child.server
    assert server is not None
    until(lambda: psutil.Process(server.pid).cmdline() == ["sleep", "60"])
    leader = os.getpgid(server.pid)
    child.kill()
    assert child.exit.result(WITHIN) == Exited(-signal.SIGKILL)
    assert leader == server.pid
    assert set(lines) == {"1"}
    assert not alive(server)


def test_server_gets_variables_and_no_stdin() -> None:
    assert run("sh", "-c", 'cat; echo "$THEIRS"', THEIRS="2").lines == ["2"]


# The leash


def test_server_that_obeys_sigterm_ends_at_once() -> None:
    result = run("sh", "-c", "echo ready; exec sleep 60", let_go_at="ready", grace=WITHIN)
    assert result.status == -signal.SIGTERM
    assert result.seconds < WITHIN / 2


def test_server_gets_time_to_clean_up() -> None:
    script = "trap 'sleep 0.2; echo clean; exit 7' TERM; echo ready; while :; do sleep 0.02; done"
    result = run("sh", "-c", script, let_go_at="ready", grace=WITHIN)
    assert (result.status, result.lines[-1]) == (7, "clean")


def test_server_that_ignores_sigterm_is_killed_after_the_grace_period() -> None:
    result = run("sh", "-c", "trap '' TERM; echo ready; sleep 60", let_go_at="ready")
    assert result.status == -signal.SIGKILL
    assert GRACE <= result.seconds < WITHIN


@pytest.mark.parametrize(
    ("script", "let_go_at"),
    [
        ("sleep 60 & echo $!; wait", ""),
        ("(trap '' TERM; sleep 60) & sleep 0.05; echo $!; wait", ""),  # the child ignores SIGTERM, its parent does not
        ("sleep 60 & echo $!; exit 0", None),  # its parent exits by itself
        ("sleep 60 & echo $!; kill -9 $$", None),
    ],
)
def test_what_a_server_started_ends_with_it(script: str, let_go_at: str | None) -> None:
    result = run("sh", "-c", script, let_go_at=let_go_at)
    until(lambda: identify(int(result.lines[0])) is None, WITHIN)


HOLDER = """
import sys
from llmdeploy.service.server_process import GUARD, Child

child = Child(("sh", "-c", sys.argv[1]), {}, 0.3, print)
print(child.server.pid, flush=True)
child.exit.result()
"""


@pytest.mark.parametrize("script", ["exec sleep 60", "trap '' TERM; sleep 60"], ids=["polite", "deaf"])
def test_the_death_of_the_holder_ends_the_server(script: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        server = identify(int(holder.stdout.readline()))
        assert server is not None
        guard = identify(psutil.Process(server.pid).ppid())
        assert guard is not None
        holder.kill()
        assert wait_gone(server, WITHIN)
        assert wait_gone(guard, WITHIN)


def test_watchdog_works_if_its_starter_dies_early(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    unread, pid_pipe = os.pipe()
    os.close(unread)
    script = f"echo $$ > {shlex.quote(str(told))}; exec sleep 60"
    command = [sys.executable, "-I", "-S", str(GUARD), str(GRACE), "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=pid_pipe, stderr=subprocess.DEVNULL) as guard:
        os.close(pid_pipe)
        assert guard.stdin is not None
        until(lambda: told.exists() and told.read_text().strip() != "", WITHIN)
        server = identify(int(told.read_text()))
        assert server is not None
        guard.stdin.close()
        assert guard.wait(WITHIN) == 128 + signal.SIGTERM
        assert wait_gone(server, WITHIN)


def test_rest_of_a_process_group_is_found_without_its_leader() -> None:
    script = "sleep 60 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdout is not None
        left = int(shell.stdout.readline())
        leader = identify(shell.pid)
        assert leader is not None
        assert orphans(leader) == [], "it still leads"
        shell.kill()
    assert orphans(leader) == [left]
    kill_orphans(leader)
    until(lambda: orphans(leader) == [], WITHIN)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_identification_waits_for_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []

    def full(*_: object) -> object:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return contextlib.nullcontext()

    monkeypatch.setattr("builtins.open", full)
    wait_identifiable(5)
    monkeypatch.undo()
    assert len(tries) == 3
