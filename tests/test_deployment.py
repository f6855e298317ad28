"""The keeping of a deployment, without a server."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from llmdeploy import engines
from llmdeploy.config import Settings
from llmdeploy.errors import DoesNotFit, LlmdeployError, PortInUse, ServerDied, StartFailed
from llmdeploy.models.reference import CatalogName
from llmdeploy.plan import Wishes
from llmdeploy.service import deployment
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
