"""Ollama's registry on loopback, with manifests, and blobs served by a CDN like the real one's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.tls_world import security

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
IMAGE = "application/vnd.ollama.image."
PIECE = 65536
CONFIG = {"model_format": "gguf", "model_family": "qwen2vl", "architecture": "amd64", "os": "linux"}


@dataclass
class Registry:
    """Content and behaviour of the registry; `requests` lists method, path, Range and Accept of each request."""

    manifests: dict[str, bytes] = field(default_factory=dict)
    """Manifests by `namespace/model:tag`."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Blobs by digest."""
    status: int | None = None
    """Status of every answer."""
    ignores_range: bool = False
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    url: str = ""
    sent: int = 0
    """Bytes of blobs that were requested."""
    written: int = 0
    """Bytes of all answers that clients read, as far as the system's buffers show."""

    def put(self, content: bytes) -> tuple[str, int]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return digest, len(content)

    def add(self, name: str, **layers: bytes | Path) -> list[tuple[str, int]]:
        """Add a model from layers by kind; return digest and size of each, configuration first."""
        contents = [layer.read_bytes() if isinstance(layer, Path) else layer for layer in layers.values()]
        made = [self.put(content) for content in (json.dumps(CONFIG).encode(), *contents)]
        types = ("application/vnd.docker.container.image.v1+json", *(IMAGE + kind for kind in layers))
        config, *others = (
            {"mediaType": kind, "digest": digest, "size": size}
            for kind, (digest, size) in zip(types, made, strict=True)
        )
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": others}
        self.manifests[name] = json.dumps(manifest).encode()
        return made


@contextlib.contextmanager
def serve(registry: Registry, *, tls: bool = False) -> Iterator[Registry]:
    class Handler(_Handler):
        state = registry

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        if tls:
            server.socket = security().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        registry.url = f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}"
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to stderr."""

    def do_GET(self) -> None:
        it = self.state
        it.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Accept")))
        if it.status is not None:
            self._send(it.status, b"upstream sad")
        elif match := re.fullmatch(r"/v2/([^/]+/[^/]+)/manifests/([^/]+)", self.path):
            self._manifest(f"{match[1]}:{match[2]}")
        elif (match := re.fullmatch(r"/v2/[^/]+/[^/]+/blobs/(sha256:\w+)", self.path)) and match[1] in it.blobs:
            self._send(307, b"", {"Location": f"{it.url}/cdn/{match[1]}?X-Amz-Signature=1"})
        elif match := re.fullmatch(r"/cdn/(sha256:\w+)\?.*", self.path):
            self._blob(it.blobs[match[1]])
        else:
            self._send(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')

    def _manifest(self, name: str) -> None:
        content = self.state.manifests.get(name)
        if content is None or self.headers.get("Accept") != MANIFEST:
            self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        else:
            self._send(200, content, {"Content-Type": MANIFEST})

    def _blob(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or self.state.ignores_range:
            self.state.sent += len(content)
            self._send(200, content)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        self.state.sent += stop - start
        self._send(206, content[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(body), PIECE):
                self.wfile.write(body[at : at + PIECE])
                self.state.written += PIECE
