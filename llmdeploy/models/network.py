"""Explanations of a source that cannot be reached: the chain of an error, and the proxy on the way."""

from __future__ import annotations

from llmdeploy.errors import DownloadFailed

TLS_HINT = "behind a proxy that opens TLS set `SSL_CERT_FILE` to its certificate"


def explain(chain: list[BaseException], where: str, hint: str, tls_hint: str = TLS_HINT) -> DownloadFailed | None:
    """Return the failure of a connection to `where`; None if it is not one of TLS, of the name, or a refusal."""
    import socket
    import ssl

    if any(isinstance(error, ssl.SSLError) for error in chain):
        return DownloadFailed(f"no safe connection to {where}: {reason(chain, ssl.SSLError)}", tls_hint)
    if any(isinstance(error, socket.gaierror) for error in chain):
        return DownloadFailed(f"the address of {where} cannot be looked up", hint)
    if any(isinstance(error, ConnectionRefusedError) for error in chain):
        return DownloadFailed(f"{where} refuses the connection", hint)
    return None


def chain(error: BaseException | None) -> list[BaseException]:
    """Return the error, its cause, the cause of that, and so on."""
    found: list[BaseException] = []
    while error is not None and not any(error is one for one in found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def reason(chain: list[BaseException], kind: type[BaseException] = Exception) -> str:
    """Return the first line of the first error of that kind that has a text."""
    texts = (str(error).strip() for error in chain if isinstance(error, kind))
    return next((text.splitlines()[0].rstrip(".") for text in texts if text), type(chain[0]).__name__)


def proxy_to(address: str) -> str | None:
    """Return the proxy on the way to an address, without its password; None if there is no proxy."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy is None or url.hostname is None or proxy_bypass(url.hostname):
        return None
    return proxy.rpartition("@")[2].rpartition("//")[2]
