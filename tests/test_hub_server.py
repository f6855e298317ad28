"""Checks that the Hub on loopback behaves like the real one, with the real client."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.hub_server import COMMIT, Hub, Refusal, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "owner/model"
WEIGHTS = bytes(range(256)) * 4000
CONFIG = b'{"model_type": "qwen3"}\n'
FILES: dict[str, Any] = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "onnx/model.onnx": b"onnx"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(files={REPO: dict(FILES)})) as hub:
        yield hub


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


@pytest.fixture
def library(hub: Hub) -> Iterator[Any]:
    """Provide the real client for this Hub."""
    import huggingface_hub

    yield huggingface_hub.HfApi(endpoint=hub.url, token=hub.token)
    huggingface_hub.close_session()


def address(hub: Hub, name: str = "model.safetensors", revision: str = "main") -> str:
    return f"{hub.url}/{REPO}/resolve/{revision}/{name}"


def at_cdn(hub: Hub, client: httpx.Client, name: str = "model.safetensors") -> str:
    return client.head(address(hub, name)).headers["Location"]


def test_real_client_downloads_a_repository(hub: Hub, library: Any, tmp_path: Path) -> None:
    folder = Path(library.snapshot_download(REPO, cache_dir=tmp_path))
    assert folder.name == COMMIT
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")} == FILES
    # The names in the cache are the hashes that the Hub announced.
    assert (folder / "model.safetensors").resolve().name == hashlib.sha256(WEIGHTS).hexdigest()
    assert (folder / "config.json").resolve().name == hashlib.sha1(b"blob 24\0" + CONFIG).hexdigest()
    assert hub.leaked == []
    assert (hub.sent_bytes(), hub.sent_twice()) == (len(WEIGHTS) + len(CONFIG) + 4, 0)


def test_a_tree_comes_in_pages(hub: Hub, library: Any) -> None:
    hub.page = 1
    entries = {entry.path: entry for entry in library.list_repo_tree(REPO, recursive=True)}
    assert list(entries) == ["config.json", "model.safetensors", "onnx", "onnx/model.onnx"]
    assert len(hub.asked("GET", "/tree/")) == 4
    weights = entries["model.safetensors"]
    assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert entries["config.json"].lfs is None
    assert [entry.path for entry in library.list_repo_tree(REPO)] == ["config.json", "model.safetensors", "onnx"]
    assert [entry.path for entry in library.list_repo_tree(REPO, "onnx")] == ["onnx/model.onnx"]


def test_model_info_lists_files_and_optionally_sizes(hub: Hub, library: Any) -> None:
    assert [(file.rfilename, file.size) for file in library.model_info(REPO).siblings] == [
        (name, None) for name in FILES
    ]
    info = library.model_info(REPO, files_metadata=True)
    assert info.sha == COMMIT
    config, weights, _ = info.siblings
    assert (config.size, config.lfs) == (len(CONFIG), None)
    assert (weights.size, weights.lfs.size) == (len(WEIGHTS), len(WEIGHTS))
    assert weights.blob_id != config.blob_id


def test_branches_tags_and_commits_are_revisions(hub: Hub, library: Any, tmp_path: Path) -> None:
    second = hub.commit(REPO, {"config.json": b"{}"})
    hub.refs[REPO]["refs/tags/v1"] = COMMIT
    branch = hub.commit(REPO, {"config.json": b"[]"}, "feature/x")

    def config(revision: str) -> tuple[str, bytes]:
        path = Path(library.hf_hub_download(REPO, "config.json", revision=revision, cache_dir=tmp_path))
        return path.parent.name, path.read_bytes()

    assert config("main") == (second, b"{}")
    assert config("v1") == config(COMMIT) == (COMMIT, CONFIG)
    assert config("feature/x") == (branch, b"[]")
    refs = library.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "feature/x": branch}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": COMMIT}


@pytest.mark.parametrize(
    ("asked", "status", "sent"),
    [
        (None, 200, WEIGHTS),
        ("bytes=0-9", 206, WEIGHTS[:10]),
        ("bytes=1000-", 206, WEIGHTS[1000:]),
        ("bytes=-7", 206, WEIGHTS[-7:]),
        (f"bytes={len(WEIGHTS)}-", 416, b""),
    ],
)
def test_the_cdn_sends_ranges(hub: Hub, client: httpx.Client, asked: str | None, status: int, sent: bytes) -> None:
    answer = client.get(at_cdn(hub, client), headers={"Range": asked} if asked else {})
    assert (answer.status_code, answer.content) == (status, sent)
    hub.ignores_range = True
    assert client.get(at_cdn(hub, client), headers={"Range": "bytes=5-"}).content == WEIGHTS


def test_cdn_refuses_a_token_and_an_old_signature(hub: Hub, client: httpx.Client) -> None:
    hub.signature_uses = 1
    signed = at_cdn(hub, client)
    assert client.get(signed).status_code == 200
    assert client.get(signed).status_code == 403
    assert hub.leaked == []
    assert client.get(at_cdn(hub, client), headers={"Authorization": "Bearer hf_good"}).status_code == 400
    assert len(hub.leaked) == 1


@pytest.mark.parametrize(
    ("closed", "token", "status", "code"),
    [
        ("gated", None, 401, "GatedRepo"),
        ("gated", "hf_stranger", 403, "GatedRepo"),
        ("gated", "hf_good", 302, None),
        ("private", None, 401, "RepoNotFound"),
        ("private", "hf_stranger", 404, "RepoNotFound"),
        ("private", "hf_good", 302, None),
        ("open", "hf_wrong", 401, None),
    ],
)
def test_closed_repository_needs_a_token(
    hub: Hub, client: httpx.Client, closed: str, token: str | None, status: int, code: str | None
) -> None:
    if closed != "open":
        getattr(hub, closed).add(REPO)
    answer = client.head(address(hub), headers={"Authorization": f"Bearer {token}"} if token else {})
    assert (answer.status_code, answer.headers.get("X-Error-Code")) == (status, code)


def test_a_refusal_ends_after_its_times(hub: Hub, client: httpx.Client) -> None:
    hub.refusals.append(Refusal(429, times=2, part="model.safetensors", headers={"Retry-After": "1"}))
    assert client.head(address(hub, "config.json")).status_code == 200
    answers = [client.head(address(hub)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 302]
    assert answers[0].headers["Retry-After"] == "1"


def test_small_json_is_compressed_and_without_length(hub: Hub, client: httpx.Client) -> None:
    answer = client.get(address(hub, "config.json"))
    assert (answer.headers["Content-Encoding"], answer.headers.get("Content-Length")) == ("gzip", None)
    assert answer.content == CONFIG
    assert client.head(address(hub, "config.json"), headers={"Accept-Encoding": "identity"}).headers[
        "Content-Length"
    ] == str(len(CONFIG))


def test_wrong_bytes_have_the_right_size(hub: Hub, client: httpx.Client, tmp_path: Path) -> None:
    on_disk = tmp_path / "weights"
    on_disk.write_bytes(WEIGHTS)
    hub.files[REPO]["copy.safetensors"] = on_disk
    hub.wrong |= {"model.safetensors", "copy.safetensors"}
    half = len(WEIGHTS) // 2
    for name in ("model.safetensors", "copy.safetensors"):
        received = client.get(at_cdn(hub, client, name)).content
        assert [at for at, (one, two) in enumerate(zip(received, WEIGHTS, strict=True)) if one != two] == [half]
        part = client.get(at_cdn(hub, client, name), headers={"Range": f"bytes={half}-"}).content
        assert part[0] != WEIGHTS[half]
    hub.wrong.clear()
    assert client.get(at_cdn(hub, client, "copy.safetensors")).content == WEIGHTS


def test_sent_bytes_are_counted(hub: Hub, client: httpx.Client) -> None:
    hub.cut_after, hub.failing = 1000, "model.safetensors"
    assert client.get(at_cdn(hub, client, "onnx/model.onnx")).content == b"onnx"
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(at_cdn(hub, client))
    assert hub.sent[1:] == [(f"{REPO}/model.safetensors", 0, 1000)]
    client.get(at_cdn(hub, client), headers={"Range": "bytes=1000-"})
    assert (hub.sent_bytes("safetensors"), hub.sent_twice("safetensors")) == (len(WEIGHTS), 0)
    client.get(at_cdn(hub, client), headers={"Range": "bytes=990-1009"})
    assert hub.sent_twice() == 20
