"""Why a source was not reached: the chain of an error, and the proxy on the way."""

from __future__ import annotations


def chain(error: BaseException | None) -> list[BaseException]:
    """The error, what caused it, what caused that."""
    found: list[BaseException] = []
    while error is not None and not any(error is one for one in found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def proxy_to(address: str) -> str | None:
    """The proxy on the way to an address, without its password."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy is None or url.hostname is None or proxy_bypass(url.hostname):
        return None
    return proxy.rpartition("@")[2].rpartition("//")[2]
