"""The Hub as a source, with the real huggingface_hub: its files, its cache, and the messages for its failures."""

from __future__ import annotations

import importlib
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from filelock import FileLock

import llmdeploy
from llmdeploy.errors import DownloadFailed
from llmdeploy.models import source, transfer
from llmdeploy.models.hub import cached_paths, library, part, place
from llmdeploy.models.hub.cache import _name as name_revision
from llmdeploy.models.hub.cache import in_work
from llmdeploy.models.hub.failures import explain
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.source import Listing, RemoteFile, chosen
from tests.conftest import SELFTEST
from tests.hub_machine import Machine
from tests.hub_server import COMMIT, Hub, Refusal, closed_port, serve
from tests.xet_server import serve_xet

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "owner/model-GGUF"
ADDRESS = f"hf://{REPO}/model.gguf"
CONTENT = bytes(range(256)) * 20_000  # 5 MB
FILES: dict[str, Any] = {"model.gguf": CONTENT, "folder/part.gguf": b"part", "README.md": b"# Model"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(files={REPO: dict(FILES)})) as hub:
        yield hub


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path, hub.url)


def test_download_is_found_in_the_cache_without_the_hub(machine: Machine, hub: Hub) -> None:
    assert machine.here(ADDRESS) == []
    assert hub.requests == []

    [path] = machine.pull(ADDRESS)
    assert path.parents[2] == machine.cache / "models--owner--model-GGUF"
    assert path.read_bytes() == CONTENT
    assert source.commit_of([path]) == COMMIT
    assert source.commit_of([SELFTEST / "selftest-f16.gguf"]) is None

    before = len(hub.requests)
    assert machine.here(ADDRESS) == [path]
    assert machine.here(ADDRESS, HF_HUB_OFFLINE="1") == [path]
    assert machine.here(f"{ADDRESS}@{COMMIT}") == [path]
    assert machine.here(f"{ADDRESS}@v9") == []
    assert len(hub.requests) == before


def test_progress_is_reported_from_the_present_bytes_to_all(machine: Machine) -> None:
    progress = machine.run("pull", ADDRESS)["progress"]
    assert progress[0] == ["model.gguf", 0, len(CONTENT)]
    assert progress[-1] == ["model.gguf", len(CONTENT), len(CONTENT)]


def test_file_in_a_folder_at_a_commit_is_downloaded(machine: Machine) -> None:
    address = f"hf://{REPO}/folder/part.gguf@{COMMIT}"
    [path] = machine.pull(address)
    assert (path.name, path.parent.name) == ("part.gguf", "folder")
    assert machine.here(address) == [path]


def test_requests_are_the_commit_its_files_and_the_file(machine: Machine, hub: Hub) -> None:
    assert machine.here(ADDRESS) == []
    machine.pull(ADDRESS)
    asked = [(method, path.partition("?")[0]) for method, path, _ in hub.requests if not path.startswith("/cdn/")]
    assert asked == [
        ("GET", f"/api/models/{REPO}/revision/main"),
        ("GET", f"/api/models/{REPO}/tree/{COMMIT}"),
        ("GET", f"/{REPO}/resolve/{COMMIT}/model.gguf"),
    ]


def test_requirements_are_known_before_the_download(machine: Machine, hub: Hub) -> None:
    need = machine.run("need", ADDRESS)
    [file] = need["files"]
    assert (file["name"], file["size"], file["here"], len(file["digest"])) == ("model.gguf", len(CONTENT), 0, 64)
    assert (need["source"], need["revision"]) == (f"hf://{REPO}", COMMIT)
    assert need["folder"] == str(machine.cache)
    assert hub.sent == []

    machine.pull(ADDRESS)
    assert machine.run("need", ADDRESS)["files"] == [{**file, "here": len(CONTENT)}]
    # What is all here needs no Hub, and says the same.
    alone = machine.run("need", ADDRESS, HF_HUB_OFFLINE="1")
    assert (alone["files"], alone["revision"]) == ([{**file, "here": len(CONTENT)}], COMMIT)


def test_new_commit_of_a_branch_downloads_only_changes(machine: Machine, hub: Hub) -> None:
    machine.pull(ADDRESS)
    second = hub.commit(REPO, {**FILES, "other.gguf": b"other"})
    [path] = machine.pull(ADDRESS)
    assert source.commit_of([path]) == second
    assert hub.sent_bytes("model.gguf") == len(CONTENT)
    assert machine.here(ADDRESS) == [path]


def test_cache_is_readable_by_the_library(machine: Machine, hub: Hub) -> None:
    repo = "owner/model"
    hub.files[repo] = {"config.json": b"{}", "model.safetensors": CONTENT, "tokenizer.json": b"[]", "a.bin": b"x"}
    machine.pull(f"hf://{repo}")
    script = """
import json, sys
from pathlib import Path
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

folder = Path(snapshot_download(sys.argv[1], local_files_only=True))
hf_hub_download(sys.argv[1], "model.safetensors")
info = scan_cache_dir()
[repo] = info.repos
[revision] = repo.revisions
print(json.dumps([folder.name, sorted(path.name for path in folder.iterdir()), list(revision.refs), repo.size_on_disk]))
print(info.warnings)
"""
    sent = hub.sent_bytes()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, repo], env=machine.env, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f'["{COMMIT}", ["config.json", "model.safetensors", "tokenizer.json"], ["main"], {len(CONTENT) + 4}]',
        "[]",
    ]
    assert hub.sent_bytes() == sent


def test_download_of_the_library_is_found(machine: Machine, hub: Hub) -> None:
    script = f"from huggingface_hub import hf_hub_download; hf_hub_download({REPO!r}, 'model.gguf')"
    subprocess.run([sys.executable, "-c", script], env=machine.env, check=True)
    [path] = machine.here(ADDRESS)
    assert path.read_bytes() == CONTENT
    assert machine.pull(ADDRESS) == [path]
    assert hub.sent_twice() == 0


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        (
            "hf://owner/nothing/x.gguf",
            "there is no repository `owner/nothing`, or it is private",
            "check the name; for a private repository set `HF_TOKEN` to an access token that may read it",
        ),
        (
            f"hf://{REPO}/modell.gguf",
            f"`{REPO}` has no file `modell.gguf`",
            "it has `model.gguf`, `folder/part.gguf`",
        ),
        (
            f"hf://{REPO}/model.gguf@v9",
            f"`{REPO}` has no revision `v9`",
            f"`hf://{REPO}` names its main branch",
        ),
        (
            f"hf://{REPO}:Q4_K_M",
            f"`{REPO}` has no GGUF file of the quantization `Q4_K_M`",
            "name a repository with GGUF files",
        ),
        (
            "hf://owner/a..b/x.gguf",
            "the Hub allows no such repository name",
            "the form is `hf://owner/repo/file.gguf`",
        ),
    ],
)
def test_unknown_name_is_reported(machine: Machine, address: str, message: str, hint: str) -> None:
    assert machine.fail(address) == (message, hint)
    assert machine.here(address) == []


def test_a_gated_repository_opens_with_a_token(machine: Machine, hub: Hub) -> None:
    hub.gated.add(REPO)
    assert machine.fail(ADDRESS) == (
        f"`{REPO}` is gated: its terms must be accepted first",
        f"accept them at `{hub.url}/{REPO}`, then set `HF_TOKEN` to an access token of that account",
    )
    message, hint = machine.fail(ADDRESS, HF_TOKEN=hub.stranger)
    assert message == f"`{REPO}` is gated, and the account of the access token is not let in yet"
    assert hint.startswith(f"accept its terms at `{hub.url}/{REPO}` with that account")
    assert machine.pull(ADDRESS, HF_TOKEN="hf_good")
    assert hub.leaked == []


def test_a_private_repository_opens_with_a_token(machine: Machine, hub: Hub) -> None:
    hub.private.add(REPO)
    for variables in ({}, {"HF_TOKEN": hub.stranger}):
        assert machine.fail(ADDRESS, **variables)[0] == f"there is no repository `{REPO}`, or it is private"
    assert machine.pull(ADDRESS, HF_TOKEN="hf_good")


def test_wrong_token_is_reported(machine: Machine) -> None:
    message, hint = machine.fail(ADDRESS, HF_TOKEN="hf_wrong")
    assert message == "the Hub does not know the access token"
    assert "`HF_TOKEN`" in hint


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, f"the Hub refuses access to `{REPO}`"),
        (429, "the Hub refuses for now: too many requests"),
        (503, "the Hub answered with status 503"),
    ],
)
def test_refusal_of_the_hub_is_reported(machine: Machine, hub: Hub, status: int, message: str) -> None:
    hub.status = status
    assert machine.fail(ADDRESS)[0] == message


def test_retry_time_of_the_hub_is_reported(machine: Machine, hub: Hub) -> None:
    hub.refusals = [Refusal(429, part="/api/", headers={"Retry-After": "90"})]
    message, hint = machine.fail(ADDRESS)
    assert message == "the Hub refuses for now: too many requests"
    assert hint == "wait 1 min 30 s; with `HF_TOKEN` set the limit is higher"


def test_temporary_refusal_is_retried(machine: Machine, hub: Hub) -> None:
    hub.refusals = [Refusal(429, part="/resolve/", headers={"Retry-After": "0"})]
    assert machine.pull(ADDRESS)


def test_offline_mode_is_reported(machine: Machine, hub: Hub) -> None:
    message, hint = machine.fail(ADDRESS, HF_HUB_OFFLINE="1")
    assert message == "`HF_HUB_OFFLINE` is set, so nothing is downloaded"
    assert hint.startswith("`unset HF_HUB_OFFLINE`, or ")
    assert hub.requests == []


def test_refused_connection_is_reported_with_alternatives(machine: Machine) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    message, hint = machine.fail(ADDRESS, HF_ENDPOINT=endpoint)
    assert message == f"`{endpoint}` refuses the connection"
    for way in ("`HF_ENDPOINT`", "`--source modelscope`", "`ollama://", "`llmdeploy serve ./model.gguf`"):
        assert way in hint


def test_dead_proxy_is_reported_without_its_password(machine: Machine) -> None:
    proxy = f"127.0.0.1:{closed_port()}"
    message, hint = machine.fail(ADDRESS, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=f"http://me:secret@{proxy}")
    assert message == f"`http://hub.invalid` through the proxy `{proxy}` refuses the connection"
    assert "env | grep -i proxy" in hint


def test_silent_hub_is_reported(machine: Machine, hub: Hub) -> None:
    hub.silent = True
    assert machine.fail(ADDRESS, HF_HUB_ETAG_TIMEOUT="1")[0] == f"`{hub.url}` did not answer in time"
    assert len(hub.requests) == 1


def test_failed_tls_is_reported(machine: Machine, hub: Hub) -> None:
    endpoint = hub.url.replace("http:", "https:")
    message, hint = machine.fail(ADDRESS, HF_ENDPOINT=endpoint)
    assert message.startswith(f"no safe connection to `{endpoint}`: ")
    assert "`SSL_CERT_FILE`" in hint


def test_server_that_is_not_a_hub_is_reported(machine: Machine, hub: Hub) -> None:
    hub.refusals = [Refusal(200, part="/api/")]  # as a portal does that one must log in to
    message, hint = machine.fail(ADDRESS)
    assert message == f"`{hub.url}` does not answer as a Hub does"
    assert "`HF_ENDPOINT`" in hint


def test_unresolvable_host_is_reported() -> None:
    # A real failure of the resolver that needs no network.
    with pytest.raises(socket.gaierror) as failure:
        socket.getaddrinfo("no.number", 443, flags=socket.AI_NUMERICHOST)
    error = ConnectionError("connection failed")
    error.__cause__ = failure.value
    assert explain(HubFile(REPO, "model.gguf"), error).message.endswith(" cannot be looked up")


# --- Xet


def test_file_in_xet_storage_is_downloaded_by_xet(machine: Machine, hub: Hub) -> None:
    with serve_xet(hub):
        [path] = machine.pull(ADDRESS)
    assert path.read_bytes() == CONTENT
    assert hub.asked("GET", "/xorbs/")
    assert hub.asked("GET", "/resolve/") == []
    assert hub.leaked == []
    assert not hub.asked("POST", "/v1/telemetry")


def test_xet_resumes_a_partial_file(machine: Machine, hub: Hub) -> None:
    with serve_xet(hub):
        need = machine.run("need", ADDRESS)
        part = (
            machine.cache / "models--owner--model-GGUF" / "blobs" / f"{need['files'][0]['digest']}.llmdeploy.incomplete"
        )
        part.parent.mkdir(parents=True)
        part.write_bytes(CONTENT[:3_000_000])
        [path] = machine.pull(ADDRESS)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, _, wanted in hub.asked("GET", "/reconstructions/")] == [f"bytes=3000000-{len(CONTENT) - 1}"]


def test_hub_sends_the_file_without_xet(machine: Machine, hub: Hub) -> None:
    with serve_xet(hub):
        assert machine.pull(ADDRESS, HF_HUB_DISABLE_XET="1")
    assert hub.asked("GET", "/reconstructions/") == []
    assert hub.asked("GET", "/resolve/")


def test_hub_sends_the_file_if_xet_is_unreachable(machine: Machine, hub: Hub) -> None:
    with serve_xet(hub):
        hub.refusals = [Refusal(404, times=99, part="/xet-read-token/")]
        [path] = machine.pull(ADDRESS)
    assert path.read_bytes() == CONTENT


def test_concurrent_files_record_the_revision(tmp_path: Path) -> None:
    ref = tmp_path / "refs" / "main"
    commits = [f"{number:040x}" for number in range(8)]

    def arrive(commit: str) -> None:
        for _ in range(200):
            name_revision(ref, commit)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(arrive, commits))
    assert ref.read_text() in commits
    assert list(ref.parent.iterdir()) == [ref]


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Listing, RemoteFile, Path]:
    """Provide a repository with one file, and its whole partial file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    file = RemoteFile("x.gguf", 4, sha256="ab" * 32)
    listing = Listing(HubRepo("owner/x", "refs/pr/1"), "c" * 40, (file,))
    left = part(listing, file)
    left.parent.mkdir(parents=True)
    left.write_bytes(b"GGUF")
    return listing, file, left


def test_file_is_in_the_snapshot_without_links(
    brought: tuple[Listing, RemoteFile, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = place(*brought)
    assert not path.is_symlink()
    assert path.read_bytes() == b"GGUF"
    assert part(*brought[:2]) == path, "it is not fetched again"
    assert place(*brought[:2], path) == path


def test_broken_link_is_replaced(brought: tuple[Listing, RemoteFile, Path]) -> None:
    path = place(*brought)
    path.unlink()
    path.symlink_to("nowhere")
    assert place(*brought[:2], part(*brought[:2])).read_bytes() == b"GGUF"
    assert cached_paths(brought[0].repo) == ("x.gguf",), "a revision may have slashes"


@pytest.mark.parametrize("path", ["../x.gguf", "a/../../x.gguf", "/x.gguf"])
def test_listing_with_a_path_outside_the_cache_is_refused(path: str, tmp_path: Path) -> None:
    file = RemoteFile(path, 4, sha256="ab" * 32)
    listing = Listing(HubRepo("owner/x"), "c" * 40, (file,))
    for folder in (None, tmp_path):
        with pytest.raises(DownloadFailed, match="which is not a path within it"):
            transfer.need(listing, [file], folder)


def test_file_without_a_digest_is_refused_before_the_first_byte() -> None:
    listing = Listing(HubRepo("owner/x"), "c" * 40, (RemoteFile("x.gguf", 4), RemoteFile("y", 4, git_oid="d" * 40)))
    assert chosen(listing, ["y"]) == listing.files[1:]
    with pytest.raises(DownloadFailed, match=r"states no digest of `x\.gguf`"):
        chosen(listing, ["x.gguf"])


def test_unreadable_lock_does_not_hide_others(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--x"
    locks = tmp_path / ".locks" / repository.name
    for number in range(8):  # they are found in any order
        (locks / f"{number}.lock").mkdir(parents=True)
    assert not in_work(repository)
    with FileLock(locks / "held.lock"):
        assert in_work(repository)
    assert not in_work(repository)


@pytest.mark.parametrize("name", library.PRIVATE)
def test_private_name_of_huggingface_hub_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), (
        f"huggingface_hub {huggingface_hub.__version__} has no `{name}`: "
        "adapt llmdeploy/models/hub/library.py, or limit the version in pyproject.toml"
    )


def test_only_one_module_uses_private_names_of_huggingface_hub() -> None:
    package = Path(llmdeploy.__file__).parent
    private = re.compile(r"huggingface_hub(\.\w+)*\._|huggingface_hub\.file_download|DOWNLOAD_CHUNK_SIZE")
    users = {str(file.relative_to(package)) for file in package.rglob("*.py") if private.search(file.read_text())}
    assert users == {"models/hub/library.py"}
