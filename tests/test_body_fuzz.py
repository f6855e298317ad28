"""Random bodies on every route against the real llama.cpp: nobody else is disturbed, and nothing grows or dies.

`LLMDEPLOY_FUZZ_BODIES=100000` sends as many, and `LLMDEPLOY_FUZZ_SEED` chooses others.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from llmdeploy.engines.ollama.dialect import adapt
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.gateway import Gateway, Limits
from llmdeploy.gateway.target import Target
from llmdeploy.gateway.validation import prepare
from tests.conftest import SELFTEST, free_port
from tests.gateway_world import LOOPS, App, post, run
from tests.request_bodies import request

BODIES = int(os.environ.get("LLMDEPLOY_FUZZ_BODIES", "600"))
SECONDS = 20 if "LLMDEPLOY_FUZZ_BODIES" not in os.environ else 86_400
SEED = int(os.environ.get("LLMDEPLOY_FUZZ_SEED", "20261201"))
CLIENTS = 6
MOST_BLOCKED = 0.1
"""Seconds of processor time that the event loop may take without a pause."""
ENGINE_MEMORY = 3_500_000_000
"""Bytes of address space of the engine: it must never take the machine's memory, whatever a body makes it do."""
GROWTH = 200 * 2**20


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, psutil.Process]]:
    """Yield the port and the process of a llama.cpp with bounded memory."""
    port = free_port()
    log = tmp_path_factory.mktemp("engine") / "log"
    command = [sys.executable, "-m", "llmdeploy.engines.llamacpp.server_program", "--model"]
    command += [str(SELFTEST / "selftest-f16.gguf"), "--mmproj", str(SELFTEST / "mmproj-selftest-f16.gguf")]
    command += ["--ctx-size", "16384", "--parallel", "2", "--threads", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--alias", "selftest", "--metrics"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        if sys.platform == "linux":
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS, (ENGINE_MEMORY, ENGINE_MEMORY))
        wait_for(port, log)
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def wait_for(port: int, log: Path) -> None:
    import httpx

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(log.read_text())


@dataclass
class Watch:
    """What was seen while the bodies were sent."""

    blocked: float = 0.0
    answers: Counter[int] = field(default_factory=Counter)
    others: int = 0

    async def beat(self) -> None:
        """Measure the processor time that the loop takes between two beats."""
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.005)
            self.blocked = max(self.blocked, time.thread_time() - before)

    async def send(self, gateway: Gateway, bodies: Iterator[tuple[str, bytes]], deadline: float) -> None:
        """Send bodies, each on its own connection, until the deadline."""
        for path, content in bodies:
            if time.monotonic() > deadline:
                return
            app = await App.at(gateway)
            try:
                async with asyncio.timeout(30):
                    answer = await app.ask(post(path=path, body=content))
                self.answers[answer.status] += 1
                assert answer.status < 500 or answer.document["error"]["llmdeploy"]["source"] == "engine", content
            except TimeoutError:
                self.answers[0] += 1
            finally:
                app.leave()

    async def be_another_client(self, gateway: Gateway) -> None:
        """Ask a plain question again and again, and assert that each is answered."""
        body = {"model": "selftest", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
        while True:
            app = await App.at(gateway)
            answer = await app.ask(post(body=json.dumps(body).encode()))
            app.leave()
            assert answer.status == 200 or (answer.status == 503 and "retry-after" in answer.headers), answer
            self.others += 1
            await asyncio.sleep(0.2)


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks; raise the error of one that failed."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def test_random_bodies_disturb_nobody(engine: tuple[int, psutil.Process]) -> None:
    port, process = engine
    print(f"LLMDEPLOY_FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    bodies = iter([request(rng) for _ in range(BODIES)] if BODIES < 5000 else (request(rng) for _ in range(BODIES)))
    watch = Watch()

    async def test() -> None:
        gateway = Gateway(Limits())
        await gateway.listen("127.0.0.1", 0)
        sees = ("text", "image", "tools")
        target = Target("llamacpp", "selftest", "127.0.0.1", port, sees, 8192, closes_streams=True)
        gateway.route.point(target)
        before = psutil.Process().memory_info().rss
        watching = [asyncio.ensure_future(it) for it in (watch.beat(), watch.be_another_client(gateway))]
        deadline = time.monotonic() + SECONDS
        await asyncio.gather(*(watch.send(gateway, bodies, deadline) for _ in range(CLIENTS)))
        await ended(watching)
        await gateway.close()
        assert gateway.buffered == 0
        assert psutil.Process().memory_info().rss < before + GROWTH

    try:
        run(LOOPS[0], test, seconds=SECONDS + 60)
        assert process.is_running()
        assert process.status() != psutil.STATUS_ZOMBIE, "the engine died"
        assert watch.blocked < MOST_BLOCKED, watch
        assert watch.others > 0
        assert watch.answers[400] > 10 < watch.answers[200], watch
    except BaseException as error:
        error.add_note(f"LLMDEPLOY_FUZZ_SEED={SEED} {watch}")
        raise


@pytest.mark.parametrize("engine_name", ["llamacpp", "ollama"])
def test_each_check_is_quick_and_what_is_sent_passes_again(engine_name: str) -> None:
    rng = random.Random(SEED)
    dialect = adapt if engine_name == "ollama" else None
    target = Target(engine_name, "selftest", "127.0.0.1", 1, ("text", "image", "tools", "embedding"), 8192, dialect)
    for number in range(500):
        path, content = request(rng)
        started = time.thread_time()
        try:
            sent = prepared(path, content, target)
            assert time.thread_time() - started < MOST_BLOCKED
            if isinstance(sent, bytes):
                prepare(path, sent, target)
            else:
                assert 400 <= sent.status < 500
                assert len(sent.message) < 3000
        except BaseException as error:
            error.add_note(f"seed {SEED}, body {number}: {path} {content[:2000]!r}")
            raise


def prepared(path: str, content: bytes, target: Target) -> bytes | Refused:
    try:
        return prepare(path, content, target)
    except Refused as refused:
        return refused
