"""The decision whether a server hangs: on tables of samples, and on a real llama.cpp that is stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llmdeploy.config import Settings
from llmdeploy.engines import registry
from llmdeploy.engines.vitals import Vitals
from llmdeploy.service import liveness
from llmdeploy.service.liveness import Body, Sample
from tests.conftest import BUSY, World, until

LIMIT = 45.0
LLAMACPP, VLLM, OLLAMA = (registry.get(name, Settings()).vitals for name in ("llamacpp", "vllm", "ollama"))
SERVER, CHILD = 10, 11


def samples(seconds: int = 60, *, every: float = 2.0, **changes: object) -> list[Sample]:
    """Return samples of a server with one request and no sign of life. A change may be a function of the time."""
    found = []
    for number in range(int(seconds / every) + 1):
        at = number * every
        given = {name: value(at) if callable(value) else value for name, value in changes.items()}
        found.append(replace(Sample(at, waiting=1, cpu={SERVER: 5.0, CHILD: 5.0}), **given))  # type: ignore[arg-type]
    return found


HANGS = {
    "nothing at all": (samples(), LLAMACPP, False),
    "stopped without a request": (samples(waiting=0, is_stopped=True), LLAMACPP, False),
    "an engine that is stopped before a worker that asks for work": (
        samples(counters="7", is_stopped=True, cpu=lambda at: {SERVER: 5.0, CHILD: at}),
        VLLM,
        False,
    ),
    "counters that stand still": (samples(counters="7"), VLLM, True),
    "counters that stood still, and then no answer": (
        samples(counters=lambda at: "7" if at < 30 else None),
        LLAMACPP,
        True,
    ),
    "an API server and a worker that idle before a frozen engine": (
        samples(counters="7", cpu=lambda at: {SERVER: at * 0.05, CHILD: at * 0.06}),
        VLLM,
        False,
    ),
    "workers that wait for a lost kernel of a GPU in a loop": (
        samples(counters="7", cpu=lambda at: {SERVER: 5.0, CHILD: 2 * at}),
        VLLM,
        True,
    ),
    "a thread that waits for a GPU in a loop": (samples(cpu=lambda at: {SERVER: at}), LLAMACPP, True),
    "silence after an answer": (samples(90, received=lambda at: 1 if at < 30 else 2), LLAMACPP, False),
    "Ollama before a frozen runner": (samples(cpu=lambda at: {SERVER: at * 0.01, CHILD: 5.0}), OLLAMA, False),
    "an external server that does not answer": (samples(cpu={}), OLLAMA, False),
}

LIVES = {
    "no request": (samples(waiting=0), LLAMACPP, False),
    "not long enough": (samples(40), LLAMACPP, False),
    "requests that come and go": (samples(received=lambda at: int(at)), VLLM, True),
    "a pause without a request": (samples(waiting=lambda at: int(at != 30)), LLAMACPP, False),
    "a batch of minutes on one core": (samples(240, cpu=lambda at: {SERVER: at}), LLAMACPP, False),
    "a core that many programs share": (samples(cpu=lambda at: {SERVER: at / 100}), LLAMACPP, False),
    "weights that come back from a slow disk": (samples(cpu=lambda at: {SERVER: at / 200}), LLAMACPP, False),
    "layers on the CPU beside a GPU": (samples(cpu=lambda at: {SERVER: 1.9 * at}), LLAMACPP, True),
    "a prompt in pieces on a GPU": (samples(counters=lambda at: str(at // 20)), VLLM, True),
    "a batch in vLLM on a CPU": (samples(counters="7", cpu=lambda at: {SERVER: 0.0, CHILD: at}), VLLM, False),
    "an API server that prepares images": (samples(counters="7", cpu=lambda at: {SERVER: at, CHILD: 5.0}), VLLM, True),
    "a compiler": (
        samples(counters="7", cpu=lambda at: {SERVER: 5.0, CHILD: 5.0} | ({12: 1.0} if at == 30 else {})),
        VLLM,
        True,
    ),
    "a runner of Ollama": (samples(cpu=lambda at: {SERVER: 0.0, CHILD: at}), OLLAMA, False),
    "an external server that answers": (samples(cpu={}, counters=str), OLLAMA, False),
    "a machine that slept": (
        [*samples(20), *(replace(it, at=it.at + 3600) for it in samples(30))],
        LLAMACPP,
        False,
    ),
    "the first samples after a long gap": ([*samples(2), Sample(3600, waiting=1)], LLAMACPP, False),
}


@pytest.mark.parametrize(("found", "vitals", "on_gpu"), HANGS.values(), ids=HANGS)
def test_server_hangs(found: list[Sample], vitals: Vitals, on_gpu: bool) -> None:
    assert liveness.hangs(found, LIMIT, Body(vitals, SERVER, on_gpu))


@pytest.mark.parametrize(("found", "vitals", "on_gpu"), LIVES.values(), ids=LIVES)
def test_server_lives(found: list[Sample], vitals: Vitals, on_gpu: bool) -> None:
    for number in range(1, len(found) + 1):
        assert not liveness.hangs(found[:number], LIMIT, Body(vitals, SERVER, on_gpu))


def test_stopped_server_is_known_by_two_looks() -> None:
    assert not liveness.is_stopped(samples(0, is_stopped=True))
    assert liveness.is_stopped(samples(2, is_stopped=True))
    assert not liveness.is_stopped(samples(4, is_stopped=lambda at: at != 4))


# A real llama.cpp


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("liveness") / "world")
    world.environment["LLMDEPLOY_GATEWAY_STALL_TIMEOUT"] = "1"
    result = world.run("serve", "selftest", "--detach")
    assert result.status == 0, result.text
    yield world
    world.close()


class Question:
    """A question that a thread asks."""

    def __init__(self, world: World) -> None:
        self._url = f"http://127.0.0.1:{world.port}/v1/chat/completions"
        self.answer: tuple[int, dict[str, object]] | None = None
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()

    def _ask(self) -> None:
        body = {"model": "selftest", "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}
        request = urllib.request.Request(self._url, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                self.answer = response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            self.answer = error.code, json.loads(error.read())

    def outcome(self) -> tuple[int, str]:
        self.thread.join(60)
        assert self.answer is not None
        status, document = self.answer
        error = document.get("error")
        return status, error["code"] if isinstance(error, dict) else ""


def health(world: World) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{world.port}/health", timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def server_of(world: World, *others: int) -> int:
    until(lambda: world.record()["state"] == "ready" and world.record()["server"]["pid"] not in others, 30 * BUSY)
    return int(world.record()["server"]["pid"])


def test_frozen_server_is_replaced(world: World) -> None:
    server = server_of(world)
    os.kill(server, signal.SIGSTOP)
    began = time.monotonic()
    question = Question(world)
    until(lambda: health(world)[0] == 503)
    later = server_of(world, server)
    assert time.monotonic() - began < 20 * BUSY
    assert question.outcome() in {(502, "engine_died"), (200, "")}  # 200: it was held, because the stop was seen first
    assert Question(world).outcome() == (200, "")
    assert later != server
    told = (world.state / "service.log").read_text()
    assert "hangs: no sign of life for 1 s" in told, told
