"""Access to the gateway: with an API key, clients that send it; without one, all but web pages of other origins."""

from __future__ import annotations

import hmac
import re
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from llmdeploy.address import is_loopback
from llmdeploy.gateway.errors import Refused
from llmdeploy.http1 import Request

_BEARER = re.compile(rb"bearer +", re.IGNORECASE)


def denied(head: Request, key: bytes | None, own_host: str) -> Refused | None:
    """Return the reason to refuse a request, or None if the client may use the gateway."""
    if key is None:
        return _rebound(head, own_host)
    if head.path == "/health" or head.path.startswith("/llmdeploy/") or _has_key(head, key):
        return None
    return Refused(
        401,
        "the API key is missing or wrong",
        type="authentication_error",
        code="invalid_api_key",
        hint="send it as `Authorization: Bearer KEY`",
    )


def _has_key(head: Request, key: bytes) -> bool:
    given = head.get(b"authorization")
    bearer = _BEARER.match(given) if given is not None else None
    if given is not None and bearer is not None and hmac.compare_digest(given[bearer.end() :], key):
        return True
    return hmac.compare_digest(head.get(b"x-api-key") or b"", key)


def _rebound(head: Request, own_host: str) -> Refused | None:
    """Refuse a request that a web page of another origin makes through the user's browser.

    Such a page can reach a loopback address, by DNS rebinding too; its `Host` or its `Origin` gives it away.
    """
    hint = "open the gateway to others with an API key: set `LLMDEPLOY_API_KEY`"
    if head.host and not _is_own(head.host, own_host):
        host = head.host.decode(errors="replace")
        return Refused(403, f"`{host}` is not this gateway's name", type="permission_error", code="host", hint=hint)
    origin = head.get(b"origin")
    if origin is not None and not _is_local_origin(origin):
        text = origin.decode(errors="replace")
        return Refused(
            403, f"web pages of `{text}` may not use this gateway", type="permission_error", code="origin", hint=hint
        )
    return None


@lru_cache(256)
def _is_own(host: bytes, own_host: str) -> bool:
    try:
        name = urlsplit(f"//{host.decode()}").hostname or ""
        if is_loopback(name) or name == own_host.lower():
            return True
        ip_address(name)
    except ValueError:
        return False
    return True  # an IP address cannot be pointed elsewhere, as a name can


@lru_cache(256)
def _is_local_origin(origin: bytes) -> bool:
    try:
        return is_loopback(urlsplit(origin.decode()).hostname or "")
    except ValueError:
        return False
