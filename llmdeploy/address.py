"""Listening addresses: whether other machines can reach them, and their URL."""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Return whether a host is `localhost` or a loopback address, which this machine alone can reach."""
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def local_url(host: str, port: int) -> str:
    """Return the URL, without `/v1`, at which this machine reaches a server that listens on `host` and `port`."""
    import ipaddress

    if host == "localhost":
        return f"http://localhost:{port}"
    address = ipaddress.ip_address(host)
    if address.is_unspecified:  # the address of a server that listens everywhere is not one to connect to
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://{host}:{port}" if address.version == 4 else f"http://[{host}]:{port}"
