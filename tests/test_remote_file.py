"""Remote files read by ranges: few requests, little memory, and the answers of a Hub to ranges."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.errors import ModelInvalid
from llmdeploy.models import gguf_header, remote_file
from tests.conftest import SELFTEST
from tests.hub_server import Hub, Refusal, closed_port, serve
from tests.test_facts import write

CONTENT = random.Random(1).randbytes(3_000_000)


class Store:
    """Bytes that are downloaded by ranges, and a record of the ranges."""

    def __init__(self, content: bytes, claimed: int | None = None) -> None:
        self.content = content
        self.size = len(content) if claimed is None else claimed
        self.asked: list[tuple[int, int]] = []

    def get(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        return self.content[start:end]

    def open(self, name: str = "x.gguf") -> Any:
        return remote_file.opened(self.get, self.size, name)

    @property
    def fetched(self) -> int:
        return sum(end - start for start, end in self.asked)


# --- The file


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1000, 3_000_000), st.integers(0, 700_000)), max_size=8))
def test_remote_file_reads_like_a_local_one(moves: list[tuple[int, int, int]]) -> None:
    here, there = io.BytesIO(CONTENT), Store(CONTENT).open()
    for whence, offset, count in moves:
        if whence == io.SEEK_SET:
            offset = max(0, offset)
        if whence != io.SEEK_SET and offset + (here.tell() if whence == io.SEEK_CUR else len(CONTENT)) < 0:
            continue
        assert there.seek(offset, whence) == here.seek(offset, whence)
        assert there.read(count) == here.read(count)
        assert there.tell() == here.tell()


def test_each_continued_request_is_twice_as_large() -> None:
    store = Store(bytes(40_000_000))
    with store.open() as file:
        while file.read(100_000):
            pass
    lengths = [end - start for start, end in store.asked]
    assert lengths[:7] == [2**18, 2**19, 2**20, 2**21, 2**22, 2**23, 2**23]
    assert max(lengths) == remote_file.LARGEST
    assert store.fetched == 40_000_000, "nothing twice"
    assert len(lengths) == 9


def test_jump_downloads_little() -> None:
    store = Store(bytes(40_000_000))
    with store.open() as file:
        file.read(8)
        file.seek(30_000_000)
        file.read(8)
    assert store.fetched == 2 * remote_file.FIRST


def test_endless_header_is_given_up() -> None:
    """Check that an endless header does not download a model of TB."""

    class Endless(Store):
        def get(self, start: int, end: int) -> bytes:
            self.asked.append((start, end))
            return bytes(end - start)

    store = Endless(b"", 2**43)
    with store.open() as file, pytest.raises(OSError, match="it does not end within 268,435,456 bytes"):
        file.read(2**30)
    assert store.fetched <= remote_file.MOST


def test_short_answer_is_not_the_end_of_the_file() -> None:
    with (
        Store(bytes(1000), claimed=5000).open() as file,
        pytest.raises(OSError, match="5,000 bytes were asked for at 0"),
    ):
        file.read(10)


# --- Headers of GGUF


def test_header_is_the_same_from_a_remote_file() -> None:
    path = SELFTEST / "selftest-f16.gguf"
    store = Store(path.read_bytes())
    there = gguf_header.read_remote("hf://o/r/x.gguf", store.open())
    here = gguf_header.read(path)
    assert (there.name, there.fields, there.tensor_bytes) == ("hf://o/r/x.gguf", here.fields, here.tensor_bytes)
    assert store.asked == [(0, remote_file.FIRST)]


def test_a_large_vocabulary_takes_a_handful_of_requests(tmp_path: Path) -> None:
    tokens = {
        "tokenizer.ggml.tokens": [f"a token of some length {number}" for number in range(150_000)],
        "tokenizer.ggml.scores": [1.0] * 150_000,
        "vocab_size": None,
    }
    path = write(tmp_path / "x.gguf", tokens, tensors=300)
    store = Store(path.read_bytes() + bytes(50_000_000))
    header = gguf_header.read_remote("x.gguf", store.open())
    assert header.fields["tokenizer.ggml.tokens"] == 150_000
    assert header.tensor_bytes == gguf_header.read(path).tensor_bytes
    assert len(store.asked) <= 6
    assert store.fetched < 2 * path.stat().st_size


@pytest.mark.parametrize("size", [0, 3, 4, 100, 1000, 5000, 14_000])
def test_truncated_remote_header_is_reported_with_its_address(size: int) -> None:
    store = Store((SELFTEST / "selftest-f16.gguf").read_bytes()[:size])
    with pytest.raises(ModelInvalid) as caught:
        gguf_header.read_remote("hf://owner/repo/x.gguf", store.open())
    assert caught.value.message.startswith("`hf://owner/repo/x.gguf` is ")
    assert caught.value.hint == "take another file: this one is damaged at its source"


def test_huge_field_does_not_fill_the_memory(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "x.gguf", {"general.name": "N" * 20}).read_bytes())
    at = content.index(b"N" * 20) - 8
    content[at : at + 8] = (2**40).to_bytes(8, "little")
    store = Store(bytes(content) + bytes(remote_file.FIRST), claimed=2**43)
    with pytest.raises(ModelInvalid, match="its header states a field of 1,099,511,627,776 bytes"):
        gguf_header.read_remote("x.gguf", store.open())


# --- At a Hub

REPO = "owner/model"
SCRIPT = """
import json, sys
from llmdeploy.errors import LlmdeployError
from llmdeploy.models import source
from llmdeploy.models.reference import HubFile

name, *reads = sys.argv[1:]
try:
    with source.origin("hf").open_remote(HubFile("owner/model", name)) as file:
        got = []
        for read in reads:
            at, count = map(int, read.split("+"))
            file.seek(at)
            got.append(file.read(count).hex())
    print(json.dumps({"got": got}))
except LlmdeployError as error:
    print(json.dumps(error.as_document()))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(files={REPO: {"model.gguf": CONTENT, "config.json": b'{"a": 1}' * 100}})) as hub:
        yield hub


def read(hub: Hub, home: Path, name: str, *reads: str, **variables: str) -> dict[str, Any]:
    """Read parts of a file, given as `offset+count`, in a process with an empty home; return hexadecimal digits."""
    inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "SYSTEMROOT", "TMPDIR", "TEMP"}}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, name, *reads],
        env={**inherited, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_file_of_the_hub_is_read_at_its_storage(hub: Hub, tmp_path: Path) -> None:
    hub.private.add(REPO)
    got = read(hub, tmp_path, "model.gguf", "100+50", "2500000+10", HF_TOKEN=hub.token)
    assert got == {"got": [CONTENT[100:150].hex(), CONTENT[2_500_000:2_500_010].hex()]}
    assert [(method, asked) for method, _, asked in hub.requests] == [
        ("HEAD", None),
        ("GET", "bytes=0-262143"),
        ("GET", "bytes=2500000-2762143"),
    ]
    assert len(hub.asked("GET", "/cdn/")) == 2
    assert hub.leaked == [], "the token is not for the CDN"
    assert not list((tmp_path / "hf").rglob("*.gguf")), "nothing is kept"


def test_small_file_is_read_unchanged(hub: Hub, tmp_path: Path) -> None:
    assert read(hub, tmp_path, "config.json", "0+800") == {"got": [(b'{"a": 1}' * 100).hex()]}


def test_expired_address_is_requested_again(hub: Hub, tmp_path: Path) -> None:
    hub.signature_uses = 1
    got = read(hub, tmp_path, "model.gguf", "0+5", "2500000+5")
    assert got == {"got": [CONTENT[:5].hex(), CONTENT[2_500_000:2_500_005].hex()]}
    assert len(hub.asked("HEAD", "model.gguf")) == 2


@pytest.mark.parametrize("reads", [["0+5"], ["2500000+5"]])
def test_a_server_that_sends_only_the_whole_file_is_stopped(tmp_path: Path, reads: list[str]) -> None:
    with serve(Hub(files={REPO: {"model.gguf": bytes(60_000_000)}}, ignores_range=True)) as hub:
        error = read(hub, tmp_path, "model.gguf", *reads)["error"]
        netloc = hub.cdn.removeprefix("http://")
    assert error["code"] == "download_failed"
    assert error["message"] == (
        f"`{netloc}` sends `hf://owner/model/model.gguf` only as a whole: "
        "of its 60,000,000 bytes 262,144 were asked for"
    )
    assert error["hint"].startswith("a mirror or a proxy that drops `Range` is in the way")
    assert hub.sent_bytes() < 30_000_000


def test_interrupted_range_is_requested_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 100_000
    assert read(hub, tmp_path, "model.gguf", "0+200000") == {"got": [CONTENT[:200_000].hex()]}
    assert len(hub.asked("GET", "/cdn/")) == 2


def test_short_failure_of_the_server_is_retried(hub: Hub, tmp_path: Path) -> None:
    hub.refusals.append(Refusal(500, part="/cdn/"))
    assert read(hub, tmp_path, "model.gguf", "0+5") == {"got": [CONTENT[:5].hex()]}


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("gone.gguf", {}, "`owner/model` has no file `gone.gguf`"),
        ("model.gguf", {"HF_TOKEN": "hf_wrong"}, "the Hub does not know the access token"),
        ("model.gguf", {"HF_HUB_OFFLINE": "1"}, "`HF_HUB_OFFLINE` is set, so nothing is downloaded"),
        ("model.gguf", {"HF_ENDPOINT": "http://127.0.0.1:PORT"}, "`http://127.0.0.1:PORT` refuses the connection"),
    ],
)
def test_failures_are_those_of_a_download(
    hub: Hub, tmp_path: Path, name: str, variables: dict[str, str], message: str
) -> None:
    port = str(closed_port())
    variables = {key: value.replace("PORT", port) for key, value in variables.items()}
    assert read(hub, tmp_path, name, "0+5", **variables)["error"]["message"] == message.replace("PORT", port)
