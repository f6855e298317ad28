"""A Hugging Face Hub on loopback, small and true to its headers; with the ways a real one fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE_URL = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
LIST_URL = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/?]+))?")


@dataclass
class Hub:
    """What the server has and how it behaves; `requests` is what it was asked."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> file -> content, all at the revision `main`."""
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    token: str = "hf_good"
    """Opens private and gated repositories."""
    claimed_size: int | None = None
    """Announced instead of the true size."""
    cut_after: int | None = None
    """The first GET of a file ends after so many bytes; the next ones go through."""
    stall_after: int | None = None
    """Every GET of a file sends so many bytes and then nothing more."""
    silent: bool = False
    """Accepts and never answers."""
    status: int | None = None
    """Every answer has it."""
    headless: bool = False
    """Answers with the file and without the Hub's headers, as a captive portal does."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, Range."""
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when the server has stalled or fallen silent."""

    def asked(self, method: str, part: str) -> list[tuple[str, str, str | None]]:
        return [request for request in self.requests if request[0] == method and part in request[1]]


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The Hub, served by threads on a free port of 127.0.0.1."""

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()


def closed_port() -> int:
    """A port of 127.0.0.1 that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.state
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if hub.silent:
            self._stall()
        elif hub.status is not None:
            self._refuse(hub.status)
        elif match := FILE_URL.fullmatch(self.path):
            self._file(match["repo"], match["revision"], match["file"])
        elif match := LIST_URL.match(self.path):
            siblings = [{"rfilename": name} for name in hub.files.get(match["repo"], {})]
            self._send(200, json.dumps({"id": match["repo"], "sha": COMMIT, "siblings": siblings}).encode(), {})
        else:
            self._refuse(404)

    def _file(self, repo: str, revision: str, name: str) -> None:
        hub = self.state
        known = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if "Authorization" in self.headers and not known:
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif repo not in hub.files or (repo in hub.private and not known):
            self._refuse(404 if known else 401, "RepoNotFound")
        elif repo in hub.gated and not known:
            self._refuse(403, "GatedRepo")
        elif revision not in {"main", COMMIT}:
            self._refuse(404, "RevisionNotFound")
        elif name not in hub.files[repo]:
            self._refuse(404, "EntryNotFound")
        else:
            self._content(hub.files[repo][name])

    def _content(self, content: bytes) -> None:
        hub = self.state
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        headers["X-Linked-Size"] = str(hub.claimed_size or len(content))
        headers["X-Linked-ETag"] = f'"{etag}"'
        start = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if hub.headless:
            headers = {}
        self._send(206 if start else 200, content[start:], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        hub = self.state
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_file = "X-Repo-Commit" in headers
        if is_file and hub.cut_after is not None:
            body, hub.cut_after = body[: hub.cut_after], None
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            if is_file and hub.stall_after is not None:
                # Once for all: a retry gets nothing, so the client cannot count it as progress.
                part, hub.stall_after = body[: hub.stall_after], 0
                self.wfile.write(part)
                self.wfile.flush()
                self._stall()
            else:
                self.wfile.write(body)

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _stall(self) -> None:
        self.state.reached.set()
        self.close_connection = True
        self.state.closing.wait(60)
