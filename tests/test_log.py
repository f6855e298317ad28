"""The server's log as it is written, and as `llmdeploy logs` shows it."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmdeploy.service import server_log
from llmdeploy.service.server_log import BACKUPS, TAIL_LINES, ServerLog
from tests.conftest import World, until


def write(file: Path, *lines: str) -> None:
    server_log = ServerLog(file)
    for line in lines:
        server_log.write(line)
    server_log.close()


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


def test_output_after_the_end_is_dropped(tmp_path: Path) -> None:
    """Check that nothing is written after the end, when another server may already use the file."""
    server_log = ServerLog(tmp_path / "server.log")
    server_log.write("a word")
    server_log.close()
    server_log.write("a late word")
    assert files(tmp_path) == {"server.log": "a word\n"}
    assert list(server_log.tail) == ["a word", "a late word"]


def test_each_start_has_its_own_file_and_earlier_ones_are_kept(tmp_path: Path) -> None:
    for start in range(1, 7):
        write(tmp_path / "server.log", f"start {start}", "你好")
    assert BACKUPS == 3
    assert files(tmp_path) == {
        "server.log": "start 6\n你好\n",
        "server.log.1": "start 5\n你好\n",
        "server.log.2": "start 4\n你好\n",
        "server.log.3": "start 3\n你好\n",
    }


def test_start_without_output_removes_no_earlier_log(tmp_path: Path) -> None:
    for lines in (["first"], [], [], ["second"]):
        write(tmp_path / "server.log", *lines)
    assert files(tmp_path) == {"server.log": "second\n", "server.log.1": "first\n"}


def test_a_log_that_grows_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_log, "MAX_BYTES", 100)
    write(tmp_path / "server.log", *(f"line {number:03}" for number in range(60)))
    kept = files(tmp_path)
    assert list(kept) == ["server.log", "server.log.1", "server.log.2", "server.log.3"]
    assert all(0 < len(text) <= 100 for text in kept.values())
    in_order = "".join(kept[name] for name in reversed(kept)).splitlines()
    assert in_order == [f"line {number:03}" for number in range(60 - len(in_order), 60)]
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {"0o600"}


def test_last_lines_are_available(tmp_path: Path) -> None:
    server_log = ServerLog(tmp_path / "server.log")
    for number in range(TAIL_LINES + 5):
        server_log.write(str(number))
    server_log.close()
    assert list(server_log.tail) == [str(number) for number in range(5, TAIL_LINES + 5)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_does_not_stop_the_log(tmp_path: Path) -> None:
    (tmp_path / "server.log").symlink_to("/dev/full")
    server_log = ServerLog(tmp_path / "server.log")
    for size in (1, 10_000, 100_000, 1):
        server_log.write("x" * size)
    server_log.close()
    assert [len(line) for line in server_log.tail] == [1, 10_000, 100_000, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_does_not_stop_the_service(world: World) -> None:
    world.state.mkdir()
    (world.state / "server.log").symlink_to("/dev/full")
    assert world.run("serve", "selftest", "--detach").status == 0
    assert world.run("chat", "Count to 2").stdout == "1 2\n"
    assert world.run("stop").text == "exit 0\n--- stdout\n--- stderr\nstopping `selftest` (process [PID])\nstopped\n"
    assert "Traceback" not in (world.state / "service.log").read_text()


# llmdeploy logs


@pytest.fixture
def logged(world: World) -> World:
    """Return a world with a log of five lines."""
    world.state.mkdir()
    (world.state / "server.log").write_text("one\ntwo\nthree\nfour\nfive\n")
    return world


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "one\ntwo\nthree\nfour\nfive\n"),
        (["-n", "2"], "four\nfive\n"),
        (["--lines", "99"], "one\ntwo\nthree\nfour\nfive\n"),
        (["-n", "0"], ""),
    ],
)
def test_the_last_lines(logged: World, arguments: list[str], shown: str) -> None:
    assert logged.run("logs", *arguments).text == f"exit 0\n--- stdout\n{shown}--- stderr\n"


def test_invalid_utf8_is_shown(logged: World) -> None:
    (logged.state / "server.log").write_bytes(b"a\xffb\n")
    assert logged.run("logs").stdout == "a�b\n"


def test_no_log_yet(world: World) -> None:
    for arguments in (["logs"], ["logs", "-f"]):
        assert world.run(*arguments).text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: `[FOLDER]/state/server.log` does not exist yet\nhint: `llmdeploy serve` writes the log\n"
        )


def test_the_log_of_the_real_engine(served: World) -> None:
    result = served.run("logs")
    assert re.search(r"listening on http://127\.0\.0\.1:\d+\n", result.stdout), result.text
    assert served.run("logs", "-n", "1").stdout == result.stdout.splitlines()[-1] + "\n"


class Follower:
    """A running `llmdeploy logs -f` and its output so far."""

    def __init__(self, world: World, *arguments: str) -> None:
        self.process = world.start("logs", "-f", *arguments)
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := os.read(self.process.stdout.fileno(), 65_536):
            self.said += piece.decode()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(timeout=10)
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


@pytest.fixture
def follower(logged: World) -> Iterator[Follower]:
    follower = Follower(logged, "-n", "2")
    until(lambda: follower.said == "four\nfive\n")
    yield follower
    if follower.process.poll() is None:
        follower.end()


def append(file: Path, text: str) -> None:
    with file.open("a") as stream:
        stream.write(text)


def test_growth_is_followed_until_ctrl_c(logged: World, follower: Follower) -> None:
    file = logged.state / "server.log"
    append(file, "six\n")
    until(lambda: follower.said == "four\nfive\nsix\n")
    append(file, "half")
    until(lambda: follower.said.endswith("half"))
    append(file, " a line\n")
    until(lambda: follower.said == "four\nfive\nsix\nhalf a line\n")
    assert follower.end() == 130


def test_a_rotation_is_followed_and_nothing_is_lost(logged: World, follower: Follower) -> None:
    """Write just before a rotation, so that the line is in the rotated file."""
    file = logged.state / "server.log"
    said = "four\nfive\n"
    for number in range(3):
        append(file, f"last {number}\n")
        write(file, f"first {number}")  # each start rotates the log
        said += f"last {number}\nfirst {number}\n"
        until(lambda: follower.said == said)  # noqa: B023 # waited for at once
    assert follower.end() == 130


def test_emptied_or_replaced_log_is_followed(logged: World, follower: Follower) -> None:
    file = logged.state / "server.log"
    file.write_text("new\n")
    until(lambda: follower.said == "four\nfive\nnew\n")
    file.with_suffix(".new").write_text("newer\n")
    file.with_suffix(".new").rename(file)
    until(lambda: follower.said == "four\nfive\nnew\nnewer\n")
    assert follower.end() == 130


def test_real_server_is_followed_over_a_restart(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    follower = Follower(world)
    until(lambda: follower.said.count("listening on") == 1)
    assert world.run("stop").status == 0
    assert world.run("serve", "selftest", "--detach").status == 0
    until(lambda: follower.said.count("listening on") == 2)
    assert follower.end() == 130


def test_log_that_cannot_be_opened_is_written_once_it_can(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    file.mkdir()
    log = server_log.open_log(file)
    log.write("first")
    file.rmdir()
    log.write("second")
    log.close()
    assert files(tmp_path) == {"server.log": "second\n"}
    assert list(log.tail) == ["first", "second"]


def test_a_log_that_was_deleted_is_opened_again(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "server.log")
    log.write("first")
    (tmp_path / "server.log").unlink()
    log.write("second")
    log.close()
    assert files(tmp_path) == {"server.log": "second\n"}
