"""Ports to listen on."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from llmdeploy.errors import ConfigError, PortInUse

NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
LOCALHOST = {
    "localhost": ("127.0.0.1", "::1"),
    "127.0.0.1": ("127.0.0.1", "::1"),
    "::1": ("::1", "127.0.0.1"),
    "0.0.0.0": ("0.0.0.0", "::1"),
    "::": ("::", "127.0.0.1"),
}
"""The addresses whose port must be free, by the host to listen on.

`localhost` may mean either loopback address. If another program had the port of one, it would get prompts.
"""


def require_free_port(port: int, command: str = "llmdeploy serve", host: str = "127.0.0.1") -> None:
    """Raise PortInUse unless the port is free, with the command that serves on a free one; ConfigError for an address
    that this machine does not have.
    """
    first, *others = LOCALHOST.get(host, (host,))
    _require_free(first, port, command)
    for other in others:
        with suppress(ConfigError):  # not every machine has IPv6
            _require_free(other, port, command)


def _require_free(host: str, port: int, command: str) -> None:
    try:
        probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise _no_address(host, command) from error
    with probe:
        if os.name == "posix":  # there the option only means: also if an old connection lingers
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise PortInUse(
                f"port {port} is not open to this user", f"take one above 1023: `{command} --port 11435`"
            ) from None
        except OSError as error:
            if error.errno in NO_SUCH_ADDRESS:
                raise _no_address(host, command) from None
            raise PortInUse(
                f"port {port} is in use by {_holder(port)}",
                f"serve on another: `{command} --port {free_port()}`",
            ) from None


def _no_address(host: str, command: str) -> ConfigError:
    return ConfigError(
        f"this machine has no address `{host}` to listen on",
        f"`{command} --host 0.0.0.0` listens on all that it has",
    )


def _holder(port: int) -> str:
    """Return the program that listens on the port, in words."""
    import psutil

    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            here = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
            if here and connection.pid:
                return f"`{psutil.Process(connection.pid).name()}` (process {connection.pid})"
    return "another program"


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
