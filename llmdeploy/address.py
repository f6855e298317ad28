"""The address that applications use: who can reach it, and how it is written as a URL."""

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
    """Where this machine reaches what listens there, without `/v1`."""
    import ipaddress

    if host == "localhost":
        return f"http://localhost:{port}"
    address = ipaddress.ip_address(host)
    if address.is_unspecified:  # it listens on every address, and is none to connect to
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://{host}:{port}" if address.version == 4 else f"http://[{host}]:{port}"
