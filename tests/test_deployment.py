"""The keeping of a deployment, without a server."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any, cast

import pytest

from llmdeploy import engines
from llmdeploy.config import Settings
from llmdeploy.errors import DoesNotFit, LlmdeployError, PortInUse, Remedy, ServerDied, StartFailed
from llmdeploy.models.reference import CatalogName
from llmdeploy.plan import Wishes
from llmdeploy.service import deployment, history
from llmdeploy.service.candidate import Order


@pytest.mark.parametrize("kind", [StartFailed, DoesNotFit, PortInUse])
def test_a_server_that_served_long_and_starts_no_more_is_given_up(
    monkeypatch: pytest.MonkeyPatch, kind: type[LlmdeployError]
) -> None:
    monkeypatch.setattr(deployment, "STEADY", -1)  # whatever served, served long
    delays = []

    async def serve(*_: object) -> None:
        raise ServerDied("it was killed", "")

    async def restart(_: object, ended: object, delay: float, told: object) -> None:
        delays.append(delay)
        if len(delays) == 20:
            pytest.fail("it is started for ever")
        raise kind("it does not start", "")

    monkeypatch.setattr(deployment._Service, "_serve", serve)
    monkeypatch.setattr(deployment._Service, "_restart", restart)
    order = Order(CatalogName("selftest"), 1, Wishes(), 1)
    service = deployment._Service(order, engines.get("llamacpp", Settings()), cast("Any", None))
    with pytest.raises(ServerDied, match="the server ended 5 times in a row; at last: it does not start"):
        asyncio.run(service._keep(cast("Any", None)))
    assert delays == [0.5, 1, 2, 4]


def test_what_went_by_the_memory_of_the_moment_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[history.Start] = []
    monkeypatch.setattr(history, "remember", lambda kind, start: kept.append(start))
    order = Order(CatalogName("selftest"), 1, Wishes(), 1)
    service = deployment._Service(order, engines.get("llamacpp", Settings()), cast("Any", None))
    service.remedies = (Remedy("gpu_memory_utilization", 0.4, lasts=False), Remedy("max_model_len", 384))
    service._remember(2.0)
    assert kept == [history.Start(2.0, (Remedy("max_model_len", 384),))]


def test_a_signal_ends_the_preparing_of_another_server() -> None:
    """It may wait for a daemon for as long as a start may take."""
    ended = threading.Event()

    class Waits:
        def prepare(self) -> None:
            assert ended.wait(10), "it was not stopped"
            raise StartFailed("the daemon ended", "")

        def stop(self) -> None:
            ended.set()

    async def restart() -> None:
        told = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, told.set_result, signal.SIGINT)
        await service._anew(told)

    order = Order(CatalogName("selftest"), 1, Wishes(), 1)
    service = deployment._Service(order, engines.get("llamacpp", Settings()), cast("Any", None))
    service.replaced = service.candidate
    service.candidate = cast("Any", Waits())
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(restart())
    assert ended.is_set()
