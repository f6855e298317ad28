"""Ollama's daemon over HTTP: what is there, what runs, pull, create, load, release.

The official client does what it does in full: pull, create, copy, delete, ps. Plain HTTP does the rest: it has no
version, no HEAD of a blob and no load, its list and show drop fields, and its upload of a blob tells no progress.
Every failure is an LlmdeployError (`ollama_failures`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast
from urllib.parse import urlsplit

from llmdeploy.engines import ollama_failures as failures
from llmdeploy.engines.ollama_host import is_loopback
from llmdeploy.errors import (
    DownloadFailed,
    LlmdeployError,
    ModelInvalid,
    ModelNotFound,
    RequestFailed,
    StartFailed,
    TimedOut,
)

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import httpx
    import ollama

    from llmdeploy.engines.base import OnProgress

T = TypeVar("T")
OnStatus = Callable[[str], None]

PROBE_SECONDS = 1.8
"""All that a probe may take."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""For what the daemon knows by heart."""
SILENCE_SECONDS = 1800.0
"""Without a line while it pulls or creates: it checks and rewrites files of many GB without a word."""
STALL_SECONDS = 300.0
"""Without a byte while it pulls: it tries again and again for ever, and reports that every 60 ms."""
UPLOAD_CHUNK = 1 << 20


@dataclass(frozen=True)
class Probe:
    """What answers at an address."""

    state: Literal["running", "refused", "starting", "other", "forbidden"]
    version: str | None
    detail: str
    """In words that `doctor` can show."""


@dataclass(frozen=True)
class Installed:
    """A model that the daemon has."""

    name: str
    size: int
    capabilities: tuple[str, ...]
    """Empty before Ollama 0.30."""
    context_length: int | None
    """The longest the model was trained for; None before Ollama 0.30."""
    remote_host: str | None = None
    """Where it really runs, for a model of Ollama's cloud."""


@dataclass(frozen=True)
class Running:
    """A model in memory. `size_vram` is what of `size` is on GPUs."""

    name: str
    size: int
    size_vram: int
    context_length: int | None
    expires_at: datetime | None


@dataclass(frozen=True)
class Shown:
    """What the daemon tells of one model; None where it does not know."""

    capabilities: tuple[str, ...]
    architecture: str | None
    context_length: int | None
    """The longest the model was trained for."""
    heads: tuple[int, ...]
    """One per layer, as `kv_heads`; empty where they are not known."""
    kv_heads: tuple[int, ...]
    layers: int | None
    key_length: int | None
    value_length: int | None
    embedding_length: int | None
    vocabulary_size: int | None
    parameters: str
    """`PARAMETER` lines: name and value."""
    num_ctx: int | None
    """The context of the parameters."""
    size: int | None
    """Bytes of all its files."""
    blobs: tuple[str, ...]
    """Paths on the daemon's machine: the model, and a projector behind it."""
    projector: bool
    """A vision projector in a file of its own."""
    merged: bool
    """Its vision or audio part is in the model's own file: only Ollama can load that."""
    format: str
    """`gguf` or `safetensors`."""
    quantization: str
    remote_host: str | None

    @property
    def sees_images(self) -> bool:
        return "vision" in self.capabilities


class Layers:
    """The layers of one pull. Ollama's numbers may run backwards after a retry; these do not."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def update(self, name: str, done: int, total: int) -> bool:
        """Take in one report; whether it brought anything new."""
        before = self._layers.get(name)
        total = max(total, before[1] if before else 0)
        now = (min(max(done, before[0] if before else 0), total), total)
        self._layers[name] = now
        return now != before

    def __getitem__(self, name: str) -> tuple[int, int]:
        return self._layers[name]

    def unfinished(self) -> list[str]:
        return [name for name, (done, total) in self._layers.items() if done < total]

    @property
    def done(self) -> int:
        return sum(done for done, _ in self._layers.values())

    @property
    def total(self) -> int:
        """Of the layers seen so far: Ollama names the next one when it begins with it."""
        return sum(total for _, total in self._layers.values())


class Daemon:
    """The Ollama server at `url`. Holds no connection: each call makes its own."""

    def __init__(self, url: str, *, program_version: str | None = None) -> None:
        """`program_version`: of the `ollama` that is installed, where it is known; it makes messages better."""
        self.url = url.rstrip("/")
        self.is_local = is_loopback(url)
        self._program_version = program_version

    # --- What is there

    def probe(self) -> Probe:
        """What answers at the address. Never raises, takes under 2 s."""
        try:
            return _within(PROBE_SECONDS, self._probe)
        except TimeoutError:
            if self.is_local:
                return Probe("starting", None, f"`{self.url}` accepts connections and does not answer yet")
            return Probe("refused", None, f"`{self.url}` does not answer")
        except Exception as error:  # a proxy, a certificate, a strange address: each raises its own
            return Probe("refused", None, f"no way to `{self.url}`: {failures.one_line(str(error))}")

    def version(self) -> str:
        return str(self._get("/api/version").get("version", ""))

    def models(self) -> list[Installed]:
        """The models that the daemon has."""
        with self._translated(RequestFailed):
            return [_installed(model) for model in self._get("/api/tags")["models"] or ()]

    def show(self, model: str) -> Shown:
        """What the daemon tells of a model. Raises ModelNotFound."""
        with self._translated(RequestFailed, model):
            document = self._post("/api/show", {"model": model}, model)
            if _has_hidden_heads(document):
                # Only then: it tells every token too, which makes 10 MB.
                document = self._post("/api/show", {"model": model, "verbose": True}, model)
            size = next((one.size for one in self.models() if same_name(one.name, model)), None)
            return _shown(document, size)

    def running(self) -> list[Running]:
        """The models in memory."""
        return self._running(ANSWER_SECONDS)

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon has a file of that digest (`sha256:...`)."""
        with self._translated(RequestFailed), self._http(ANSWER_SECONDS) as http:
            response = http.head(f"/api/blobs/{digest}")
        if response.status_code == 404:
            return False
        self._check(response, RequestFailed)
        return True

    # --- What is made there

    def push_blob(self, path: Path, digest: str, on_progress: OnProgress) -> None:
        """Give the daemon a file of this machine. Raises ModelInvalid where it is not of that digest."""
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size

            def chunks() -> Iterator[bytes]:
                while chunk := _read(file, path):
                    yield chunk
                    on_progress(path.name, min(file.tell(), size), size)

            # A length instead of chunked coding: a proxy can pass it on without keeping it all.
            headers = {"Content-Length": str(size)}
            with self._translated(RequestFailed), self._http(SILENCE_SECONDS) as http:
                response = http.post(f"/api/blobs/{digest}", content=chunks(), headers=headers)
            self._check(response, RequestFailed)

    def create_from_files(
        self,
        model: str,
        files: Mapping[str, str],
        parameters: Mapping[str, Any] | None = None,
        on_status: OnStatus = lambda status: None,
    ) -> None:
        """Make a model out of pushed files: file name -> digest. Ollama 0.30 and newer rewrite a GGUF for it."""
        self._create(model, on_status, files=dict(files), parameters=dict(parameters or {}) or None)

    def create_alias(self, alias: str, base: str, parameters: Mapping[str, Any]) -> None:
        """Make a second name with parameters of its own; the weights are shared. Raises ModelNotFound."""
        # A base that is missing would start a download, so it is looked for first.
        self._post("/api/show", {"model": base}, base)
        self._create(alias, lambda status: None, from_=base, parameters=dict(parameters) or None)

    def copy(self, source: str, destination: str) -> None:
        with self._translated(RequestFailed, source), self._ollama(ANSWER_SECONDS) as client:
            client.copy(source, destination)

    def delete(self, model: str) -> None:
        """Remove a name, and the files that no other name uses. A missing one is fine."""
        with suppress(ModelNotFound), self._translated(RequestFailed, model), self._ollama(ANSWER_SECONDS) as client:
            client.delete(model)

    def pull(
        self,
        model: str,
        on_progress: OnProgress,
        *,
        insecure: bool = False,
        silence: float = SILENCE_SECONDS,
        stall: float = STALL_SECONDS,
    ) -> None:
        """Fetch a model. An exception, KeyboardInterrupt too, closes the connection, and Ollama stops.

        `on_progress` hears layer by layer; `Layers` adds them up. `silence` and `stall` are in seconds.
        """
        layers, status, moved = Layers(), "", time.monotonic()

        def start(client: ollama.Client) -> Iterator[ollama.ProgressResponse]:
            return client.pull(model, insecure=insecure, stream=True)

        with self._stream(start, silence, DownloadFailed, model, layers) as parts:
            for part in parts:
                news, status = part.status != status, part.status or ""
                if part.digest and part.total:
                    name = status.removeprefix("pulling ")
                    news = layers.update(name, part.completed or 0, part.total) or news
                    on_progress(name, *layers[name])
                if news:
                    moved = time.monotonic()
                elif time.monotonic() - moved > stall:
                    raise TimedOut(
                        f"Ollama has got nothing more of `{model}` for {stall:g} s",
                        "check the network and run it again: what is there is kept",
                    )
        self._check_success(status, DownloadFailed, model)
        for name in layers.unfinished():  # Ollama reports every 60 ms, so it is silent about the last bytes
            _, total = layers[name]
            on_progress(name, total, total)

    # --- What is in memory

    async def load(self, model: str, *, num_ctx: int | None = None, timeout: float = 600.0) -> None:
        """Load a model and keep it loaded; `timeout` in seconds. To cancel it ends the load.

        A later request without the same `num_ctx` loads it again: give it to an alias instead (`create_alias`).
        """
        import asyncio

        import httpx

        body: dict[str, Any] = {"model": model, "keep_alive": -1, "stream": False}
        if num_ctx is not None:
            body["options"] = {"num_ctx": num_ctx}
        with self._translated(StartFailed, model):
            async with self._made(httpx.AsyncClient, timeout) as http:
                response = await http.post("/api/generate", json=body)
        # In a thread: for a better message it may ask the daemon.
        await asyncio.to_thread(self._document, response, StartFailed, model)

    def unload(self, model: str) -> None:
        """Let the memory of a model go. One that is not loaded, or not there, is fine."""
        with suppress(ModelNotFound):
            self._post("/api/generate", {"model": model, "keep_alive": 0, "stream": False}, model)

    def wait_released(self, model: str, seconds: float) -> bool:
        """Whether the model left the memory within that time."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            with suppress(TimedOut):
                if not any(same_name(one.name, model) for one in self._running(min(left, ANSWER_SECONDS))):
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    # --- How it is asked

    def _options(self, read: float) -> dict[str, Any]:
        """For a client of httpx. `verify`: certificates take 35 ms to load, and plain HTTP has none."""
        import httpx

        return {
            "base_url": self.url,
            "trust_env": not self.is_local,
            "verify": self.url.startswith("https:"),
            "timeout": httpx.Timeout(read, connect=min(read, CONNECT_SECONDS)),
        }

    def _made(self, make: Callable[..., T], read: float) -> T:
        """A client. httpx reads the proxies and certificates of the environment, and these may be malformed."""
        import httpx

        try:
            return make(**self._options(read))
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            raise failures.unreachable(self.url, str(error)) from error

    def _http(self, read: float) -> httpx.Client:
        import httpx

        return self._made(httpx.Client, read)

    def _ollama(self, read: float) -> ollama.Client:
        """The official client, which would send the key of Ollama's cloud to any host."""
        module = _imported_ollama()

        def make(base_url: str, **options: Any) -> ollama.Client:
            client: ollama.Client = module.Client(base_url, event_hooks={"request": [_without_cloud_key]}, **options)
            return client

        return self._made(make, read)

    def _get(self, path: str) -> dict[str, Any]:
        with self._translated(RequestFailed), self._http(ANSWER_SECONDS) as http:
            response = http.get(path)
        return self._document(response, RequestFailed)

    def _post(self, path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
        with self._translated(RequestFailed, model), self._http(ANSWER_SECONDS) as http:
            response = http.post(path, json=body)
        return self._document(response, RequestFailed, model)

    def _running(self, seconds: float) -> list[Running]:
        with self._translated(RequestFailed), self._ollama(seconds) as client:
            models = client.ps().models
        return [
            Running(one.name or "", one.size or 0, one.size_vram or 0, one.context_length, one.expires_at)
            for one in models
        ]

    def _create(self, model: str, on_status: OnStatus, **wishes: Any) -> None:
        def start(client: ollama.Client) -> Iterator[ollama.ProgressResponse]:
            return client.create(model, stream=True, **wishes)

        status = ""
        with self._stream(start, SILENCE_SECONDS, RequestFailed, model) as parts:
            for part in parts:
                status = part.status or ""
                if status.startswith("pulling"):
                    break
                on_status(status)
        if status.startswith("pulling"):  # the base went away a moment ago
            raise failures.explain(f"model '{wishes.get('from_')}' not found", self._context(model))
        self._check_success(status, RequestFailed, model)

    @contextmanager
    def _stream(
        self,
        start: Callable[[ollama.Client], Iterator[ollama.ProgressResponse]],
        silence: float,
        otherwise: type[LlmdeployError],
        model: str,
        layers: Layers | None = None,
    ) -> Iterator[Iterator[ollama.ProgressResponse]]:
        """The lines of a long answer. However it is left, the connection is closed."""

        def lines() -> Generator[ollama.ProgressResponse, None, None]:
            with closing(cast("Generator[ollama.ProgressResponse, None, None]", start(client))) as parts:
                while True:
                    # Around each line only: what the reader of the lines raises is its own.
                    with self._translated(otherwise, model, layers):
                        part = next(parts, None)
                    if part is None:
                        return
                    yield part

        with self._ollama(silence) as client, closing(lines()) as each:
            yield each

    # --- What went wrong

    @contextmanager
    def _translated(
        self, otherwise: type[LlmdeployError], model: str = "", layers: Layers | None = None
    ) -> Iterator[None]:
        """Failures of both clients become ours; `otherwise` is for those that nobody knows."""
        try:
            yield
        except LlmdeployError:
            raise
        except Exception as error:
            explained = self._explained(error, otherwise, model, layers)
            if explained is None:
                raise
            raise explained from error

    def _explained(
        self, error: Exception, otherwise: type[LlmdeployError], model: str, layers: Layers | None
    ) -> LlmdeployError | None:
        """Our error for one of a client; None for a bug."""
        import httpx

        status = getattr(error, "status_code", None)
        if status is not None:  # ollama.ResponseError; not by its name, which would import ollama for plain HTTP
            words = _words(getattr(error, "error", ""), status)
            return failures.explain(words, self._context(model, layers), otherwise=otherwise)
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
            # No JSON, or of another shape: json, pydantic and the official client raise one each.
            return failures.not_ollama(self.url, f"{type(error).__name__}: {error}")
        return None

    def _check(self, response: httpx.Response, otherwise: type[LlmdeployError], model: str = "") -> None:
        if not response.is_success:
            words = _words(response.text, response.status_code)
            raise failures.explain(words, self._context(model), otherwise=otherwise)

    def _check_success(self, status: str, otherwise: type[LlmdeployError], model: str) -> None:
        """A stream without its last line was cut: the daemon ended."""
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

    def _context(self, model: str, layers: Layers | None = None) -> failures.Context:
        """What makes a message better, as far as the daemon still tells it."""
        names, version = [], None
        with suppress(Exception), self._http(2.0) as http:
            version = http.get("/api/version").json()["version"]
            names = [one["name"] for one in http.get("/api/tags").json()["models"]]
        return failures.Context(
            model=model,
            known=names,
            server_version=version,
            program_version=self._program_version,
            missing_bytes=layers.total - layers.done if layers else 0,
            host=self._remote_host,
        )

    @property
    def _remote_host(self) -> str:
        return "" if self.is_local else urlsplit(self.url).netloc

    # --- The probe

    def _probe(self) -> Probe:
        import httpx

        try:
            with httpx.Client(**self._options(PROBE_SECONDS * 0.8)) as http:
                version = _answer(http, "/api/version")
                root = _answer(http, "/")
        except httpx.ConnectError as error:
            if "[SSL" in str(error):
                return Probe("other", None, f"no safe connection to `{self.url}`: {failures.one_line(str(error))}")
            return Probe("refused", None, f"nothing answers at `{self.url}`: {failures.one_line(str(error))}")
        except httpx.ConnectTimeout:
            return Probe("refused", None, f"`{self.url}` cannot be reached: no connection in time")
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except (httpx.RemoteProtocolError, httpx.ReadError):
            return Probe("other", None, f"what listens at `{self.url}` does not speak HTTP")
        return recognise(version, root)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes
    """The beginning of it."""


def recognise(version: Answer, root: Answer) -> Probe:
    """What a server is, by its answers to `/api/version` and `/`. Other programs have a version too."""
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


def same_name(one: str, other: str) -> bool:
    """Whether two names are one model's: `X` is `x:latest`."""
    return full_name(one) == full_name(other)


def full_name(name: str) -> str:
    """The name as Ollama lists it, in small letters: without its own registry, with a tag."""
    name = name.lower().removeprefix("https://").removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _version_of(answer: Answer) -> str | None:
    try:
        version = json.loads(answer.body)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) and answer.status == 200 else None


def _described(answer: Answer) -> str:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "text/html":
        title = re.search(rb"<title[^>]*>([^<]{1,80})", answer.body, re.IGNORECASE)
        name = f" `{failures.one_line(title[1].decode(errors='replace'))}`" if title else ""
        return f"a web page{name} (status {answer.status})"
    if location := answer.headers.get("location"):
        return f"it redirects to `{failures.one_line(location)}`"
    return f"it answers with status {answer.status}" + (f" and `{kind}`" if kind else "")


def _answer(http: httpx.Client, path: str) -> Answer:
    """An answer and the beginning of its body: another program's may have no end."""
    body = b""
    with http.stream("GET", path, headers={"Accept-Encoding": "identity", "Connection": "close"}) as response:
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > 1 << 16:
                break
    return Answer(response.status_code, dict(response.headers), body)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """`work()`, or TimeoutError. In a thread: a socket's time-out bounds neither name look-ups nor slow headers."""
    from concurrent.futures import Future

    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to the caller
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


# --- The official client

_IMPORT = threading.Lock()
_READ_AT_IMPORT = re.compile(r"OLLAMA_HOST|OLLAMA_API_KEY|SSL_CERT_FILE|SSL_CERT_DIR|.*_PROXY", re.IGNORECASE)


def _imported_ollama() -> Any:
    """The module `ollama`. Its import makes a client out of the environment, and fails where that is malformed."""
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
    """The words of an error's body; an empty one and a page of a proxy have none."""
    if not text or (isinstance(text, str) and text.lstrip().startswith("<")):
        return f"status {status}"
    return text


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(UPLOAD_CHUNK)
    except OSError as error:  # not to be taken for one of the connection
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelInvalid:
    return ModelInvalid(f"`{path}` cannot be read: {error.strerror}", f"check it: `ls -l {shlex.quote(str(path))}`")


# --- What its documents mean


def _installed(model: Mapping[str, Any]) -> Installed:
    return Installed(
        name=model["name"],
        size=model["size"],
        capabilities=tuple(model.get("capabilities") or ()),
        context_length=(model.get("details") or {}).get("context_length"),
        remote_host=model.get("remote_host"),
    )


def _has_hidden_heads(document: Mapping[str, Any]) -> bool:
    """Whether layers differ in their heads: such arrays are told on request only."""
    info = document.get("model_info") or {}
    return any(value is None for key, value in info.items() if ".attention.head_count" in key)


def _shown(document: Mapping[str, Any], size: int | None) -> Shown:
    info = document.get("model_info") or {}
    details = document.get("details") or {}
    parameters = document.get("parameters") or ""
    architecture = info.get("general.architecture")
    names = [tensor["name"] for tensor in document.get("tensors") or ()]
    projector = bool(document.get("projector_info"))
    num_ctx = re.search(r"^num_ctx\s+(\d+)", parameters, re.MULTILINE)
    return Shown(
        capabilities=tuple(document.get("capabilities") or ()),
        architecture=architecture,
        parameters=parameters,
        num_ctx=int(num_ctx[1]) if num_ctx else None,
        size=size,
        blobs=tuple(
            re.findall(r"^FROM \"?(.*[/\\]sha256-[0-9a-f]{64})\b", document.get("modelfile", ""), re.MULTILINE)
        ),
        projector=projector,
        merged=not projector and any(name.startswith(("v.", "mm.", "a.", "s.")) for name in names),
        format=details.get("format") or "",
        quantization=details.get("quantization_level") or "",
        remote_host=document.get("remote_host"),
        **_shape(info, architecture, document.get("tensors") or ()),
    )


def _shape(info: Mapping[str, Any], architecture: str | None, tensors: Any) -> dict[str, Any]:
    """Sizes of a model's parts, by the rules of GGUF."""

    def number(key: str) -> int | None:
        value = info.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else None

    layers, embedding = number("block_count"), number("embedding_length")
    heads = _per_layer(info.get(f"{architecture}.attention.head_count"), layers)
    key_value = f"{architecture}.attention.head_count_kv"
    head = next((count for count in heads if count > 0), None)
    head_size = embedding // head if embedding and head else None
    table = next((tensor["shape"] for tensor in tensors if tensor["name"] == "token_embd.weight"), None)
    return {
        "context_length": number("context_length"),
        "layers": layers,
        "heads": heads,
        "kv_heads": _per_layer(info[key_value], layers) if key_value in info else heads,
        "key_length": number("attention.key_length") or head_size,
        "value_length": number("attention.value_length") or head_size,
        "embedding_length": embedding,
        "vocabulary_size": number("vocab_size") or (table[-1] if table else None),
    }


def _per_layer(value: Any, layers: int | None) -> tuple[int, ...]:
    if isinstance(value, int) and layers is not None and layers <= 100_000:
        return (value,) * layers
    return tuple(value) if isinstance(value, list) else ()
