"""A Xet storage (CAS) on loopback for the Hub of `tests.hub_server`.

What it holds was uploaded to it by the real hf_xet, so chunks, compression, xorbs and hashes are that client's own; the
formats are those of https://huggingface.co/docs/xet.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from urllib.parse import parse_qs, quote, urlsplit

from tests.blobs import Content, blob, in_lfs, size_of, wanted
from tests.hub_server import EXPIRED, Handler, Hub, Signed, listening

UPLOAD = """
import sys, hf_xet

session = hf_xet.XetSession()
for path in sys.argv[2:]:
    commit = session.new_upload_commit(endpoint=sys.argv[1])
    file = commit.start_upload_file(path, sha256=hf_xet.SKIP_SHA256)
    commit.wait_to_finish()
    print(file.result().xet_info.hash)
"""
ENTRY = Struct("<32sIIII")
"""Entry of a shard. A file: hash, flags, number of terms, 0, 0. A term: xorb, flags, bytes, first chunk, end chunk."""
SHARD_HEADER, LAST = 48, b"\xff" * 32
WITH_CHECKS, WITH_METADATA = 1 << 31, 1 << 30
CHUNK_HEADER, XORB_FOOTER = 8, b"XETBLOB"


@dataclass(frozen=True)
class Term:
    """A part of a file: these chunks of a xorb, one after the other."""

    xorb: str
    first: int
    end: int


@dataclass(frozen=True)
class Xorb:
    packed: tuple[int, ...]
    """Offsets at which the packed chunks begin, and at which the last one ends."""
    sizes: tuple[int, ...]
    """Size of each unpacked chunk, in bytes."""


@dataclass
class Cas:
    """The contents and the behaviour of the storage; the Hub's fields for files apply too."""

    hub: Hub
    folder: Path
    url: str = ""
    files: dict[str, list[Term]] = field(default_factory=dict)
    """File id -> terms."""
    xorbs: dict[str, Xorb] = field(default_factory=dict)
    """Xorbs, whose bytes are in the folder; the Hub's `sent` names them `xet/xorbs/HASH`."""
    ids: dict[str, str] = field(default_factory=dict)
    """SHA-256 of a content -> its file id."""
    token_s: int = 3600
    """Seconds until a token expires."""
    tokens: dict[str, int] = field(default_factory=dict)
    storing: threading.Lock = field(default_factory=threading.Lock)

    def token(self) -> tuple[str, int]:
        token, expires = f"xet_{secrets.token_hex(8)}", int(time.time()) + self.token_s
        self.tokens[token] = expires
        return token, expires

    def file_id(self, content: Content) -> str:
        with self.storing:
            if blob(content).sha256 not in self.ids:
                self.store([content, *_lfs_objects(self.hub)])
        return self.ids[blob(content).sha256]

    def store(self, contents: Iterable[Content]) -> None:
        """Have hf_xet upload those that are not here, one after the other, in a process and with caches of its own.

        What went before is not stored again: a file is of several xorbs when its parts went before it.
        """
        new = {blob(content).sha256: content for content in contents if blob(content).sha256 not in self.ids}
        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            paths = [_on_disk(content, Path(home) / sha256) for sha256, content in new.items()]
            environment = {**os.environ, "HF_HOME": home, "NO_PROXY": "*"}
            command = [sys.executable, "-c", UPLOAD, self.url, *map(str, paths)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.ids |= dict(zip(new, done.stdout.split(), strict=True))

    def take_xorb(self, name: str, body: bytes) -> None:
        """Store an uploaded xorb: packed chunks, each with its header, and perhaps a footer."""
        packed, sizes = [0], []
        while packed[-1] < len(body) and not body.startswith(XORB_FOOTER, packed[-1]):
            at = packed[-1]
            sizes.append(int.from_bytes(body[at + 5 : at + 8], "little"))
            packed.append(at + CHUNK_HEADER + int.from_bytes(body[at + 1 : at + 4], "little"))
        (self.folder / name).write_bytes(body)
        self.xorbs[name] = Xorb(tuple(packed), tuple(sizes))

    def take_shard(self, body: bytes) -> None:
        """Read the terms of the files in an uploaded shard."""
        at = SHARD_HEADER
        while body[at : at + 32] != LAST:
            name, flags, count, _, _ = ENTRY.unpack_from(body, at)
            terms = [ENTRY.unpack_from(body, at + ENTRY.size * (1 + index)) for index in range(count)]
            self.files[_text(name)] = [Term(_text(xorb), first, end) for xorb, _, _, first, end in terms]
            follow = count * (2 if flags & WITH_CHECKS else 1) + bool(flags & WITH_METADATA)
            at += ENTRY.size * (1 + follow)

    def reconstruction(self, file_id: str, asked: str | None) -> dict[str, object] | None:
        """Return the chunks of a range of the file, and their addresses; None if the range is outside the file."""
        terms = self.files[file_id]
        size = sum(sum(self.xorbs[term.xorb].sizes[term.first : term.end]) for term in terms)
        if (extent := wanted(asked, size)) is None:
            return None
        chunks = list(self._chunks(terms, *extent))
        indices = [(xorb, index) for xorb, index, _ in chunks]
        xorbs: dict[str, list[dict[str, object]]] = {}
        for term in _joined(sorted(set(indices))):
            xorbs.setdefault(term.xorb, []).append(self._fetch(term))
        return {
            "offset_into_first_range": extent[0] - chunks[0][2] if chunks else 0,
            "terms": [self._term(term) for term in _joined(indices)],
            "xorbs": xorbs,
        }

    def _chunks(self, terms: list[Term], start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Yield the chunks with these bytes: xorb, index in it, and offset in the file."""
        at = 0
        for term in terms:
            for index in range(term.first, term.end):
                size = self.xorbs[term.xorb].sizes[index]
                if at < stop and at + size > start:
                    yield term.xorb, index, at
                at += size

    def _term(self, term: Term) -> dict[str, object]:
        unpacked = sum(self.xorbs[term.xorb].sizes[term.first : term.end])
        return {"hash": term.xorb, "unpacked_length": unpacked, "range": {"start": term.first, "end": term.end}}

    def _fetch(self, term: Term) -> dict[str, object]:
        """Return a signed address for the packed bytes of these chunks only."""
        packed = self.xorbs[term.xorb].packed
        start, end = packed[term.first], packed[term.end] - 1
        signature = secrets.token_hex(8)
        self.hub.signed[signature] = Signed(f"xet/xorbs/{term.xorb}", self.folder / term.xorb, self.hub.signature_uses)
        query = f"X-Xet-Signed-Range={quote(f'bytes={start}-{end}')}&Expires={int(time.time()) + 3600}"
        url = f"{self.url}/xorbs/default/{term.xorb}?{query}&Signature={signature}"
        chunks, octets = {"start": term.first, "end": term.end}, {"start": start, "end": end}
        return {"url": url, "ranges": [{"chunks": chunks, "bytes": octets}]}


@contextlib.contextmanager
def serve_xet(hub: Hub) -> Iterator[Cas]:
    """Serve the storage of a Hub on a separate port; the Hub announces it."""
    with tempfile.TemporaryDirectory() as folder:
        cas = Cas(hub, Path(folder))

        class CasHandler(_CasHandler):
            state = hub
            storage = cas

        with listening(CasHandler) as cas.url:
            hub.xet = cas
            try:
                yield cas
            finally:
                hub.xet = None


def _lfs_objects(hub: Hub) -> Iterator[Content]:
    for trees in [hub.files, *hub.commits.values()]:
        for tree in trees.values():
            yield from (content for name, content in tree.items() if in_lfs(name, content) and size_of(content))


def _on_disk(content: Content, path: Path) -> Path:
    if isinstance(content, Path):
        return content
    path.write_bytes(content)
    return path


def _joined(chunks: Iterable[tuple[str, int]]) -> Iterator[Term]:
    """Join consecutive chunks of a xorb to terms."""
    term: Term | None = None
    for xorb, index in chunks:
        if term and (term.xorb, term.end) == (xorb, index):
            term = Term(xorb, term.first, index + 1)
            continue
        if term:
            yield term
        term = Term(xorb, index, index + 1)
    if term:
        yield term


def _text(name: bytes) -> str:
    """Return the text of a hash, in which each group of eight bytes is reversed."""
    return "".join(name[at : at + 8][::-1].hex() for at in range(0, 32, 8))


class _CasHandler(Handler):
    storage: Cas

    def _answer(self) -> None:
        url = urlsplit(self.path)
        if url.path.startswith("/xorbs/"):
            self._xorb(parse_qs(url.query).get("X-Xet-Signed-Range", [""])[0])
        elif not (match := re.fullmatch(r"/v2/reconstructions/(\w{64})", url.path)):
            self._refuse(404)
        elif self.storage.tokens.get(self.headers.get("Authorization", "")[7:], 0) <= time.time():
            self._refuse(401)
        elif match[1] not in self.storage.files:
            self._refuse(404)
        elif (found := self.storage.reconstruction(match[1], self.headers.get("Range"))) is None:
            self._refuse(416)
        else:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def _xorb(self, signed_range: str) -> None:
        if "Authorization" in self.headers:
            self.state.leaked.append(self.path)
        signed = self.state.open_signed(urlsplit(self.path).query)
        if signed and self.headers.get("Range") == signed_range:
            self._send_file(signed.name, signed.content, {"Content-Type": "application/octet-stream"})
        else:
            self._send(403, {"Content-Type": "application/xml"}, EXPIRED)

    def do_POST(self) -> None:
        """Answer uploads and reports of transfers."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if match := re.fullmatch(r"/v1/xorbs/default/(\w{64})", self.path):
            self.storage.take_xorb(match[1], body)
            self._send(200, {"Content-Type": "application/json"}, b'{"was_inserted": true}')
        elif self.path == "/v1/shards":
            self.storage.take_shard(body)
            self._send(200, {"Content-Type": "application/json"}, b'{"result": 1}')
        else:
            self._refuse(200 if self.path == "/v1/telemetry" else 404)
