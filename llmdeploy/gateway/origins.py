"""The origins of web pages, browser extensions and desktop applications, and the headers that let them read answers.

A browser shows an answer to a page of another origin only if the answer names that origin, and it asks before it sends
anything but the simplest request: with a preflight, an OPTIONS request that carries no key.
"""

from __future__ import annotations

import re
from functools import lru_cache

from llmdeploy.address import is_loopback
from llmdeploy.http1 import Request

Named = tuple[str, ...]
"""Origins that a setting names: `https://app.example`, `https://*.app.example`, `app://*`."""

ALLOWED_METHODS = b"GET, HEAD, POST"
EXPOSED = b"x-llmdeploy-engine, x-request-id, retry-after"
"""The headers of an answer that a page may read, besides those that it always may."""
_READABLE = b"access-control-allow-origin: %b\r\nvary: origin\r\naccess-control-expose-headers: %b\r\n"
PREFLIGHT_SECONDS = 600
"""Seconds for which a browser remembers the answer to a preflight."""

_WEB = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]*)(?::[0-9]{1,5})?")
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
LONGEST_NAMES = 2048
"""Bytes of the longest list of headers that a preflight may ask for."""


@lru_cache(256)
def may_use(origin: bytes, named: Named) -> bool:
    """Return whether a page of this origin may use the gateway: a local web page, or one that a setting names."""
    text = origin.decode("latin-1").lower()
    web = _WEB.fullmatch(text)
    if web is not None and is_loopback(web[1].strip("[]")):
        return True
    return _ORIGIN.fullmatch(text) is not None and any(_matches(text, name.lower()) for name in named)


def _matches(origin: str, name: str) -> bool:
    scheme, _, host = name.partition("://")
    start = f"{scheme}://"
    if host in ("", "*"):
        return origin.startswith(start)
    if host.startswith("*."):
        rest = origin.removeprefix(start)
        return rest != origin and rest.endswith(host[1:]) and len(rest) >= len(host)
    return origin == name


@lru_cache(256)
def headers(origin: bytes, named: Named) -> bytes:
    """Return the header lines that let a page of this origin read an answer, if it may."""
    if not may_use(origin, named):
        return b"vary: origin\r\n"
    return _READABLE % (origin, EXPOSED)


def preflight_headers(head: Request) -> bytes:
    """Return the header lines that answer a preflight, besides those of `headers`."""
    asked = head.get(b"access-control-request-headers")
    lines = b"access-control-allow-methods: %b\r\naccess-control-max-age: %d\r\n" % (ALLOWED_METHODS, PREFLIGHT_SECONDS)
    if asked and len(asked) <= LONGEST_NAMES and _NAMES.fullmatch(asked):
        lines += b"access-control-allow-headers: %b\r\n" % asked
    if head.get(b"access-control-request-private-network") == b"true":
        lines += b"access-control-allow-private-network: true\r\n"
    return lines
