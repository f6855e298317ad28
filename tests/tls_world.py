"""Servers over TLS, with a self-signed certificate that clients trust only if configured to."""

from __future__ import annotations

import contextlib
import ssl
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""Self-signed certificate and key for `localhost` and 127.0.0.1, valid until 2126."""


def security() -> ssl.SSLContext:
    """Return the server's TLS context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@contextlib.contextmanager
def reverse_proxy(url: str, prefix: str) -> Iterator[str]:
    """Put a server behind TLS and a path prefix, as nginx would; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing to stderr."""

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.path.startswith(prefix + "/"):
                self.send_error(404, "another site of the proxy")
                return
            server = HTTPConnection(urlsplit(url).netloc, timeout=60)
            with contextlib.closing(server), contextlib.suppress(ConnectionError):
                server.request(self.command, self.path.removeprefix(prefix), body, dict(self.headers))
                self._pass_on(server)

        do_HEAD = do_POST = do_DELETE = do_GET

        def _pass_on(self, server: HTTPConnection) -> None:
            answer = server.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            while piece := answer.read1(65536):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
            if answer.chunked:
                self.wfile.write(b"0\r\n\r\n")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads, proxy.block_on_close = True, False
        # The handshake runs in the connection's thread: a silent client must not block the others.
        proxy.socket = security().wrap_socket(proxy.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"https://localhost:{proxy.server_address[1]}{prefix}"
        finally:
            proxy.shutdown()
            thread.join()
