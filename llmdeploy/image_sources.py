"""Reading of images from a path, a URL, a data URL or standard input. Every failure is an ImageInvalid."""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import re
import shlex
import stat
import sys
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llmdeploy import __version__
from llmdeploy.background import within
from llmdeploy.errors import ImageInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

MAX_DOWNLOAD = 32 * 2**20
# Far larger than any image: this limit stops an endless pipe.
MAX_LOCAL = 256 * 2**20

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def read(source: str, stdin: BinaryIO | None, timeout: float) -> tuple[bytes, str]:
    """Read `source`: `-` is standard input, else a URL or a path. Return the bytes and a name for messages.

    `timeout` limits a whole download, in seconds. Raises ImageInvalid.
    """
    scheme = (re.match(r"([a-z][a-z0-9+.-]+):", source, re.IGNORECASE) or ("", ""))[1].lower()
    if source == "-":
        return _read_stdin(stdin or sys.stdin.buffer), "standard input"
    if scheme in ("http", "https"):
        return _fetch(source, timeout), _without_password(source)
    if scheme == "data":
        return _read_data_url(source), "the data URL"
    if scheme == "file":
        return _read_path(_file_url_path(source)), source
    if scheme and source[len(scheme) :].startswith("://"):
        raise ImageInvalid(
            f"`{_shown(source)}` cannot be fetched: `{scheme}` addresses are not supported",
            "download the image and pass its path",
        )
    return _read_path(source), source


def _read_stdin(stdin: BinaryIO) -> bytes:
    if stdin.isatty():
        raise ImageInvalid(
            "standard input is a terminal, not an image",
            "pipe one in: `llmdeploy chat --image - < photo.jpg`",
        )
    return _read(stdin, "standard input")


def _read(file: BinaryIO, source: str) -> bytes:
    try:
        data = file.read(MAX_LOCAL + 1)
    except OSError as error:
        raise ImageInvalid(
            f"`{source}` cannot be read: {error.strerror or error}", "check the disk and try again"
        ) from error
    if len(data) > MAX_LOCAL:
        raise ImageInvalid(f"`{source}` is larger than {_mib(MAX_LOCAL)}", "is it an image? shrink it first")
    return data


def _read_path(source: str) -> bytes:
    try:
        path = Path(source).expanduser()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageInvalid(f"`{source}` is a folder", _images_in(path) or "name one image")
        if not stat.S_ISREG(mode):  # opening a pipe would block until something writes to it
            raise ImageInvalid(
                f"`{source}` is not a regular file",
                f"pass it on standard input: `llmdeploy chat --image - < {shlex.quote(source)}`",
            )
        with path.open("rb") as file:
            return _read(file, source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageInvalid(f"`{_shown(source)}` does not exist", _near(path)) from error
    except PermissionError as error:
        hint = f"allow it: `chmod +r {shlex.quote(source)}`, and its folders must allow it too"
        raise ImageInvalid(f"`{source}` cannot be read: permission denied", hint) from error
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name that is too long, `~` of an unknown user
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageInvalid(f"`{_shown(source)}` cannot be read: {reason}", "pass the path of an image") from error


def _near(path: Path) -> str:
    """Return a hint for a path that does not exist: similar names, or images in the same folder."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f"the folder `{_shown(str(path.parent))}` does not exist"
    if path.name in names:
        return "it is a link to a file that does not exist"
    lower = {name.lower(): name for name in names}
    if near := difflib.get_close_matches(path.name.lower(), lower, n=3):
        return "did you mean " + " or ".join(f"`{path.parent / lower[name]}`" for name in near) + "?"
    return _images_in(path.parent) or "check the path; `-` reads standard input"


def _images_in(folder: Path) -> str:
    try:
        found = sorted(str(entry) for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
    except OSError:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"images there: {', '.join(f'`{name}`' for name in found[:3])}{more}" if found else ""


def _file_url_path(source: str) -> str:
    import urllib.request

    parts = urllib.parse.urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise ImageInvalid(f"`{_shown(source)}` is on another machine", "copy the image here and pass its path")
    return urllib.request.url2pathname(parts.path)


def _read_data_url(source: str) -> bytes:
    head, comma, body = source.partition(",")
    try:
        if comma and head.lower().endswith(";base64"):
            return base64.b64decode(re.sub(r"\s", "", urllib.parse.unquote(body)), validate=True)
        if comma:
            return urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise ImageInvalid("the data URL holds broken base64", "was it cut? pass the image as a file") from error
    raise ImageInvalid("the data URL holds no data", "it must look like `data:image/png;base64,iVBORw0…`")


# Fetching


def _fetch(url: str, timeout: float) -> bytes:
    """Download `url` within `timeout` seconds, whatever the network does. Every failure is an ImageInvalid."""
    shown = _without_password(url)
    deadline = time.monotonic() + timeout
    try:
        return within(timeout, lambda: _download(url, shown, deadline))
    except ImageInvalid:
        raise
    except TimeoutError as error:
        hint = "try again, or download the image and pass its path"
        raise ImageInvalid(f"`{shown}` did not arrive within {timeout:g} s", hint) from error
    except Exception as error:  # httpx, ssl, idna, h11 and proxy settings each raise their own kind
        raise ImageInvalid(*_fetch_failure(shown, error)) from error


def _download(url: str, shown: str, deadline: float) -> bytes:
    import httpx

    headers = {"User-Agent": f"llmdeploy/{__version__}", "Accept": "image/*"}
    seconds = max(0.001, deadline - time.monotonic())
    try:
        with (
            httpx.Client(timeout=seconds, follow_redirects=True, headers=headers, mounts=_direct(url)) as client,
            client.stream("GET", url) as response,
        ):
            _check_response(response, shown)
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                _check_size(len(data), shown)
                if time.monotonic() > deadline:
                    raise TimeoutError
            return bytes(data)
    except httpx.TimeoutException as error:
        raise TimeoutError from error


def _direct(url: str) -> dict[str, httpx.BaseTransport | None]:
    """Return httpx mounts for the hosts to reach without a proxy: a proxy's `localhost` is another machine."""
    hosts = {"localhost", "*.localhost", "127.0.0.1", "[::1]"}
    host = _host(url)
    try:
        if ipaddress.ip_address(host).is_loopback:
            hosts.add(f"[{host}]" if ":" in host else host)
    except ValueError:
        pass  # not an IP address
    return {f"all://{host}": None for host in hosts}


def _host(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:  # httpx reports it
        return ""


def _check_response(response: httpx.Response, shown: str) -> None:
    status = response.status_code
    if status != 200:
        hints = {401: "it needs a login", 403: "it needs a login", 404: "check the address", 429: "try again later"}
        hint = "the site has a problem: try again later" if status >= 500 else hints.get(status, "check the address")
        raise ImageInvalid(
            f"`{shown}` answered {status} {response.reason_phrase}".rstrip(),
            f"{hint}, or download the image and pass its path",
        )
    if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
        raise ImageInvalid(f"`{shown}` is a web page", "pass the address of the image itself, as in `…/photo.jpg`")
    length = response.headers.get("content-length", "")
    _check_size(int(length) if length.isdecimal() else 0, shown)


def _check_size(size: int, shown: str) -> None:
    if size > MAX_DOWNLOAD:
        hint = "download it, shrink it and pass its path"
        raise ImageInvalid(f"`{shown}` is larger than {_mib(MAX_DOWNLOAD)}", hint)


def _fetch_failure(shown: str, error: Exception) -> tuple[str, str]:
    """Return a message and a hint for a failed download."""
    import socket
    import ssl

    import httpx

    causes = list(_causes(error))
    host = _host(shown) or shown

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(httpx.ProxyError):
        return f"`{shown}` cannot be fetched: the proxy failed: {error}", "check `HTTP_PROXY` and `HTTPS_PROXY`"
    if caused_by(socket.gaierror):
        return f"`{shown}` cannot be fetched: the host name `{host}` is unknown", "check the address and the network"
    if caused_by(ConnectionRefusedError):
        return f"`{shown}` cannot be fetched: `{host}` refused the connection", "check the port; is the server up?"
    if caused_by(ssl.SSLCertVerificationError):
        hint = "set `SSL_CERT_FILE` to the certificate authority's file, or download the image and pass its path"
        return f"`{shown}` cannot be fetched: the certificate of `{host}` is not trusted", hint
    if caused_by(ssl.SSLError):
        return f"`{shown}` cannot be fetched: `{host}` does not speak TLS there", "check the port, or try `http://`"
    if caused_by(httpx.TooManyRedirects):
        return f"`{shown}` cannot be fetched: it redirects without end", "check the address in a browser"
    if caused_by(httpx.RemoteProtocolError, httpx.ReadError):
        return f"`{shown}` broke off its answer", "try again, or download the image and pass its path"
    if caused_by(httpx.InvalidURL, httpx.UnsupportedProtocol):
        return f"`{shown}` is not an address", "it must look like `https://example.org/photo.jpg`"
    return f"`{shown}` cannot be fetched: {error}", "download the image and pass its path"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# Text for messages


def _without_password(url: str) -> str:
    """Shorten an address for messages, without user name and password."""
    return _shown(re.sub(r"//[^/@]*@", "//", url, count=1))


def _shown(source: str) -> str:
    return source if len(source) <= 200 else f"{source[:200]}…"


def _mib(size: int) -> str:
    return f"{size // 2**20} MiB"
