"""Calls to Ollama's daemon over HTTP: list, show, pull, create, delete, load and unload models.

The official client makes the calls that it supports in full: pull, create and delete. Plain HTTP makes the others:
the client cannot check for a blob or load a model, its `list` and `show` drop fields, and its upload of a blob does not
report progress. Every failure is an LlmdeployError (see failures.py).
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from llmdeploy.engines.ollama import documents, failures
from llmdeploy.engines.ollama.connection import Connection
from llmdeploy.engines.ollama.documents import Installed, Running, Shown, same_name
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
    from pathlib import Path

    import ollama

    from llmdeploy.models.source import OnProgress

OnStatus = Callable[[str], None]

SILENCE_SECONDS = 1800.0
"""Seconds without output while Ollama pulls or creates: it checks and rewrites files of many GB silently."""
NAME_SECONDS = 60.0
"""Seconds without output while Ollama creates an alias: it reads headers and writes a small file."""
STALL_SECONDS = 300.0
"""Seconds without new bytes of a pull: Ollama retries forever, and reports each attempt every 60 ms."""
UPLOAD_CHUNK = 1 << 20


class Layers:
    """The progress of one pull by layer. Ollama's numbers may decrease after a retry; these never do."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def update(self, name: str, done: int, total: int) -> bool:
        """Record one report. Return whether it brought anything new."""
        before = self._layers.get(name)
        total = max(total, before[1] if before else 0)
        now = (min(max(done, before[0] if before else 0), total), total)
        self._layers[name] = now
        return now != before

    def __getitem__(self, name: str) -> tuple[int, int]:
        return self._layers[name]

    def unfinished(self) -> list[str]:
        """Return the names of the layers that are not complete."""
        return [name for name, (done, total) in self._layers.items() if done < total]

    @property
    def missing(self) -> int:
        """The missing bytes of the layers seen so far: Ollama names a layer only when it starts to download it."""
        return sum(total - done for done, total in self._layers.values())


class Daemon(Connection):
    """Ollama's daemon at an address."""

    # --- Inspect

    def models(self) -> list[Installed]:
        """Return the models that the daemon has."""
        with self._translated(RequestFailed):
            return [documents.installed(model) for model in self._get("/api/tags")["models"] or ()]

    def show(self, model: str) -> Shown:
        """Return the daemon's description of a model. Raises ModelNotFound."""
        with self._translated(RequestFailed, model):
            document = self._post("/api/show", {"model": model}, model)
            if documents.has_hidden_heads(document):
                # Only if needed: the verbose answer lists every token too and has 10 MB.
                document = self._post("/api/show", {"model": model, "verbose": True}, model)
            size = next((one.size for one in self.models() if same_name(one.name, model)), None)
            return documents.shown(document, size)

    def running(self) -> list[Running]:
        """Return the models in memory."""
        return self._running(self._patience)

    def has_blob(self, digest: str) -> bool:
        """Return whether the daemon has a file with this digest (`sha256:...`)."""
        with self._translated(RequestFailed), self._http(self._patience) as http:
            response = http.head(f"/api/blobs/{digest}")
        if response.status_code == 404:
            return False
        self._check(response, RequestFailed)
        return True

    # --- Create and delete

    def push_blob(self, path: Path, digest: str, on_progress: OnProgress) -> None:
        """Upload a file to the daemon. Raises ModelInvalid if the file does not have this digest."""
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size

            def chunks() -> Iterator[bytes]:
                while chunk := _read(file, path):
                    yield chunk
                    on_progress(path.name, min(file.tell(), size), size)

            # A length instead of chunked coding: a proxy can forward the file without storing all of it.
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
        """Create a model from uploaded files: file name -> digest. Ollama 0.30 and newer rewrite a GGUF for it."""
        self._create(model, on_status, files=dict(files), parameters=dict(parameters or {}) or None)

    def create_alias(self, alias: str, base: str, parameters: Mapping[str, Any], license: str | None = None) -> None:
        """Create an alias of a model with parameters of its own; the weights are shared. Raises ModelNotFound.

        `license` is added to the licenses of the base: a text that stays with the alias and changes nothing else.
        """
        # Ollama would download a missing base, so the base is checked first.
        self._post("/api/show", {"model": base}, base)
        wishes = {"from_": base, "parameters": dict(parameters) or None, "license": license}
        self._create(alias, lambda status: None, NAME_SECONDS, **wishes)

    def delete(self, model: str) -> None:
        """Delete a name, and the files that no other name uses. A missing name is not an error."""
        with suppress(ModelNotFound), self._translated(RequestFailed, model), self._ollama(self._patience) as client:
            client.delete(model)

    def pull(
        self,
        model: str,
        on_progress: OnProgress,
        *,
        silence: float = SILENCE_SECONDS,
        stall: float = STALL_SECONDS,
    ) -> None:
        """Download a model. An exception, also KeyboardInterrupt, closes the connection, and Ollama stops the download.

        `on_progress` is called for each layer; `silence` and `stall` are in seconds.
        """
        layers, status, moved = Layers(), "", time.monotonic()

        def start(client: ollama.Client) -> Iterator[ollama.ProgressResponse]:
            return client.pull(model, stream=True)

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
        for name in layers.unfinished():  # Ollama reports every 60 ms, so the last bytes may go unreported
            _, total = layers[name]
            on_progress(name, total, total)

    # --- Load and unload

    async def load(self, model: str, *, timeout: float = 600.0) -> None:
        """Load a model and keep it loaded; `timeout` in seconds. To cancel it ends the load.

        A request with another `num_ctx` loads it again, so a context length is set in an alias (`create_alias`).
        """
        import asyncio

        import httpx

        body: dict[str, Any] = {"model": model, "keep_alive": -1, "stream": False}
        with self._translated(StartFailed, model):
            async with self._made(httpx.AsyncClient, timeout) as http:
                response = await http.post("/api/generate", json=body)
        # In a thread: for a better message `_document` may ask the daemon.
        await asyncio.to_thread(self._document, response, StartFailed, model)

    def unload(self, model: str) -> None:
        """Unload a model. A model that is not loaded, or does not exist, is not an error."""
        with suppress(ModelNotFound):
            self._post("/api/generate", {"model": model, "keep_alive": 0, "stream": False}, model)

    def wait_released(self, model: str, seconds: float) -> bool:
        """Wait until a model has left the memory, at most `seconds`. Return whether it has."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            with suppress(TimedOut):
                if not any(same_name(one.name, model) for one in self._running(min(left, self._patience))):
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    def _running(self, seconds: float) -> list[Running]:
        # Without the official client: its import takes a second, and `doctor` makes this call too.
        with self._translated(RequestFailed):
            return [documents.running(model) for model in self._get("/api/ps", seconds)["models"] or ()]

    def _create(self, model: str, on_status: OnStatus, silence: float = SILENCE_SECONDS, **wishes: Any) -> None:
        def start(client: ollama.Client) -> Iterator[ollama.ProgressResponse]:
            return client.create(model, stream=True, **wishes)

        status = ""
        with self._stream(start, silence, RequestFailed, model) as parts:
            for part in parts:
                status = part.status or ""
                if status.startswith("pulling"):
                    break
                on_status(status)
        if status.startswith("pulling"):  # the base was deleted a moment ago
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
        """Yield the lines of a long answer. The connection is closed whatever ends the block."""

        def lines() -> Generator[ollama.ProgressResponse, None, None]:
            with closing(cast("Generator[ollama.ProgressResponse, None, None]", start(client))) as parts:
                while True:
                    # Around each line only: an exception of the code that reads the lines is not Ollama's.
                    with self._translated(otherwise, model, layers.missing if layers else 0):
                        part = next(parts, None)
                    if part is None:
                        return
                    yield part

        with self._ollama(silence) as client, closing(lines()) as each:
            yield each


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(UPLOAD_CHUNK)
    except OSError as error:  # it must not be mistaken for an error of the connection
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelInvalid:
    return ModelInvalid(f"`{path}` cannot be read: {error.strerror}", f"check it: `ls -l {shlex.quote(str(path))}`")
