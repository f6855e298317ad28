"""Recorded Ollama on loopback, which repeats a real one's answers byte for byte; and servers that are not Ollama.

`tests/recordings/ollama` has exchanges with Ollama 0.33.0-rc2. A request gets the first unused recorded answer to the
same method, path and body, or else the last one again. A request without a recording gets status 599 and is listed in
`unknown`.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDINGS = Path(__file__).with_name("recordings") / "ollama"
FIELDS_OF_THE_RECORDER = {"insecure"}
"""Fields to ignore: the registry of the recordings used plain HTTP."""


@dataclass
class Replay:
    """Recorded answers, and the requests that the server got."""

    exchanges: list[dict[str, Any]]
    slower: float
    """Factor for the recorded delays: 1 is as slow as the real one, 0 is immediate."""
    cut_after: int | None = None
    """Number of chunks after which the connection ends."""
    hold_after: int | None = None
    """Number of chunks after which a streamed answer stalls."""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of each request, with lower-case names."""
    unknown: list[tuple[str, str, Any]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Event that is set when a client disconnects in the middle of an answer."""
    holding: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    _given: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any] | None:
        with self._lock:
            self.requests.append((method, path, body))
            same = [number for number, one in enumerate(self.exchanges) if _matches(one["request"], method, path, body)]
            number = next((one for one in same if one not in self._given), same[-1] if same else None)
            if number is None and _is_proof(path, body):
                return PROOF
            if number is None:
                self.unknown.append((method, path, body))
                return None
            self._given.add(number)
            response: dict[str, Any] = self.exchanges[number]["response"]
            return response

    def asked(self, path: str) -> list[Any]:
        """List the bodies of the requests to this path."""
        return [body for _, one, body in self.requests if one == path]


PROOF = {
    "status": 200,
    "headers": {"content-type": "application/json"},
    "chunks": [[0, '{"choices":[{"message":{"role":"assistant","content":"Hi"},"finish_reason":"length"}]}']],
}
"""Answer to the question that a start ends with."""


def _is_proof(path: str, body: Any) -> bool:
    return path == "/v1/chat/completions" and isinstance(body, dict) and body.get("max_tokens") == 1


def _matches(recorded: dict[str, Any], method: str, path: str, body: Any) -> bool:
    if (recorded["method"], recorded["path"]) != (method, path):
        return False
    wanted = recorded["body"]
    if isinstance(wanted, dict) and isinstance(body, dict):
        return _plain(wanted) == _plain(body)
    if isinstance(wanted, str) and isinstance(body, bytes):
        return wanted == f"<{len(body)} bytes>"
    return wanted is None and body is None


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """Remove what makes no difference from a body: `stream` is true by default."""
    return {"stream": True} | {name: value for name, value in body.items() if name not in FIELDS_OF_THE_RECORDER}


def exchanges(*recordings: str) -> list[dict[str, Any]]:
    return [one for name in recordings for one in json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))]


@contextlib.contextmanager
def replay(*recordings: str, slower: float = 0.0, **behaviour: Any) -> Iterator[Replay]:
    """Serve the recordings in threads on a free port of 127.0.0.1."""
    state = Replay(exchanges(*recordings), slower, **behaviour)

    class Handler(_Handler):
        replay = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield state
        finally:
            state.closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    replay: Replay
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to stderr."""

    def do_GET(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.replay.headers.append({name.lower(): value for name, value in self.headers.items()})
        response = self.replay.answer(self.command, self.path, _body(raw))
        if response is None:
            response = {"status": 599, "headers": {}, "chunks": [[0, '{"error":"never recorded"}']]}
        try:
            self._send(response)
        except ConnectionError:  # the client closed the connection before reading everything
            self.replay.hung_up.set()

    do_HEAD = do_POST = do_DELETE = do_GET

    def _send(self, response: dict[str, Any]) -> None:
        chunks = [(delay, text.encode()) for delay, text in response["chunks"]]
        streamed = response["headers"].get("transfer-encoding") == "chunked"
        self.send_response_only(response["status"])
        for name, value in response["headers"].items():
            self.send_header(name, value)
        if not streamed:
            self.send_header("Content-Length", str(sum(len(text) for _, text in chunks)))
        self.end_headers()
        began = time.monotonic()
        for number, (delay, text) in enumerate(chunks):
            if number == self.replay.cut_after:
                self.close_connection = True
                return
            until = began + delay * self.replay.slower
            if number == self.replay.hold_after:
                self.replay.holding.set()
                until = began + 60
            if self._gone(until):
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text) if streamed else text)
        if streamed:
            self.wfile.write(b"0\r\n\r\n")

    def _gone(self, until: float) -> bool:
        """Wait, and return whether the client closed its connection meanwhile."""
        while True:
            readable, _, _ = select.select([self.connection], [], [], max(0.0, min(until - time.monotonic(), 0.05)))
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                self.replay.hung_up.set()
                self.close_connection = True
                return True
            if self.replay.closing.is_set() or time.monotonic() >= until:
                return self.replay.closing.is_set()


def _body(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return raw


# --- Servers that are not Ollama, or not ready

HTML = b"<!doctype html><html><head><title>Grafana</title></head><body>hello</body></html>"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.6\r\n"
"""Greeting of an SSH server, which does not speak HTTP."""


def http_answer(content_type: str, body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def closed_port() -> int:
    """Return a port of 127.0.0.1 that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def port(answer: bytes | None) -> Iterator[str]:
    """Run a server that sends these bytes to everyone; None: it accepts and never answers."""
    closing = threading.Event()
    open_connections: list[socket.socket] = []

    def serve(server: socket.socket) -> None:
        while not closing.is_set():
            if not select.select([server], [], [], 0.02)[0]:
                continue
            connection, _ = server.accept()
            open_connections.append(connection)
            if answer is not None:
                with contextlib.suppress(OSError):
                    connection.settimeout(1)
                    if answer.startswith(b"HTTP"):
                        connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            closing.set()
            thread.join()
            for connection in open_connections:
                connection.close()
