"""TLS context for connections to servers, the same for every client in the package."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


@cache  # loading the certificates takes 35 ms
def trusting() -> ssl.SSLContext:
    """Return a context with this machine's certificates or those of SSL_CERT_FILE and SSL_CERT_DIR, else Mozilla's."""
    import ssl

    context = ssl.create_default_context()
    if not context.cert_store_stats()[
        "x509_ca"
    ]:  # a Python built on another system looks for certificates in other places
        import httpx

        context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
