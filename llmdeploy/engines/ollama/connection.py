"""The connection to Ollama's server: the two HTTP clients, and their failures as errors of llmdeploy."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from llmdeploy.engines.ollama import failures
from llmdeploy.engines.ollama.host import is_local_url
from llmdeploy.errors import LlmdeployError, RequestFailed
from llmdeploy.tls import trusting

if TYPE_CHECKING:
    import httpx
    import ollama

T = TypeVar("T")

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""Seconds for an answer that the daemon has at hand."""


class Connection:
    """The server at `url`. Nothing is kept open: each call makes its own client."""

    def __init__(self, url: str, *, program_version: str | None = None, patience: float = ANSWER_SECONDS) -> None:
        """`program_version` is the version of the installed `ollama`, if known; it makes messages more precise."""
        self._patience = patience
        self.url = url.rstrip("/")
        self.is_local = is_local_url(url)
        self._program_version = program_version

    def options(self, read: float) -> dict[str, Any]:
        """Return the arguments for a client of httpx; `read` is the time-out of an answer in seconds."""
        import httpx

        return {
            "base_url": self.url,
            "trust_env": not self.is_local,
            "verify": trusting() if self.url.startswith("https:") else False,  # plain HTTP has no certificates
            "timeout": httpx.Timeout(read, connect=min(read, CONNECT_SECONDS)),
        }

    def _made(self, make: Callable[..., T], read: float) -> T:
        """Make a client. httpx reads proxies and certificates from the environment, and these may be malformed."""
        import httpx

        try:
            return make(**self.options(read))
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            raise failures.unreachable(self.url, str(error)) from error

    def _http(self, read: float) -> httpx.Client:
        import httpx

        return self._made(httpx.Client, read)

    def _ollama(self, read: float) -> ollama.Client:
        """Make the official client, without the API key of Ollama's cloud, which it would send to any host."""
        module = _imported_ollama()

        def make(base_url: str, **options: Any) -> ollama.Client:
            client: ollama.Client = module.Client(base_url, event_hooks={"request": [_without_cloud_key]}, **options)
            return client

        return self._made(make, read)

    def _get(self, path: str, seconds: float | None = None) -> dict[str, Any]:
        with self._translated(RequestFailed), self._http(seconds or self._patience) as http:
            response = http.get(path)
        return self._document(response, RequestFailed)

    def _post(self, path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
        with self._translated(RequestFailed, model), self._http(self._patience) as http:
            response = http.post(path, json=body)
        return self._document(response, RequestFailed, model)

    # --- Errors

    @contextmanager
    def _translated(self, otherwise: type[LlmdeployError], model: str = "", missing_bytes: int = 0) -> Iterator[None]:
        """Turn the failures of both clients into errors of llmdeploy; unknown ones become `otherwise`."""
        try:
            yield
        except LlmdeployError:
            raise
        except Exception as error:
            explained = self._explained(error, otherwise, model, missing_bytes)
            if explained is None:
                raise
            raise explained from error

    def _explained(
        self, error: Exception, otherwise: type[LlmdeployError], model: str, missing_bytes: int
    ) -> LlmdeployError | None:
        """Return the error of llmdeploy for an exception of a client; None for a bug."""
        import httpx

        status = getattr(error, "status_code", None)
        if status is not None:  # an ollama.ResponseError; its class would need an import of ollama
            words = _words(getattr(error, "error", ""), status)
            return failures.explain(words, self._context(model, missing_bytes), otherwise=otherwise)
        place = failures.Context(host=self._remote_host)
        if isinstance(error, ConnectionError | httpx.ConnectError | httpx.ConnectTimeout):
            return failures.not_running(self.url, place)
        if isinstance(error, httpx.TimeoutException):
            return failures.silent(self.url, place)
        if isinstance(error, httpx.HTTPError) and not isinstance(error, httpx.ProxyError | httpx.UnsupportedProtocol):
            return failures.broken_off(self.url, place, otherwise)
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL | OSError | ImportError | UnicodeError):
            return failures.unreachable(self.url, str(error))
        if isinstance(error, ValueError | TypeError | AttributeError | KeyError):
            # Not JSON, or JSON of another shape: json, pydantic and the official client each raise their own error.
            return failures.not_ollama(self.url, f"{type(error).__name__}: {error}")
        return None

    def _check(self, response: httpx.Response, otherwise: type[LlmdeployError], model: str = "") -> None:
        if not response.is_success:
            words = _words(response.text, response.status_code)
            raise failures.explain(words, self._context(model), otherwise=otherwise)

    def _check_success(self, status: str, otherwise: type[LlmdeployError], model: str) -> None:
        """Raise an error if a stream ended without its last line: then the daemon ended."""
        if status != "success":
            raise failures.broken_off(self.url, self._context(model), otherwise)

    def _document(self, response: httpx.Response, otherwise: type[LlmdeployError], model: str = "") -> dict[str, Any]:
        self._check(response, otherwise, model)
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise failures.not_ollama(self.url, response.text[:80])
        return document

    def _context(self, model: str, missing_bytes: int = 0) -> failures.Context:
        """Return the details that make a message more precise, as far as the daemon still answers."""
        names, version = [], None
        with suppress(Exception), self._http(2.0) as http:
            version = http.get("/api/version").json()["version"]
            names = [one["name"] for one in http.get("/api/tags").json()["models"]]
        return failures.Context(
            model=model,
            known=names,
            server_version=version,
            program_version=self._program_version,
            missing_bytes=missing_bytes,
            host=self._remote_host,
        )

    @property
    def _remote_host(self) -> str:
        return "" if self.is_local else urlsplit(self.url).netloc


# --- The official client

_IMPORT = threading.Lock()
_READ_AT_IMPORT = re.compile(r"OLLAMA_HOST|OLLAMA_API_KEY|SSL_CERT_FILE|SSL_CERT_DIR|.*_PROXY", re.IGNORECASE)


def _imported_ollama() -> Any:
    """Import the module `ollama` without the variables that it reads at import: malformed ones would make it fail."""
    with _IMPORT:
        if "ollama" in sys.modules:
            return sys.modules["ollama"]
        kept = {name: os.environ.pop(name) for name in list(os.environ) if _READ_AT_IMPORT.fullmatch(name)}
        try:
            import ollama
        finally:
            os.environ.update(kept)
        return ollama


def _without_cloud_key(request: httpx.Request) -> None:
    request.headers.pop("authorization", None)


def _words(text: Any, status: int) -> Any:
    """Return the message in the body of an error; an empty body or a web page of a proxy gives only the status."""
    if not text or (isinstance(text, str) and text.lstrip().startswith("<")):
        return f"status {status}"
    return text
