"""Whom a TLS connection to a server trusts: the same wherever one is made."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


@cache  # to load the certificates takes 35 ms
def trusting() -> ssl.SSLContext:
    """Whom this machine trusts, or SSL_CERT_FILE and SSL_CERT_DIR name; where there is nobody, Mozilla's list."""
    import ssl

    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:  # a Python that was built elsewhere looks in other places
        import httpx

        context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
