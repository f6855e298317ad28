"""A ModelScope on loopback and its storage, with the routes that its own library uses (modelscope-hub 0.5.1)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.blobs import Content, blob, in_lfs
from tests.hub_server import COMMIT, Handler, Hub, _CdnHandler, listening

PREFIX = "/api/v1/models/"
NO_REPOSITORY, NO_ACCESS, NO_REVISION, NO_FILE = 10010205001, 10010200001, 10990101004, 10990101007


@dataclass
class Scope(Hub):
    """The contents and the behaviour of the server, with the main branch `master`, without Xet and pages."""

    token: str = "ms-good"
    partial: int = 200
    """Status of an answer with a range; the real server sends this and not 206."""
    body: bytes | None = None
    """Page that is every answer of the API, as from a captive portal."""
    traps: tuple[str, ...] = ()
    """Additional paths in the listing."""
    first_tokens: tuple[str, str] = ("", "")
    """Authorization and Cookie of the last request."""

    def commit_of(self, repo: str, revision: str) -> str | None:
        return super().commit_of(repo, "main" if revision == "master" else revision)


@contextlib.contextmanager
def serve(scope: Scope) -> Iterator[Scope]:
    """Serve ModelScope and its storage by threads on free ports of 127.0.0.1."""

    class Store(_StoreHandler):
        state = scope

    class Api(_ApiHandler):
        state = scope

    with listening(Store) as scope.cdn, listening(Api) as scope.url:
        try:
            yield scope
        finally:
            scope.closing.set()


class _StoreHandler(_CdnHandler):
    state: Scope

    def _answer(self) -> None:
        if "Cookie" in self.headers:
            self.state.leaked.append(self.path)
        super()._answer()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        super()._head(self.state.partial if status == 206 else status, headers)


class _ApiHandler(Handler):
    state: Scope

    def _answer(self) -> None:
        scope = self.state
        scope.first_tokens = (self.headers.get("Authorization", ""), self.headers.get("Cookie", ""))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        owner, _, rest = url.path.removeprefix(PREFIX).partition("/")
        name, _, route = rest.partition("/")
        repo = f"{owner}/{name}"
        if scope.body is not None:
            self._send(200, {"Content-Type": "text/html"}, scope.body)
        elif not url.path.startswith(PREFIX) or repo not in scope.files:
            self._fail(NO_REPOSITORY, "record not found")
        elif repo in scope.private | scope.gated and scope.first_tokens[0] != f"Bearer {scope.token}":
            self._fail(NO_ACCESS, "no permission")
        elif route == "commits":
            found = scope.commit_of(repo, query["Ref"])
            known = found if scope.claimed_commit is None else scope.claimed_commit
            self._succeed({"Commit": [{"Id": known, "ShortId": found[:8]}] if found else None, "TotalCount": 1})
        elif (commit := scope.commit_of(repo, query.get("Revision", "master"))) is None:
            self._fail(NO_REVISION, "the tree cannot be had")
        elif route == "repo/files":
            self._succeed(
                {"Files": self._entries(scope.tree(repo, commit)), "LatestCommitter": {"ShortId": commit[:8]}}
            )
        elif route == "repo" and (content := scope.tree(repo, commit).get(query["FilePath"])) is not None:
            self._file(repo, query["FilePath"], content)
        else:
            self._fail(NO_FILE, "file not found")

    def _file(self, repo: str, name: str, content: Content) -> None:
        if in_lfs(name, content):
            headers = {"Location": self.state.sign(repo, name, content), "X-Linked-ETag": f'"{blob(content).sha256}"'}
            self._send(302, headers)
        else:
            self._send_file(f"{repo}/{name}", content, {}, ranges=False)

    def _entries(self, files: dict[str, Content]) -> list[dict[str, object]]:
        folders = {str(folder) for name in files for folder in Path(name).parents if folder != Path(".")}
        trees: list[dict[str, object]] = [{"Path": name, "Type": "tree", "Size": 0, "Sha256": ""} for name in folders]
        traps: list[dict[str, object]] = [{"Path": name, "Type": "blob", "Size": 1} for name in self.state.traps]
        return trees + traps + [self._entry(name, content) for name, content in sorted(files.items())]

    def _entry(self, name: str, content: Content) -> dict[str, object]:
        held, lfs = blob(content), in_lfs(name, content)
        size = (self.state.claimed_size if lfs else None) or held.size
        known = {"Path": name, "Name": name.rpartition("/")[2], "Type": "blob", "Size": size, "Sha256": held.sha256}
        return {**known, "IsLFS": lfs, "Revision": COMMIT, **self.state.forged}

    def _succeed(self, data: dict[str, object]) -> None:
        self._document(200, {"Code": 200, "Data": data, "Message": "success", "RequestId": "1", "Success": True})

    def _fail(self, code: int, message: str) -> None:
        self._document(404, {"Code": code, "Message": message, "RequestId": "1", "Success": False})

    def _document(self, status: int, document: dict[str, object]) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(document).encode())
