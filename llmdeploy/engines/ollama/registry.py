"""Requests to Ollama's registry without Ollama: the manifest of a model, its size, and the header of its weights.

The daemon may reach the registry by another network and with a key of its own, so a model that cannot be read here may
still be available to it. The protocol is that of container registries: a manifest lists layers, and the address of a
layer redirects to a CDN.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from llmdeploy import bounded_file
from llmdeploy.engines.ollama.connection import Connection
from llmdeploy.engines.ollama.imports import MANIFEST
from llmdeploy.errors import DownloadFailed, EngineMissing, ModelInvalid
from llmdeploy.models import facts as model_facts
from llmdeploy.models import gguf_header, remote_file
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.listing_check import LARGEST_BYTES
from llmdeploy.models.stores.ollama import LAYER, parts

SECONDS = 10.0
"""Seconds for each answer."""
LARGEST_MANIFEST = 4 * 1024**2
HINT = "Ollama asks it by itself; check the network"


@dataclass(frozen=True)
class Layer:
    """One file of a model."""

    kind: str
    """The kind of file, such as `model`, `projector` or `template`; other registries use other names."""
    digest: str
    """SHA-256: 64 hexadecimal digits."""
    size: int
    """The size in bytes."""


@dataclass(frozen=True)
class Manifest:
    """The list of the files of a model."""

    name: str
    """The name of the model, as it was requested."""
    digest: str
    """The SHA-256 of the manifest, which Ollama shows as the digest of the model."""
    layers: tuple[Layer, ...]
    """All layers, the configuration included."""

    @property
    def size(self) -> int:
        """The size of all layers in bytes, which Ollama shows as the size of the model."""
        return sum(layer.size for layer in self.layers)

    def layer(self, kind: str) -> Layer | None:
        """Return the first layer of a kind."""
        return next((layer for layer in self.layers if layer.kind == kind), None)


class Registry(Connection):
    """The registry of one model. Every failure is a DownloadFailed."""

    def __init__(self, name: str, *, scheme: str = "https") -> None:
        """`name`: `[host/][namespace/]model[:tag]`."""
        host, self._model, self._tag = parts(name)
        self._name = name
        super().__init__(f"{scheme}://{host}", patience=SECONDS)

    def manifest(self) -> Manifest:
        """Fetch the manifest of the model."""
        with self._streamed(f"/v2/{self._model}/manifests/{self._tag}", {"Accept": MANIFEST}) as response:
            if response.status_code != 200:
                raise self._refused(f"it answers with status {response.status_code}")
            content = _read(response, LARGEST_MANIFEST)
        return Manifest(self._name, hashlib.sha256(content).hexdigest(), self._layers(content))

    def open(self, layer: Layer) -> BinaryIO:
        """Open the file of a layer. It can seek, and only the parts that are read are downloaded."""

        def get(start: int, end: int) -> bytes:
            # The range would refer to the compressed bytes otherwise.
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            with self._streamed(f"/v2/{self._model}/blobs/sha256:{layer.digest}", headers) as response:
                if response.status_code != 206 and not (response.status_code == 200 and end - start == layer.size):
                    raise self._refused(f"it answers with status {response.status_code} where a range was asked for")
                return _read(response, end - start)

        return remote_file.opened(get, layer.size, self._name)

    def facts(self, manifest: Manifest) -> ModelFacts:
        """Return the facts in the weights' header; `weights_bytes` is the size of all files, as the daemon shows it."""
        layer = manifest.layer("model")
        if layer is None:
            raise self._refused(f"`{self._name}` is not a GGUF file there")
        try:
            with self.open(layer) as file:
                header = gguf_header.read_remote(self._name, file)
            found = model_facts.of_headers([header], None, f"header of `{self._name}` at {self._host}")
        except ModelInvalid as error:  # Ollama has formats of its own, which it can read nevertheless
            raise DownloadFailed(error.message, error.hint) from error
        sees = manifest.layer("projector") or f"{found.architecture}.vision.block_count" in header.fields
        capabilities = [*found.capabilities, *(["image"] if sees else [])]
        return replace(found, weights_bytes=manifest.size, capabilities=tuple(capabilities))

    @contextmanager
    def _streamed(self, path: str, headers: dict[str, str]) -> Iterator[Any]:
        import httpx

        try:
            with (
                self._http(self._patience) as http,
                http.stream("GET", path, headers=headers, follow_redirects=True) as response,
            ):
                yield response
        except (httpx.HTTPError, OSError) as error:
            raise self._refused(str(error) or type(error).__name__) from error
        except EngineMissing as error:  # the environment names a proxy that cannot be used
            raise DownloadFailed(error.message, error.hint) from error

    def _layers(self, content: bytes) -> tuple[Layer, ...]:
        try:
            document = bounded_file.json_value(content)
            return tuple(_layer(layer) for layer in [document["config"], *document["layers"]])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._refused("what answers does not speak as a registry does") from None

    def _refused(self, why: str) -> DownloadFailed:
        return DownloadFailed(f"`{self._host}` does not tell of `{self._name}`: {why}", HINT)

    @property
    def _host(self) -> str:
        return urlsplit(self.url).netloc


def _layer(document: dict[str, Any]) -> Layer:
    """Return a layer of a manifest. Raises ValueError, TypeError or KeyError for anything else."""
    match = re.fullmatch(r"sha256:([0-9a-f]{64})", document["digest"])
    size = document["size"]
    if match is None or type(size) is not int or not 0 <= size <= LARGEST_BYTES:
        raise ValueError
    return Layer(str(document["mediaType"]).removeprefix(LAYER), match[1], size)


def _read(response: Any, most: int) -> bytes:
    """Return at most that many bytes of the answer, whatever the server sends."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) >= most:
            break
    return bytes(content[:most])
