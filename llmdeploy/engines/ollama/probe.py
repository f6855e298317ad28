"""The probe of an address: an Ollama, one that is starting, another program, or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmdeploy.background import within
from llmdeploy.engines.ollama.connection import Connection
from llmdeploy.engines.ollama.failures import one_line

if TYPE_CHECKING:
    import httpx

PROBE_SECONDS = 1.8
"""Seconds that a whole probe may take."""


@dataclass(frozen=True)
class Probe:
    """The result of a probe."""

    state: Literal["running", "refused", "silent", "other", "forbidden"]
    version: str | None
    detail: str
    """The result in words, as `doctor` shows it."""


def probe(url: str) -> Probe:
    """Find out what answers at an address. Raises nothing and takes under 2 s."""
    import httpx  # noqa: F401  # imported before the time begins: on a busy machine it takes a second

    connection = Connection(url)
    try:
        return within(PROBE_SECONDS, lambda: _ask(connection))
    except TimeoutError:
        if connection.is_local:
            return Probe("silent", None, f"`{url}` accepts connections and does not answer")
        return Probe("refused", None, f"`{url}` does not answer")
    except Exception as error:  # proxies, certificates and malformed addresses each raise their own errors
        return Probe("refused", None, f"`{url}` cannot be reached: {one_line(str(error))}")


def _ask(connection: Connection) -> Probe:
    import httpx

    try:
        with httpx.Client(**connection.options(PROBE_SECONDS * 0.8)) as http:
            version = _answer(http, "/api/version")
            root = _answer(http, "/")
    except httpx.ConnectError as error:
        if "[SSL" in str(error):
            return Probe("other", None, f"no safe connection to `{connection.url}`: {one_line(str(error))}")
        return Probe("refused", None, f"nothing answers at `{connection.url}`: {one_line(str(error))}")
    except httpx.ConnectTimeout:
        return Probe("refused", None, f"`{connection.url}` cannot be reached: no connection in time")
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except (httpx.RemoteProtocolError, httpx.ReadError):
        return Probe("other", None, f"what listens at `{connection.url}` does not speak HTTP")
    return recognise(version, root)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of an unknown program."""

    status: int
    headers: Mapping[str, str]
    """The headers, by names in lower case."""
    body: bytes
    """The beginning of the body."""


def recognise(version: Answer, root: Answer) -> Probe:
    """Recognize a server by its answers to `/api/version` and `/`. Other programs have a version too."""
    number = _version_of(version)
    if number is not None and b"Ollama is running" in root.body:
        return Probe("running", number, f"Ollama {number}")
    if version.status in {401, 403}:
        return Probe(
            "forbidden", None, f"it refuses us (status {version.status}): an Ollama behind a proxy, or its rules"
        )
    if number is not None:
        return Probe("other", None, f"{_described(root)}; it has a version as Ollama has, and is another program")
    return Probe("other", None, f"another program: {_described(root if root.status == 200 else version)}")


def _version_of(answer: Answer) -> str | None:
    try:
        version = json.loads(answer.body)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) and answer.status == 200 else None


def _described(answer: Answer) -> str:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "text/html":
        title = re.search(rb"<title[^<>]{0,200}>([^<]{1,80})", answer.body, re.IGNORECASE)
        name = f" `{one_line(title[1].decode(errors='replace'))}`" if title else ""
        return f"a web page{name} (status {answer.status})"
    if location := answer.headers.get("location"):
        return f"it redirects to `{one_line(location)}`"
    return f"it answers with status {answer.status}" + (f" and `{kind}`" if kind else "")


def _answer(http: httpx.Client, path: str) -> Answer:
    """Return an answer with the beginning of its body: the body of another program may have no end."""
    body = b""
    with http.stream("GET", path, headers={"Accept-Encoding": "identity", "Connection": "close"}) as response:
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > 1 << 16:
                break
    return Answer(response.status_code, dict(response.headers), body)
