"""Health checks: whether a server answers, and whether it is the one that was started."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmdeploy.tls import trusting

if TYPE_CHECKING:
    from llmdeploy.engines.base import ServerSpec
    from llmdeploy.service.process import ProcessId

TIMEOUT = 1.0
"""Seconds that a health check may take."""


def healthy(spec: ServerSpec) -> bool:
    """Return whether the server answers 200 at its health path."""
    status, _ = _get(spec, spec.health_path)
    return status == 200


def reachable(spec: ServerSpec) -> bool:
    """Return whether something accepts connections at its address. Unlike a request this leaves no line in a log."""
    address = urlsplit(spec.base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), TIMEOUT).close()
    except OSError:
        return False
    return True


def answers_for(spec: ServerSpec) -> bool:
    """Return whether the server lists the model that it is to serve."""
    status, body = _get(spec, "/v1/models")
    try:
        names = {model["id"] for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return False
    return status == 200 and spec.served_name in names


def listens(server: ProcessId, base_url: str) -> bool:
    """Return whether the server, or a process it started, listens at the address; True if the system does not say."""
    import psutil

    port = urlsplit(base_url).port

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


def page(spec: ServerSpec, path: str, timeout: float) -> str | None:
    """Return what the server answers to a GET of that path; None without an answer of status 200 in time."""
    status, body = _get(spec, path, timeout)
    return body.decode(errors="replace") if status == 200 else None


def _get(spec: ServerSpec, path: str, timeout: float = TIMEOUT) -> tuple[int, bytes]:
    """Return status and body; the status is 0 if no answer comes in time."""
    channel, prefix = connection(spec.base_url, timeout)
    try:
        channel.request("GET", prefix + path, headers=spec.headers)
        response = channel.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException):
        return 0, b""
    finally:
        channel.close()


def connection(base_url: str, timeout: float | None) -> tuple[HTTPConnection, str]:
    """Return a connection to the address, not yet opened, and the path that every request to it begins with."""
    address = urlsplit(base_url)
    if address.scheme == "https":
        return HTTPSConnection(address.netloc, timeout=timeout, context=trusting()), address.path
    return HTTPConnection(address.netloc, timeout=timeout), address.path
