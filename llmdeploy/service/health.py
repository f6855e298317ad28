"""Is a server there, and is it the one that was started?"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from llmdeploy.engines.base import ServerSpec
    from llmdeploy.service.process import ProcessId

TIMEOUT = 1.0


async def healthy(spec: ServerSpec) -> bool:
    """Whether the server answers 200 at its health path."""
    status, _ = await asyncio.to_thread(_get, spec.base_url, spec.health_path)
    return status == 200


async def answers_for(spec: ServerSpec) -> bool:
    """Whether the server lists the model that it was started for."""
    status, body = await asyncio.to_thread(_get, spec.base_url, "/v1/models")
    try:
        return status == 200 and spec.served_name in [model["id"] for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return False


def listens(server: ProcessId, port: int) -> bool:
    """Whether the server or a process it started holds the port; where the system does not tell, it is believed."""
    import psutil

    def held_by(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            connections = process.net_connections("tcp")
            return any(
                it.status == psutil.CONN_LISTEN and getattr(it.laddr, "port", None) == port for it in connections
            )
        return False

    try:
        process = psutil.Process(server.pid)
        return any(held_by(it) for it in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _get(base_url: str, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 when there is no answer within `TIMEOUT`."""
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException):
        return 0, b""
    finally:
        connection.close()
