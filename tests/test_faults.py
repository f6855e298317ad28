"""Random faults at random moments of serve, switch, load and stop, with clients all the while.

After each, the service serves by itself and its status is true; after `stop` nothing of it is left. The suite does as
many as fit into `SECONDS`. `LLMDEPLOY_TEST_FAULTS=200` does that many, and `LLMDEPLOY_TEST_SEED` repeats a run.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from llmdeploy.service import state
from tests.conftest import BUSY, copy_selftest
from tests.faults import BLOWS, CONDITIONS, FROZEN, STOPPED, Faulty
from tests.load import Load

SECONDS = 20.0
"""Seconds in which the suite does faults."""
WANTED = int(os.environ.get("LLMDEPLOY_TEST_FAULTS") or 0)
SEED = int(os.environ.get("LLMDEPLOY_TEST_SEED") or (752_023 if os.environ.get("CI") else time.time_ns() % 1_000_000))
RECOVERY = 30.0 * BUSY
"""Seconds until the service serves again after a fault is mended."""
WRONG = 15.0
"""Seconds for which the status may say something else than what a request finds."""
BROKEN = {502, 503, 504}
"""The statuses of requests that a fault may break."""

pytestmark = [
    pytest.mark.timeout(240 + 60 * WANTED),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # connections that a fault broke
]


class Clients:
    """Clients that ask without pause. They are told what a fault breaks, and a whole answer must be the right one."""

    def __init__(self, port: int) -> None:
        self._load = Load(port)
        self._port = port
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(2)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client waits for its answer still"

    def _ask_on(self) -> None:
        while not self._over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                self._load._ask(connection)
            except TimeoutError:
                self.wrong.append("a request without an answer for a minute")
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[type(error).__name__] += 1
                self._over.wait(0.2)
            except AssertionError as error:
                self._judge(str(error))
            else:
                self.outcomes["answered"] += 1
            finally:
                connection.close()

    def _judge(self, told: str) -> None:
        status = told[:3]
        if told.startswith("no end:") or (status.isdecimal() and int(status) in BROKEN):
            self.outcomes[status] += 1
            self._over.wait(0.2)
        else:
            self.wrong.append(told[:300])


class StatusWatch:
    """Compares the status with what a request finds, and measures for how long they differ."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.longest = (0.0, "")

    def __enter__(self) -> StatusWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _watch(self) -> None:
        since = time.monotonic()
        while not self._over.wait(0.3):
            before, answered, after = told(), answers(self._port, 3), told()
            if before != after or before == "switching" or (before == "ready") == answered:
                since = time.monotonic()
            words = f"`{before}`, and a request is {'answered' if answered else 'not answered'}"
            self.longest = max(self.longest, (time.monotonic() - since, words))


def told() -> str:
    """Return what the status tells: the state, or that a switch is under way, in which requests wait."""
    situation = state.observe()
    return "switching" if situation.record and situation.record.switch else situation.state


def answers(port: int, seconds: float) -> bool:
    """Return whether a question is answered."""
    body = {"model": "selftest", "messages": [{"role": "user", "content": "Count to 1"}], "max_tokens": 1}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        with connection.getresponse() as response:
            response.read()
            return response.status == 200
    return False


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Return a world to break, with the status of this process looking at it too."""
    faulty = Faulty(tmp_path / "world", random.Random(SEED))
    monkeypatch.setenv("LLMDEPLOY_STATE_DIR", str(faulty.world.state))
    yield faulty
    faulty.close()


def left_behind(faulty: Faulty) -> list[str]:
    """List what a stopped service has left: processes, sockets, shared memory."""
    world = faulty.world
    found = [f"process {process.pid}: {' '.join(process.cmdline())}" for process in world.processes()]
    found += [str(path) for path in world.state.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    found += [str(path) for path in faulty.memory.iterdir()]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", world.port)) == 0:
            found.append(f"port {world.port}")
    return found


def serve(faulty: Faulty) -> None:
    """Serve, whatever is left of the service before."""
    result = faulty.world.run("serve", "selftest", "--detach", timeout=RECOVERY)
    assert result.status == 0 or "is served already" in result.text, result.text


def strike(faulty: Faulty, name: str, condition: str) -> None:
    """Break something, leave it broken for a while, and mend it."""
    with ExitStack() as stack:
        if condition:
            CONDITIONS[condition](faulty, stack)
        BLOWS[name](faulty, stack)
        time.sleep(faulty.random.uniform(*STOPPED))


def one_fault(faulty: Faulty, model: str, watch: StatusWatch) -> str:
    """Do one fault at one moment, and wait until the service serves again; return what was done."""
    world, choose = faulty.world, faulty.random
    moment = choose.choice(["serve", "switch", "load", "load", "stop"])
    name = choose.choice(list(BLOWS))
    if name == FROZEN:
        moment = "load"  # a start has a deadline of its own, which is later
    condition = choose.choice(["", *CONDITIONS])
    done = f"{name} {f'and {condition} ' if condition else ''}during {moment}"
    print(done, flush=True)
    if moment == "serve":
        assert world.run("stop", timeout=RECOVERY).status == 0, done
        command = world.start("serve", "selftest", "--detach")
    elif moment == "switch":
        command = world.start("switch", "--model", model if choose.random() < 0.5 else "selftest", "--no-beside")
    elif moment == "stop":
        command = world.start("stop")
    else:
        command = None
    time.sleep(choose.uniform(0, 1.5) if command else 0)
    strike(faulty, name, condition)
    if command:
        said = command.communicate(timeout=RECOVERY)
        words = b"".join(said).decode()
        assert "Traceback" not in words, f"{done}: {words}"
        if moment != "switch":  # such a service has not served, or was to end
            assert world.run("stop", timeout=RECOVERY).status == 0, done
            assert not (left := left_behind(faulty)), f"{done}: {left}"
            serve(faulty)
    deadline = time.monotonic() + RECOVERY
    while not answers(world.port, 10):
        assert time.monotonic() < deadline, f"{done}: it does not serve again: {state.observe()}{last_words(faulty)}"
        time.sleep(0.2)
    assert watch.longest[0] < WRONG, f"{done}: the status was wrong for {watch.longest}"
    return done


def last_words(faulty: Faulty) -> str:
    with suppress(OSError):
        return "\n" + (faulty.world.state / "service.log").read_text()[-3000:]
    return ""


def test_service_survives_random_faults(faulty: Faulty, tmp_path: Path) -> None:
    print(
        f"LLMDEPLOY_TEST_SEED={SEED}", f"a disk of its own: {faulty.has_disk}, a clock: {faulty.has_clock}", flush=True
    )
    # Under the name that clients ask for, whatever a switch serves.
    model = str(copy_selftest(tmp_path).rename(tmp_path / "selftest.gguf"))
    serve(faulty)
    assert all(faulty.processes(kind) for kind in ("service", "watchdog", "engine")), "they cannot be told apart"
    began, done = time.monotonic(), []
    with StatusWatch(faulty.world.port) as watch, Clients(faulty.world.port) as clients:
        while len(done) < WANTED if WANTED else time.monotonic() < began + SECONDS:
            done.append(one_fault(faulty, model, watch))
            assert not clients.wrong, f"{done[-1]}: {clients.wrong}"
    assert faulty.world.run("stop", timeout=RECOVERY).status == 0
    assert not left_behind(faulty)
    print(f"{len(done)} faults; {dict(clients.outcomes)}; the status was wrong for {watch.longest[0]:.1f} s at most")
    assert done
