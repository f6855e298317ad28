"""OLLAMA_HOST: the address of Ollama's server and the URL for its clients, by Ollama's own rules.

unset                  127.0.0.1:11434
0.0.0.0, [::], :8080   all interfaces; a client takes the loopback address
http://h, https://h    the ports 80 and 443
h/path                 a path before every route, for a server behind a proxy
ollama.com             https
h:abc, h:99999         Ollama warns and uses the default port
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from llmdeploy.address import is_loopback

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_PORT = "11434"
_NAME = re.compile(r"[\w.-]*")


@dataclass(frozen=True)
class Host:
    """The meaning of a value of OLLAMA_HOST."""

    url: str
    """The URL for clients, without a slash at its end."""
    listen: str
    """The address that `ollama serve` listens at, `host:port`; an empty host is all interfaces."""
    problem: str | None = None
    """The mistake in the value and its effect in Ollama; None if there is none."""


def parse(text: str | None) -> Host:
    """Return the meaning of a value of OLLAMA_HOST; None or a blank text means that it is not set.

    Every text has a meaning: Ollama replaces what it does not understand by defaults.
    """
    value = (text or "").strip().strip("\"'").strip()
    if value == "ollama.com":
        value = "https://ollama.com"
    scheme, found, rest = value.partition("://")
    if not found:
        scheme, rest = "http", value
    default = _DEFAULT_PORTS.get(scheme, _PORT) if found else _PORT
    hostport, _, path = rest.partition("/")
    host, port = _split(hostport)
    url_scheme = scheme if scheme in _DEFAULT_PORTS else "http"
    usable = port if port is not None and _is_port(port) else default
    url = f"{url_scheme}://{_joined(_reachable(host), usable)}/{path}".rstrip("/")
    return Host(url, _joined(host, usable), _problem(scheme, host, port, default))


def is_local_url(url: str) -> bool:
    """Return whether a URL leads to this machine, so that no proxy may be used for it."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or host.endswith(".localhost")


def _split(hostport: str) -> tuple[str, str | None]:
    """Split a host and a port. The port is None if there is none, also if only Go's `net.SplitHostPort` sees none."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\]:([^:\[\]]*)", hostport)
    plain = re.fullmatch(r"([^:\[\]]*):([^:\[\]]*)", hostport)
    if match := bracketed or plain:
        return match[1], match[2]
    address = _address(hostport.strip("[]"))
    return (str(address) if address else hostport or "127.0.0.1"), None


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None and int(text) <= 65535


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _reachable(host: str) -> str:
    """Return the host for clients: they cannot connect to the address of all interfaces (on Windows)."""
    address = _address(host)
    if address is not None and address.is_unspecified:
        return "::1" if address.version == 6 else "127.0.0.1"
    return host or "127.0.0.1"


def _joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _problem(scheme: str, host: str, port: str | None, default: str) -> str | None:
    if port is not None and not _is_port(port):
        what = f"the port `{port}`, which is none" if port else "no port behind its `:`"
        return f"`OLLAMA_HOST` has {what}: Ollama warns and uses {default}"
    if port is not None and int(port) == 0:
        return "`OLLAMA_HOST` has the port 0: Ollama takes any free one, and no client can know which"
    if scheme not in _DEFAULT_PORTS:
        return f"`OLLAMA_HOST` has the scheme `{scheme}`: Ollama's server ignores it, and its client refuses it"
    if not (_NAME.fullmatch(host) or _address(host)):
        return f"`OLLAMA_HOST` has the host `{host}`, which is none: Ollama can neither listen there nor find it"
    return None
