"""Access to the gateway: with an API key, clients that send it; without one, all but web pages of other origins."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from shlex import quote
from urllib.parse import urlsplit

from llmdeploy.address import is_loopback
from llmdeploy.config_types import Origins
from llmdeploy.gateway.api_routes import CONTROL
from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.header_cache import ParsedRequest
from llmdeploy.gateway.origins import Named, may_use
from llmdeploy.http1 import Request

RESTART = "and start the service again: `llmdeploy stop && llmdeploy serve --detach`"
MAKE_KEY = "export LLMDEPLOY_API_KEY=$(openssl rand -hex 32)"

_BEARER = re.compile(rb"bearer +", re.IGNORECASE)


@dataclass(frozen=True)
class Access:
    """The rules for who may use the gateway."""

    key: bytes | None = None
    """The API key; None if no key is needed."""
    origins: Named = ()
    """The origins that may use the gateway besides local ones."""
    host: str = ""
    """The address that the gateway listens on."""
    make_key: str = MAKE_KEY
    """The command that makes an API key and sets it."""


def denied(parsed: ParsedRequest, access: Access) -> Refused | None:
    """Return the reason to refuse a request, or None if the client may use the gateway."""
    head = parsed.head
    if access.key is None:
        return _rebound(parsed, access)
    if parsed.is_preflight:  # it carries no key; the request that follows does
        return _foreign(parsed.origin, access)
    if head.path == "/health" or head.path.startswith(CONTROL) or _has_key(head, access.key):
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


def _rebound(parsed: ParsedRequest, access: Access) -> Refused | None:
    """Refuse a request that a web page of another origin makes through the user's browser.

    Such a page can reach a loopback address, by DNS rebinding too; its `Host` or its `Origin` gives it away.
    """
    host = parsed.head.host
    if host and not _is_own(host, access.host):
        text = host.decode(errors="replace")[:200]
        # A page that got here by DNS rebinding can read this answer, so it names no folder of the user.
        hint = f"open the gateway to other names with an API key: `{MAKE_KEY}`, {RESTART}"
        return Refused(403, f"`{text}` is not this gateway's name", type="permission_error", code="host", hint=hint)
    return _foreign(parsed.origin, access)


def _foreign(origin: bytes | None, access: Access) -> Refused | None:
    """Refuse a request of a web page whose origin may not use the gateway."""
    if origin is None or may_use(origin, access.origins):
        return None
    text = origin.decode(errors="replace")[:200]
    return Refused(
        403,
        f"web pages of `{text}` may not use this gateway",
        type="permission_error",
        code="origin",
        hint=_way_in(text, access),
    )


def _way_in(origin: str, access: Access) -> str:
    """Return the hint that says how pages of an origin may use the gateway."""
    if not Origins().accepts([origin]):  # such as `null`, the origin of files and of sandboxed frames
        return "serve the page from this machine, as `python3 -m http.server` does"
    listed = quote(" ".join((*access.origins, origin)))
    command = f"llmdeploy config set gateway.origins {listed}"
    if access.key is None:
        return f"let them in with an API key: `{access.make_key} && {command}`, {RESTART}"
    return f"let them in: `{command}`, {RESTART}"


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
