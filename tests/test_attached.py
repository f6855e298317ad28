"""An external server: it is watched, and never ended."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import wait
from typing import TYPE_CHECKING

import pytest

from llmdeploy.engines.base import ServerSpec
from llmdeploy.engines.diagnosis import Exited, Unreachable
from llmdeploy.service import server_process
from llmdeploy.service.server_process import Attached
from tests.conftest import until
from tests.ollama_replay import closed_port

if TYPE_CHECKING:
    from collections.abc import Iterator


class Listener:
    """A port that accepts connections, and can be closed and opened again."""

    def __init__(self) -> None:
        self.port = closed_port()
        self.seen = 0

    @property
    def spec(self) -> ServerSpec:
        return ServerSpec((), f"http://127.0.0.1:{self.port}", "/api/version")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", self.port)) as server:
            server.settimeout(0.01)
            ending = threading.Event()

            def accept() -> None:
                while not ending.is_set():
                    with contextlib.suppress(TimeoutError):
                        server.accept()[0].close()
                        self.seen += 1

            thread = threading.Thread(target=accept)
            thread.start()
            yield
            ending.set()
            thread.join()


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Make the looks follow one another fast; return what each of them found."""
    looks: list[bool] = []
    reachable = server_process.reachable

    def look(spec: ServerSpec) -> bool:
        looks.append(reachable(spec))
        return looks[-1]

    monkeypatch.setattr(server_process, "reachable", look)
    monkeypatch.setattr(server_process, "LOOK", 0.02)
    monkeypatch.setattr(server_process, "PATIENCE", 0.5)
    return looks


def test_server_is_watched_until_it_is_let_go() -> None:
    lines: list[str] = []
    listener = Listener()
    with listener.listening():
        watched = Attached(listener.spec, lines.append)
        assert watched.server is None  # it has no process here
        until(lambda: listener.seen > 3)
        assert not watched.exit.done()
        watched.let_go()
        assert watched.exit.result(2) == Exited(0)
        seen = listener.seen
        assert not wait([watched.exit], 0).not_done
    assert lines == [f"attached to {listener.spec.base_url}, which keeps a log of its own"]
    assert listener.seen == seen


def test_kill_only_stops_watching() -> None:
    listener = Listener()
    with listener.listening():
        watched = Attached(listener.spec, lambda line: None)
        watched.kill()
        assert watched.exit.result(2) == Exited(0)
        socket.create_connection(("127.0.0.1", listener.port)).close()  # it is there still


def test_unreachable_server_counts_as_ended() -> None:
    lines: list[str] = []
    listener = Listener()
    with listener.listening():
        watched = Attached(listener.spec, lines.append)
        until(lambda: listener.seen)
    began = time.monotonic()
    assert watched.exit.result(5) == Unreachable(listener.spec.base_url, 0.5)
    assert time.monotonic() - began > 0.4
    assert lines[1:] == [f"{listener.spec.base_url} has not answered for 0.5 s"]


def test_server_that_comes_back_in_time_has_not_ended(looks: list[bool]) -> None:
    listener = Listener()
    with listener.listening():
        watched = Attached(listener.spec, lambda line: None)
        assert wait([watched.exit], 0.6).not_done  # for longer than the patience it is there
    until(lambda: looks[-3:] == [False] * 3)
    assert watched.is_away
    with listener.listening():
        until(lambda: looks[-1])
        until(lambda: not watched.is_away)
        assert wait([watched.exit], 0.6).not_done
        watched.let_go()
        watched.exit.result(2)


def test_https_address_is_checked_at_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    Attached(ServerSpec((), "https://gpu.example/ollama", "/api/version"), lambda line: None).exit.result(5)
    assert set(asked) == {("gpu.example", 443)}
