"""Where applications go, and where the gateway sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmdeploy.gateway.target import Target

if TYPE_CHECKING:
    from llmdeploy.service.keeper import Keeper

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Addresses to listen on that are none to go to, and what reaches them from this machine."""


def address(host: str, port: int) -> str:
    """The address of a service that listens there, as this machine reaches it; without `/v1`."""
    return f"http://{ANYWHERE.get(host, f'[{host}]' if ':' in host else host)}:{port}"


def target(keeper: Keeper) -> Target:
    """Where requests go that this keeper's server is to answer."""
    now, engine = keeper.candidate, keeper.engine
    url = urlsplit(now.spec.base_url)
    return Target(
        engine=engine.name,
        model=now.spec.served_name,
        host=url.hostname or "127.0.0.1",
        port=url.port or (443 if url.scheme == "https" else 80),
        capabilities=now.facts.capabilities,
        context=now.plan.context.value,
        adapt=engine.adapt if engine.has_dialect else None,
    )
