"""A Hugging Face Hub on loopback with the headers of the real one, its CDN, and their failures."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.blobs import PIECE, Content, blob, in_lfs, pieces, size_of, wanted

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = r"(?P<repo>[^/]+/[^/]+)"
FILE_URL = re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API_URL = re.compile(
    rf"/api/models/{REPO}(?:/(?P<what>revision|tree|refs|xet-read-token)(?:/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?)?"
)
EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
TWO_WAYS = b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"


class Xet(Protocol):
    """The interface of the Xet storage in `tests.xet_server`."""

    url: str

    def file_id(self, content: Content) -> str:
        """Return the hash of a content; store the content if it is missing."""
        ...

    def token(self) -> tuple[str, int]:
        """Return a token for reading, and its expiry in seconds since 1970."""
        ...


@dataclass
class Refusal:
    """An answer for the next requests whose path contains `part`; later ones succeed."""

    status: int
    times: int = 1
    part: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Signed:
    """The content behind an address of the CDN, and how often it still opens (None: always)."""

    name: str
    content: Content
    uses: int | None


@dataclass
class Hub:
    """The contents and the behaviour of the server; `requests` records what it received."""

    files: dict[str, dict[str, Content]] = field(default_factory=dict)
    """Repository -> file -> content, at COMMIT, which is `main` until the first further commit."""
    commits: dict[str, dict[str, dict[str, Content]]] = field(default_factory=dict)
    """Repository -> another commit -> file -> content; see `commit`."""
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Repository -> branch, or tag as `refs/tags/NAME` -> commit."""
    gated: set[str] = field(default_factory=set)
    parameters: dict[str, int] = field(default_factory=dict)
    """The number of parameters that is reported of a repository."""
    private: set[str] = field(default_factory=set)
    token: str = "hf_good"
    """Token that opens private and gated repositories."""
    stranger: str = "hf_stranger"
    """Token of an account that may read neither."""
    page: int = 1000
    """Entries per page of a tree."""
    xet: Xet | None = None
    """Xet storage that has the LFS objects too."""

    claimed_size: int | None = None
    """Size in bytes that is announced for LFS objects instead of the true one."""
    wrong: set[str] = field(default_factory=set)
    """Files that are sent with the byte in the middle changed."""
    cut_after: int | None = None
    """Bytes after which the first GET of a file ends; the next ones succeed."""
    stall_after: int | None = None
    """Bytes after which every GET of a file stalls."""
    failing: str = ""
    """Part of the names of the files that are cut or stall."""
    rate: int | None = None
    """Bytes per second of each answer with a file."""
    ignores_range: bool = False
    """Whether the CDN sends the whole file with status 200."""
    signature_uses: int | None = None
    """Number of times that an address of the CDN opens before it expires."""
    refusals: list[Refusal] = field(default_factory=list)
    silent: bool = False
    """Whether the server accepts connections and never answers."""
    status: int | None = None
    """Status of every answer."""
    headless: bool = False
    """Whether answers lack the Hub's headers, as those of a captive portal."""

    claimed_commit: object = None
    """Commit that is announced instead of the true one."""
    forged: dict[str, object] = field(default_factory=dict)
    """Fields of each entry of a tree; those of an LFS object by their names after `lfs.`."""
    forged_page: bytes = b""
    """Body of each page of a tree."""
    next_page: str = ""
    """Address of the page after each page of a tree."""

    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of each request, with those to the CDN, whose paths begin with /cdn/."""
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    """Answers with a file: `owner/repo/file`, first byte sent, and end of the bytes sent."""
    leaked: list[str] = field(default_factory=list)
    """Paths at the CDN that were requested with the user's token, which must not happen."""
    url: str = ""
    cdn: str = ""
    signed: dict[str, Signed] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    """Event that is set when the server has stalled or does not answer."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, method: str, part: str) -> list[tuple[str, str, str | None]]:
        return [request for request in self.requests if request[0] == method and part in request[1]]

    def sent_bytes(self, part: str = "") -> int:
        """Return the bytes sent of the files whose names contain `part`."""
        return sum(stop - start for name, start, stop in self.sent if part in name)

    def sent_twice(self, part: str = "") -> int:
        """Return the bytes of them that were sent again, each repetition counted."""
        once = 0
        for name in {name for name, _, _ in self.sent if part in name}:
            end = 0
            for start, stop in sorted((start, stop) for sent, start, stop in self.sent if sent == name):
                once += max(0, stop - max(start, end))
                end = max(end, stop)
        return self.sent_bytes(part) - once

    def commit(self, repo: str, files: dict[str, Content], ref: str = "main") -> str:
        """Add a commit with exactly these files, and move the branch or tag to it."""
        made = hashlib.sha1(f"{repo} {len(self.commits.get(repo, {}))}".encode()).hexdigest()
        self.commits.setdefault(repo, {})[made] = files
        self.refs.setdefault(repo, {})[ref] = made
        return made

    def commit_of(self, repo: str, revision: str) -> str | None:
        known = {"main": COMMIT, **self.refs.get(repo, {})}
        commit = known.get(revision) or known.get(f"refs/tags/{revision}") or revision
        return commit if commit == COMMIT or commit in self.commits.get(repo, {}) else None

    def tree(self, repo: str, commit: str) -> dict[str, Content]:
        return self.files[repo] if commit == COMMIT else self.commits[repo][commit]

    def refusal(self, path: str) -> Refusal | None:
        with self.lock:
            due = next((it for it in self.refusals if it.times and it.part in path), None)
            if due:
                due.times -= 1
        return due

    def sign(self, repo: str, name: str, content: Content) -> str:
        """Return an address of the CDN that opens the content for a while."""
        signature, sha256 = secrets.token_hex(8), blob(content).sha256
        self.signed[signature] = Signed(f"{repo}/{name}", content, self.signature_uses)
        shown = quote(f'inline; filename="{name.rpartition("/")[2]}";', safe="")
        query = f"response-content-disposition={shown}&Expires={int(time.time()) + 3600}&Signature={signature}"
        return f"{self.cdn}/cdn/{sha256[:2]}/{sha256}?{query}"

    def open_signed(self, query: str) -> Signed | None:
        with self.lock:
            signed = self.signed.get(parse_qs(query).get("Signature", [""])[0])
            if signed is None or signed.uses == 0:
                return None
            if signed.uses is not None:
                signed.uses -= 1
        return signed


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve the Hub and its CDN by threads on free ports of 127.0.0.1."""

    class HubHandler(_HubHandler):
        state = hub

    class CdnHandler(_CdnHandler):
        state = hub

    with listening(CdnHandler) as hub.cdn, listening(HubHandler) as hub.url:
        try:
            yield hub
        finally:
            hub.closing.set()


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Start a server with a thread for each connection; yield its address."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that are gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def closed_port() -> int:
    """Return a port of 127.0.0.1 that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.state
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if hub.silent:
            self._stall()
        elif hub.status is not None:
            self._refuse(hub.status)
        elif refusal := hub.refusal(self.path):
            self._refuse(refusal.status, headers=refusal.headers)
        else:
            self._answer()

    def _answer(self) -> None:
        raise NotImplementedError

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        body = json.dumps({"error": message or code}).encode()
        self._send(status, {name: value for name, value in named.items() if value}, body)

    def _send_file(self, name: str, content: Content, headers: dict[str, str], *, ranges: bool = True) -> None:
        """Send the file `owner/repo/path`, or the requested range of it."""
        size = size_of(content)
        asked = self.headers.get("Range") if ranges else None
        extent = wanted(asked, size)
        if extent is None:
            self._send(416, {"Content-Range": f"bytes */{size}"})
            return
        start, stop = extent
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(206 if asked else 200, headers)
        if self.command != "HEAD":
            self._pour(name, content, start, stop)

    def _pour(self, name: str, content: Content, start: int, stop: int) -> None:
        """Send the bytes, up to the failure that is set."""
        hub, end, stalls = self.state, stop, False
        if hub.failing in name and hub.cut_after is not None:
            end, hub.cut_after = min(stop, start + hub.cut_after), None
            self.close_connection = True
        elif hub.failing in name and hub.stall_after is not None:
            # Once for all: a retry gets nothing, so the client cannot count it as progress.
            end, hub.stall_after, stalls = min(stop, start + hub.stall_after), 0, True
        sent = start
        try:
            if isinstance(content, Path) and not hub.rate and not hub.wrong:
                with content.open("rb") as file:
                    while sent < end:
                        sent += self.connection.sendfile(file, sent, min(16 * PIECE, end - sent))
            for piece in pieces(content, sent, end):
                self.wfile.write(self._changed(name, piece, sent, size_of(content)))
                sent += len(piece)
                if hub.rate:
                    hub.closing.wait(len(piece) / hub.rate)
        finally:
            hub.sent.append((name, start, sent))
        if stalls:
            self._stall()

    def _changed(self, name: str, piece: bytes | memoryview, start: int, size: int) -> bytes | memoryview:
        at = size // 2 - start
        if name.split("/", 2)[2] not in self.state.wrong or not 0 <= at < len(piece):
            return piece
        return bytes(piece[:at]) + bytes([piece[at] ^ 0xFF]) + bytes(piece[at + 1 :])

    def _stall(self) -> None:
        self.state.reached.set()
        self.close_connection = True
        self.state.closing.wait(60)


class _CdnHandler(Handler):
    def _answer(self) -> None:
        hub = self.state
        if "Authorization" in self.headers:
            hub.leaked.append(self.path)
            self._send(400, {"Content-Type": "application/xml"}, TWO_WAYS)
        elif signed := hub.open_signed(urlsplit(self.path).query):
            etag = f'"{blob(signed.content).sha256[:32]}-1"'  # of the parts it was uploaded in: no hash of the content
            headers = {"ETag": etag, "Content-Type": "binary/octet-stream"}
            self._send_file(signed.name, signed.content, headers, ranges=not hub.ignores_range)
        else:
            self._send(403, {"Content-Type": "application/xml"}, EXPIRED)


class _HubHandler(Handler):
    def _answer(self) -> None:
        path = urlsplit(self.path).path
        if match := FILE_URL.fullmatch(path):
            self._resolve(match["repo"], unquote(match["revision"]), unquote(match["file"]))
        elif match := API_URL.fullmatch(path):
            self._api(match["repo"], match["what"] or "", unquote(match["revision"] or "main"), match["path"] or "")
        else:
            self._refuse(404)

    # --- What one may see

    def _admits(self, repo: str, *, content: bool) -> bool:
        """Return whether the client may see the repository, or its files; refuse otherwise."""
        hub, asked = self.state, self.headers.get("Authorization")
        owner, anyone = asked == f"Bearer {hub.token}", asked in {f"Bearer {hub.token}", f"Bearer {hub.stranger}"}
        if asked and not anyone:
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif repo not in hub.files or (repo in hub.private and not owner):
            self._refuse(404 if asked else 401, "RepoNotFound", "Repository not found")
        elif content and repo in hub.gated and not owner:
            self._refuse(403 if asked else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        else:
            return True
        return False

    # --- Files

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        hub = self.state
        if not self._admits(repo, content=True):
            return
        if (commit := hub.commit_of(repo, revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif (content := hub.tree(repo, commit).get(name)) is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        elif hub.headless:
            self._send_file(f"{repo}/{name}", content, {})
        elif in_lfs(name, content):
            self._send(302, self._lfs_headers(repo, commit, name, content))
        else:
            self._git_blob(repo, commit, name, content)

    def _lfs_headers(self, repo: str, commit: str, name: str, content: Content) -> dict[str, str]:
        hub, held = self.state, blob(content)
        headers = {
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "X-Linked-Size": str(hub.claimed_size or held.size),
            "X-Linked-ETag": f'"{held.sha256}"',
            "Location": hub.sign(repo, name, content),
        }
        if hub.xet:
            file_id = hub.xet.file_id(content)
            token = f'<{hub.url}/api/models/{repo}/xet-read-token/{commit}>; rel="xet-auth"'
            info = f'<{hub.xet.url}/v1/reconstructions/{file_id}>; rel="xet-reconstruction-info"'
            headers |= {"X-Xet-Hash": file_id, "Link": f"{token}, {info}"}
        return headers

    def _git_blob(self, repo: str, commit: str, name: str, content: Content) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob(content).oid}"', "Content-Type": "text/plain"}
        packed = "gzip" in self.headers.get("Accept-Encoding", "") and name.endswith((".json", ".txt", ".md"))
        if self.command == "HEAD" or not packed or not isinstance(content, bytes):
            self._send_file(f"{repo}/{name}", content, headers)
            return
        # As the real one: packed on the way, so that neither the length nor a range is known.
        body = gzip.compress(content)
        self._head(200, {**headers, "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        self.state.sent.append((f"{repo}/{name}", 0, len(content)))

    # --- What the Hub says of a repository

    def _api(self, repo: str, what: str, revision: str, path: str) -> None:
        hub = self.state
        if not self._admits(repo, content=what == "xet-read-token"):
            return
        if (commit := hub.commit_of(repo, revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "tree":
            self._send_tree(repo, commit, unquote(path))
        elif what == "refs":
            self._json(self._refs(repo))
        elif what == "xet-read-token":
            self._xet_token()
        else:
            self._json(self._model(repo, commit))

    def _json(self, document: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(document).encode())

    def _query(self, name: str, default: str = "") -> str:
        return parse_qs(urlsplit(self.path).query).get(name, [default])[0]

    def _model(self, repo: str, commit: str) -> dict[str, object]:
        hub = self.state
        files, blobs = hub.tree(repo, commit), self._query("blobs").lower() in {"true", "1"}
        siblings = [self._sibling(name, files[name], blobs=blobs) for name in sorted(files)]
        gated = "auto" if repo in hub.gated else False
        sha = commit if hub.claimed_commit is None else hub.claimed_commit
        known: dict[str, object] = {
            "id": repo,
            "modelId": repo,
            "sha": sha,
            "private": repo in hub.private,
            "gated": gated,
        }
        if repo in hub.parameters:
            known["safetensors"] = {"parameters": {"BF16": hub.parameters[repo]}, "total": hub.parameters[repo]}
        return {**known, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}

    def _sibling(self, name: str, content: Content, *, blobs: bool) -> dict[str, object]:
        if not blobs:
            return {"rfilename": name}
        held, entry = blob(content), self._entry(name, content)
        sibling = {"rfilename": name, "size": entry["size"], "blobId": entry["oid"]}
        if in_lfs(name, content):
            sibling["lfs"] = {"sha256": held.sha256, "size": entry["size"], "pointerSize": len(held.pointer)}
        return sibling

    def _entry(self, name: str, content: Content) -> dict[str, object]:
        held = blob(content)
        if not in_lfs(name, content):
            return {"type": "file", "oid": held.oid, "size": held.size, "path": name}
        size = self.state.claimed_size or held.size
        entry: dict[str, object] = {"type": "file", "oid": held.pointer_oid, "size": size, "path": name}
        entry["lfs"] = {"oid": held.sha256, "size": size, "pointerSize": len(held.pointer)}
        if self.state.xet:
            entry["xetHash"] = self.state.xet.file_id(content)
        return entry

    def _forged(self, entry: dict[str, object]) -> dict[str, object]:
        """Return an entry of a tree as a hostile mirror changes it."""
        forged = self.state.forged
        top = {name: value for name, value in forged.items() if not name.startswith("lfs.")}
        lfs = {name.removeprefix("lfs."): value for name, value in forged.items() if name.startswith("lfs.")}
        return {**entry, **top, **({"lfs": {**entry["lfs"], **lfs}} if lfs else {})}  # type: ignore[dict-item]

    def _send_tree(self, repo: str, commit: str, folder: str) -> None:
        """Send a page of the folder's entries, with the address of the next page in the `Link` header."""
        files, below = self.state.tree(repo, commit), f"{folder}/" if folder else ""
        entries = {name: self._entry(name, content) for name, content in files.items() if name.startswith(below)}
        for name in list(entries):
            for at in (at for at, letter in enumerate(name) if letter == "/" and at >= len(below)):
                path, oid = name[:at], hashlib.sha1(name[:at].encode()).hexdigest()
                entries[path] = {"type": "directory", "oid": oid, "size": 0, "path": path}
        if not entries:
            self._refuse(404, "EntryNotFound", f"{folder} does not exist on {commit}")
            return
        if self._query("recursive").lower() not in {"true", "1"}:
            entries = {path: entry for path, entry in entries.items() if "/" not in path[len(below) :]}
        start, names = int(self._query("cursor", "0")), sorted(entries)
        stop = start + self.state.page
        query = f"recursive={self._query('recursive', 'false')}&cursor={stop}"
        after = f'<{self.state.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        if self.state.next_page or self.state.forged_page:
            shown = self.state.forged_page or b"[]"
            self._send(200, {"Link": f'<{self.state.next_page}>; rel="next"'} if self.state.next_page else {}, shown)
            return
        page = [self._forged(entries[name]) for name in names[start:stop]]
        self._json(page, {"Link": after} if stop < len(names) else {})

    def _refs(self, repo: str) -> dict[str, object]:
        refs = {"main": COMMIT, **self.state.refs.get(repo, {})}
        tags = {name.removeprefix("refs/tags/"): commit for name, commit in refs.items() if "refs/tags/" in name}
        branches = {name: commit for name, commit in refs.items() if not name.startswith("refs/")}
        return {
            "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in branches.items()],
            "tags": [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": c} for name, c in tags.items()],
            "converts": [],
        }

    def _xet_token(self) -> None:
        if not (xet := self.state.xet):
            self._refuse(404)
            return
        token, expires = xet.token()
        headers = {"X-Xet-Cas-Url": xet.url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        self._json({"casUrl": xet.url, "accessToken": token, "exp": expires}, headers)
