"""Hostile listings: a mirror cannot name a place outside the cache, delete a file, or take all memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmdeploy.errors import DownloadFailed, UsageError
from llmdeploy.models import gguf, transfer
from llmdeploy.models.hub import api, documents
from llmdeploy.models.hub import cached_paths as hub_cached
from llmdeploy.models.hub.cache import remove
from llmdeploy.models.listing_check import Source
from llmdeploy.models.modelscope import layout
from llmdeploy.models.reference import HubFile, HubRepo, parse, with_revision
from llmdeploy.models.safe_paths import below, clashes, require_places
from llmdeploy.models.source import Listing, RemoteFile, chosen
from tests import modelscope_server
from tests.hub_server import COMMIT, Hub, serve

REPO = HubRepo("owner/model-GGUF")
MODEL = HubFile(REPO.repo, "model.gguf")
CONTENT = b"GGUF" * 1000
MIRROR = Source("https://mirror", "HF_ENDPOINT")
DIGEST = "ab" * 32


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Provide a mirror, in whose place a test speaks; the cache of this process is in a folder of its own."""
    with serve(Hub(files={REPO.repo: {"model.gguf": CONTENT}})) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        yield hub


def refused(hub: Hub, of: HubRepo = REPO) -> str:
    """Return the message with which a download of the model is refused, before a byte of it is requested."""
    model = gguf.GgufModel(HubFile(of.repo, MODEL.file, of.revision))
    with pytest.raises(DownloadFailed) as error:
        model.download(lambda *_: None)
    assert hub.asked("GET", "/resolve/") == []
    assert "HF_ENDPOINT" in error.value.hint or "another source" in error.value.hint
    return error.value.message


def test_an_honest_mirror_is_used(hub: Hub) -> None:
    model = gguf.GgufModel(MODEL)
    model.download(lambda *_: None)
    [path] = model.local_files()
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "commit",
    ["../../../victim", "/tmp/victim", "a" * 39, "A" * 40, "a" * 64, "a" * 40 + "\n", 7, None, ["a" * 40], {}, True],
)
def test_commit_that_is_not_one_is_refused(hub: Hub, tmp_path: Path, commit: object) -> None:
    (tmp_path / "victim").mkdir()
    hub.claimed_commit = {} if commit is None else commit
    message = refused(hub)
    assert message.startswith(f"`{hub.url}` gives `")
    assert message.endswith(f"` as the commit of `{REPO.repo}`, which is not one")
    assert list((tmp_path / "victim").iterdir()) == []


def test_other_commit_than_the_named_one_is_refused(hub: Hub) -> None:
    hub.claimed_commit = "f" * 40
    assert refused(hub, HubRepo(REPO.repo, COMMIT)).startswith(f"`{hub.url}` answers with commit `{'f' * 40}`")


FORGED: list[tuple[str, object]] = [
    ("lfs.oid", "../../../victim/precious"),
    ("lfs.oid", "a" * 63),
    ("lfs.oid", "A" * 64),
    ("lfs.oid", "a" * 40),
    ("lfs.oid", 5),
    ("lfs.oid", ["a"]),
    ("lfs.size", 1.5),
    ("lfs.size", 4000.0),
    ("lfs.size", "4000"),
    ("lfs.size", True),
    ("lfs.size", -5),
    ("lfs.size", None),
    ("lfs.size", 2**61),
    ("lfs.size", 10**400),
    ("lfs.size", float("inf")),
    ("lfs.size", {"a": [[[]]]}),
    ("xetHash", "../../x"),
    ("xetHash", 5),
    ("path", "../../model.gguf"),
    ("path", "/tmp/model.gguf"),
    ("path", "a/./model.gguf"),
    ("path", "a//model.gguf"),
    ("path", ""),
    ("path", "a\0b.gguf"),
    ("path", "a\nb.gguf"),
    ("path", "a\x1b]0;t\x07.gguf"),
    ("path", "\ud800.gguf"),
    ("path", "a\\..\\b.gguf"),
    ("path", "a" * 5000),
    ("path", 5),
    ("path", None),
]


@pytest.mark.parametrize(("name", "value"), FORGED, ids=range(len(FORGED)))
def test_forged_entry_is_refused_and_deletes_nothing(hub: Hub, tmp_path: Path, name: str, value: object) -> None:
    precious = tmp_path / "victim" / "precious"
    precious.parent.mkdir()
    precious.write_bytes(CONTENT)
    hub.forged = {name: value}
    message = refused(hub)
    assert message.startswith(f"`{hub.url}` lists `"), message
    assert message.isprintable()
    assert [file.name for file in precious.parent.iterdir()] == ["precious"]
    assert precious.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "page", [b"7", b"[7]", b'[{"type": "file"}]', b"{", b"[" * 100_000, b'[{"type": "file", "path": "x", "lfs": 7}]']
)
def test_page_that_is_not_the_hubs_is_refused(hub: Hub, page: bytes) -> None:
    hub.forged_page = page
    assert refused(hub) == f"`{hub.url}` does not answer as a Hub does"


def test_pages_without_end_are_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_PAGES", 5)
    hub.next_page = f"{hub.url}/api/models/{REPO.repo}/tree/{COMMIT}?recursive=True"
    assert refused(hub) == f"`{hub.url}` sends more than 5 pages of one list"
    assert len(hub.asked("GET", "/tree/")) == 5


def test_page_of_another_server_is_refused(hub: Hub) -> None:
    hub.next_page = "http://elsewhere.example/tree"
    assert refused(hub).endswith("names a page of another server as the next one: `elsewhere.example`")


def test_page_without_end_is_cut(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LARGEST_BYTES", 10_000)
    hub.forged_page = b"[" + b"[]," * 10_000 + b"1]"
    assert refused(hub) == f"`{hub.url}` does not answer as a Hub does"


FORGED_AT_MODELSCOPE: list[tuple[str, object]] = [
    ("Sha256", "../../../victim/precious"),
    ("Sha256", "a" * 40),
    ("Sha256", 5),
    ("Size", 1.5),
    ("Size", "4000"),
    ("Size", True),
    ("Size", -5),
    ("Size", None),
    ("Size", 10**400),
    ("Path", "../../model.gguf"),
    ("Path", "a\0b.gguf"),
    ("Path", 5),
    ("claimed_commit", "../../../victim"),
    ("claimed_commit", 7),
]


@pytest.mark.parametrize(("name", "value"), FORGED_AT_MODELSCOPE, ids=range(len(FORGED_AT_MODELSCOPE)))
def test_forged_entry_at_modelscope_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    scope = modelscope_server.Scope(files={REPO.repo: {"model.gguf": CONTENT}})
    if name == "claimed_commit":
        scope.claimed_commit = value
    else:
        scope.forged = {name: value}
    model = gguf.GgufModel(replace(MODEL, revision="master", source="ms"))
    with modelscope_server.serve(scope):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", scope.url)
        with pytest.raises(DownloadFailed) as error:
            model.download(lambda *_: None)
    assert error.value.message.startswith(f"`{scope.url}` ")
    assert error.value.hint.startswith("check `MODELSCOPE_ENDPOINT`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "paths",
    [("a.gguf", "a.gguf"), ("a", "a/b.gguf"), ("a/b", "x", "a/b/c.gguf", "a/b.gguf")],
)
def test_listing_that_no_repository_has_is_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(DownloadFailed, match=r"lists `a.*` (twice|as a file and as a folder)$"):
        MIRROR.listing(REPO, COMMIT, [RemoteFile(path, 1, sha256=DIGEST) for path in paths])


def test_listing_with_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmdeploy.models.listing_check.MOST_FILES", 3)

    def endless() -> Iterator[RemoteFile]:
        number = 0
        while True:
            yield RemoteFile(f"{(number := number + 1)}.txt", 1)

    with pytest.raises(DownloadFailed, match="lists more than 3 files"):
        MIRROR.listing(REPO, COMMIT, endless())


AMBIGUOUS = [
    "C:/b.gguf", "c:b.gguf", "a/nul.gguf", "COM1", ".git/hooks/x.gguf", "a/.GIT/x", "x.gguf.",
    "x .gguf/ ", "a\u202eb.gguf", "a\u2028b.gguf", "\ufeffa.gguf",
]  # fmt: skip


@pytest.mark.parametrize("path", AMBIGUOUS)
def test_ambiguous_name_is_refused_only_for_what_is_downloaded(path: str) -> None:
    files = (RemoteFile(path, 1, sha256=DIGEST), RemoteFile("model.gguf", 1, sha256=DIGEST))
    listing = MIRROR.listing(REPO, COMMIT, files)
    assert chosen(listing, ["model.gguf"])
    with pytest.raises(DownloadFailed, match="which is not a path within it on every system"):
        chosen(listing, [path])


@pytest.mark.parametrize(
    "pair", [("A.gguf", "a.gguf"), ("stra\u00dfe", "STRASSE"), ("\u00e9", "e\u0301"), ("A", "a/b")]
)
def test_files_that_a_file_system_mixes_up_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(DownloadFailed, match="do not tell apart"):
        require_places("hf://owner/x", pair)


def test_names_of_real_repositories_are_allowed() -> None:
    names = [
        "README.md",
        "nullable.json",
        "a-b",
        "a/b.c",
        "a/b",
        "console.py",
        ".gitattributes",
        "模型.gguf",
        "x y.gguf",
    ]
    require_places("hf://owner/x", names)
    assert list(clashes(["a-b", "a/b", "a.b", "b/a"])) == []


# The last check, at the cache


@pytest.mark.parametrize("place", ["..", "../x", "a/../../x", "/etc/x", ""])
def test_place_outside_the_cache_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(DownloadFailed, match="is not a place in the cache"):
        below(tmp_path, tmp_path / place)


BAD_DIGEST = (REPO, COMMIT, RemoteFile("x.gguf", 1, sha256="../../../precious"))
"""Digests are names only in the Hub's cache."""
BAD = [
    (REPO, "../../../../x", RemoteFile("x.gguf", 1, sha256=DIGEST)),
    (REPO, COMMIT, RemoteFile("../../../../x.gguf", 1, sha256=DIGEST)),
    (HubRepo(REPO.repo, "../../../../x"), COMMIT, RemoteFile("x.gguf", 1, sha256=DIGEST)),
]


PLACES = [("llmdeploy.models.hub", *one) for one in (*BAD, BAD_DIGEST)] + [
    ("llmdeploy.models.modelscope", *one) for one in BAD
]


@pytest.mark.parametrize(("origin", "repo", "commit", "file"), PLACES)
def test_no_cache_places_a_file_outside(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str, repo: HubRepo, commit: str, file: RemoteFile
) -> None:
    from importlib import import_module

    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    part = tmp_path / "part"
    part.write_bytes(b"G")
    at = import_module(origin)
    with pytest.raises(DownloadFailed, match="is not a place in the cache"):
        at.place(Listing(repo, commit, (file,)), file, part)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [part]


def test_reference_with_a_parent_folder_names_no_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    (tmp_path / "x").write_text(COMMIT)
    out = HubRepo(REPO.repo, "../../../../x")
    assert hub_cached(out) == layout.cached_paths(HubRepo(REPO.repo, "../../../x", "ms")) == ()
    for text in ("hf://a/../x.gguf", "hf://a/b/../../x.gguf", "hf://a/b@../x", "ms://../b", "a/b@x/../../y"):
        with pytest.raises(UsageError):
            parse(text)
    with pytest.raises(UsageError):
        with_revision(REPO, "../../x")


def test_removal_does_not_follow_a_link_out_of_the_cache(hub: Hub, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    model = gguf.GgufModel(MODEL)
    model.download(lambda *_: None)
    [path] = model.local_files()
    link = path.with_name("other.gguf")
    link.symlink_to(precious)
    remove([link], [])
    assert precious.read_bytes() == b"mine"
    assert not link.is_symlink()
    assert path.is_file()


# Folders and partial files of a cloned project


def test_download_does_not_leave_a_folder_by_a_link(hub: Hub, tmp_path: Path) -> None:
    hub.files[REPO.repo] = {"sub/model.gguf": CONTENT}
    folder, victim = tmp_path / "models", tmp_path / "victim"
    victim.mkdir()
    folder.mkdir()
    (folder / "sub").symlink_to(victim)
    listing = api.listing(REPO)
    with pytest.raises(DownloadFailed, match="is a link that leads out of"):
        transfer.fetch(listing, listing.files, lambda *_: None, folder)
    assert list(victim.iterdir()) == []


def test_download_is_not_written_through_a_link(hub: Hub, tmp_path: Path) -> None:
    folder, victim = tmp_path / "models", tmp_path / "precious"
    folder.mkdir()
    victim.write_bytes(b"mine")
    (folder / "model.gguf.incomplete").symlink_to(victim)
    listing = api.listing(REPO)
    with pytest.raises(DownloadFailed, match="is a link or not a regular file") as error:
        transfer.fetch(listing, listing.files, lambda *_: None, folder)
    assert error.value.hint == f"remove it: `rm {folder}/model.gguf.incomplete`"
    assert victim.read_bytes() == b"mine"
