"""The record, the lock, and the situation that follows from them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmdeploy.errors import AlreadyServing, LlmdeployError, StateUnwritable
from llmdeploy.service import state
from llmdeploy.service.cleanup import end_leftover
from llmdeploy.service.process import ProcessId, identify, wait_gone
from llmdeploy.service.state import Claim, Record, Situation
from tests.conftest import World

DEAD = ProcessId(os.getpid(), 1.0)
"""Process id that is in use again, with the start time of a process that is gone."""


def this_process() -> ProcessId:
    found = identify(os.getpid())
    assert found is not None
    return found


@pytest.fixture
def folder() -> Path:
    folder = state.state_dir()
    folder.mkdir()
    return folder


@pytest.fixture
def record() -> Record:
    return Record(
        state="ready",
        phase="ready",
        model="./my models/x.gguf",
        served_name="x",
        engine="llamacpp",
        engine_version="1.2",
        url="http://127.0.0.1:11435",
        since="2026-01-02T03:04:05+00:00",
        service=this_process(),
    )


# The record


def test_hint_for_a_full_disk_names_no_other_folder() -> None:
    assert state.unwritable(OSError(errno.ENOSPC, "No space left on device")).hint == (
        "free some space: `df -h` shows what is full"
    )
    assert state.unwritable(OSError(errno.EACCES, "Permission denied")).hint == ELSEWHERE


@pytest.mark.parametrize("full", [False, True])
def test_record_round_trips(folder: Path, record: Record, full: bool) -> None:
    if full:
        record = replace(
            record,
            server=DEAD,
            plan={"context": {"value": 1, "reason": "你好"}},
            error=LlmdeployError("a", "b").as_document(),
        )
    state.write(record)
    assert state.read() == record
    assert [file.name for file in folder.iterdir()] == ["deployment.json"]
    assert oct(state.record_file().stat().st_mode & 0o777) == "0o600"
    state.forget()
    assert state.read() is None
    state.forget()


def test_missing_folder_means_nothing_is_served() -> None:
    assert state.read() is None
    assert state.observe() == Situation("stopped")


CHANGES = {
    "no service": {"service": None},
    "a service that is a number": {"service": 7},
    "a service without a start": {"service": {"pid": 7}},
    "a pid that is a path": {"service": {"pid": "../self", "started": 1}},
    "a pid with a null byte": {"service": {"pid": "\0", "started": 1}},
    "a pid without end": {"service": {"pid": float("inf"), "started": 1}},
    "a pid of many processes": {"service": {"pid": -1, "started": 1}},
    "a server that is every process": {"server": {"pid": 0, "started": 1}},
    "a start beyond numbers": {"service": {"pid": 1, "started": 10**400}},
    "a server that is a list": {"server": [1]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_foreign_record_is_ignored(folder: Path, record: Record, change: dict[str, object]) -> None:
    content = {"schema": state.SCHEMA, **asdict(record)}
    state.record_file().write_text(json.dumps(content))
    assert state.observe() == Situation("ready", record)
    state.record_file().write_text(json.dumps(content | change))
    assert state.observe() == Situation("stopped")


def test_known_fields_of_a_newer_record_are_read(folder: Path, record: Record) -> None:
    """Check that `stop` still finds a service that runs during an upgrade."""
    content = {**asdict(record), "schema": 2, "colour": "red", "plan": {"shape": "new"}, "error": "words"}
    state.record_file().write_text(json.dumps(content))
    assert state.observe() == Situation("ready", replace(record, plan={"shape": "new"}))
    state.record_file().write_text(json.dumps({**content, "state": "draining", "plan": [1, 2]}))
    assert state.observe() == Situation("starting", replace(record, state="starting"))


def test_folder_of_another_user_is_not_trusted(folder: Path, record: Record) -> None:
    """Ignore such a record: a forged one could make llmdeploy kill processes."""
    state.write(record)
    folder.chmod(0o777)
    for act in (state.observe, state.read, lambda: state.lock().__enter__()):
        with pytest.raises(StateUnwritable, match="may be written to by everyone"):
            act()


@pytest.mark.parametrize("name", ["state", "service", "server", "url", "phase"])
def test_record_without_a_field_is_ignored(folder: Path, record: Record, name: str) -> None:
    content = {"schema": state.SCHEMA, **asdict(record)}
    del content[name]
    state.record_file().write_text(json.dumps(content))
    assert state.observe() == Situation("stopped")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1' + b"0" * 5000 + b"}"]
)
def test_broken_record_is_ignored(folder: Path, content: bytes) -> None:
    state.record_file().write_bytes(content)
    assert state.observe() == Situation("stopped")


def test_folder_instead_of_the_record(folder: Path, record: Record) -> None:
    state.record_file().mkdir()
    assert state.observe() == Situation("stopped")
    with pytest.raises(StateUnwritable) as caught:
        state.write(record)
    assert caught.value.message == f"the state folder `{folder}` cannot be written: Is a directory"
    assert [file.name for file in folder.iterdir()] == ["deployment.json"], "the temporary file is left"


def test_reader_always_sees_a_complete_record(folder: Path, record: Record) -> None:
    short, long = record, replace(record, plan={"x": "x" * 300_000})
    state.write(short)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            state.write(long)
            state.write(short)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [state.read() for _ in range(400)]
    finally:
        stop.set()
        writer.join()
    assert all(one in (short, long) for one in seen)
    assert short in seen
    assert long in seen


# The situation


@pytest.mark.parametrize(
    ("claim", "service_lives", "server_lives", "expected", "leftover"),
    [
        ("starting", True, False, "starting", False),
        ("ready", True, True, "ready", False),
        ("failed", True, False, "failed", False),
        ("starting", False, False, "crashed", False),
        ("ready", False, False, "crashed", False),
        ("failed", False, False, "failed", False),
        ("ready", False, True, "crashed", True),
        ("starting", False, True, "crashed", True),
    ],
)
def test_record_is_checked_against_running_processes(
    folder: Path, record: Record, claim: Claim, service_lives: bool, server_lives: bool, expected: str, leftover: bool
) -> None:
    lives = this_process()
    record = replace(
        record, state=claim, service=lives if service_lives else DEAD, server=lives if server_lives else DEAD
    )
    state.write(record)
    assert state.observe() == Situation(expected, record, leftover)  # type: ignore[arg-type]


def test_server_left_by_a_failed_service_is_stopped(folder: Path, record: Record) -> None:
    """Simulate a service that recorded its failure and was killed before it had stopped its server."""
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        server = identify(left.pid)
        state.write(replace(record, state="failed", service=DEAD, server=server))
        situation = state.observe()
        assert situation.leftover
        threading.Thread(target=left.wait).start()  # reap the zombie
        end_leftover(situation)
        assert server is not None
        assert wait_gone(server, 5)
    finally:
        left.kill()


# A folder that cannot be written

BLOCKED = "the state folder `{folder}` cannot be written: Not a directory"
ELSEWHERE = "name another: `LLMDEPLOY_STATE_DIR=/tmp/llmdeploy-$USER llmdeploy serve`"


@pytest.fixture
def blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a state folder whose parent is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMDEPLOY_STATE_DIR", str(tmp_path / "file" / "state"))
    return tmp_path / "file" / "state"


def test_every_writer_says_that_the_folder_cannot_be_written(blocked: Path, record: Record) -> None:
    def hold() -> None:
        with state.lock():
            pass

    for action in (lambda: state.write(record), state.forget, hold):
        with pytest.raises(StateUnwritable) as caught:
            action()
        assert caught.value.message == BLOCKED.format(folder=blocked)
        assert caught.value.hint == ELSEWHERE
    assert state.observe() == Situation("stopped")


@pytest.mark.parametrize("arguments", [["serve", "selftest"], ["serve", "selftest", "--detach"]])
def test_serve_reports_an_unwritable_folder(world: World, arguments: list[str]) -> None:
    world.folder.joinpath("file").write_text("")
    result = world.run(*arguments, LLMDEPLOY_STATE_DIR=str(world.folder / "file" / "state"))
    assert result.text == (
        f"exit 1\n--- stdout\n--- stderr\nerror: {BLOCKED.format(folder='[FOLDER]/file/state')}\nhint: {ELSEWHERE}\n"
    )


# The lock

HOLDER = """
import sys
from llmdeploy.service import state
with state.lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """Start another process that holds the lock of this state folder until its stdin closes."""
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_lock_excludes_a_second_process(holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(AlreadyServing) as caught, state.lock():
        pass
    assert caught.value.message == "another service is starting or stopping here"
    assert caught.value.hint == "`llmdeploy status` shows it"
    holder.communicate()
    with state.lock():
        pass


def test_lock_error_names_the_served_model(holder: subprocess.Popen[bytes], record: Record) -> None:
    state.write(record)
    with pytest.raises(AlreadyServing) as caught, state.lock():
        pass
    assert caught.value.message == (
        f"`x` is served already on llamacpp at http://127.0.0.1:11435 (process {os.getpid()})"
    )


def test_the_lock_of_a_killed_process_is_free(holder: subprocess.Popen[bytes]) -> None:
    found = identify(holder.pid)
    holder.kill()
    assert found is not None
    assert wait_gone(found, 5)
    with state.lock():
        assert state.observe() == Situation("stopped")


def test_processes_of_an_earlier_boot_do_not_run(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write(replace(record, server=this_process()))
    assert state.observe().state == "ready"
    monkeypatch.setattr(state, "boot_id", lambda: "another")
    situation = state.observe()
    assert (situation.state, situation.leftover) == ("crashed", False)
    monkeypatch.setattr(state, "boot_id", lambda: "")  # the system does not tell
    assert state.observe().state == "ready"
    content = json.loads(state.record_file().read_text())
    del content["boot"]  # as an earlier version wrote it
    state.record_file().write_text(json.dumps(content))
    assert state.observe().state == "ready"
