"""`llmdeploy pull` by the real hf_xet, from a Hub on loopback with a Xet storage."""

from __future__ import annotations

import json
import random
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.blobs import size_of
from tests.conftest import BUSY, SELFTEST, World, until
from tests.hub_server import COMMIT, Hub, Refusal, serve
from tests.xet_server import Cas, serve_xet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.blobs import Content

REPO = "owner/model"
PULL = ("pull", REPO, "--engine", "vllm")
BIG, SMALL = "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"
PARTS = 3
"""Number of xorbs of the big file, without those at its edges."""


def tensors(size: int, seed: int) -> bytes:
    """Return a safetensors file of noise."""
    head = json.dumps({f"x{seed}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(head)) + head + random.Random(seed).randbytes(size)


FILES: dict[str, Content] = {SMALL: tensors(300_000, 1), BIG: tensors(6_000_000, 2)}
FILES |= {file.name: file.read_bytes() for file in (SELFTEST / "hf").glob("*.json")}
INDEX = {"metadata": {}, "weight_map": {"x1": SMALL, "x2": BIG}}
FILES["model.safetensors.index.json"] = json.dumps(INDEX).encode()


@pytest.fixture
def cas() -> Iterator[Cas]:
    hub = Hub()
    with serve(hub), serve_xet(hub) as cas:
        big = FILES[BIG]
        assert isinstance(big, bytes)
        step = len(big) // PARTS
        cas.store([*(big[part * step : (part + 1) * step] for part in range(PARTS)), big])
        hub.files[REPO] = dict(FILES)
        yield cas


@pytest.fixture
def here(world: World, cas: Cas) -> World:
    world.environment |= {"HF_ENDPOINT": cas.hub.url, "HF_HOME": str(world.folder / "hf")}
    world.environment["HF_XET_CLIENT_RETRY_BASE_DELAY"] = "10ms"
    return world


def assert_whole(world: World) -> None:
    snapshot = world.folder / "hf" / "hub" / "models--owner--model" / "snapshots" / COMMIT
    for name, content in FILES.items():
        assert (snapshot / name).read_bytes() == content, name
    assert parts(world) == []


def parts(world: World) -> list[int]:
    """Return the sizes of the partial files."""
    return [file.stat().st_size for file in (world.folder / "hf").rglob("*.incomplete")]


def from_cdn(cas: Cas) -> list[str]:
    """Return the files that were requested as a whole, not only for their headers."""
    return [path for _, path, wanted in cas.hub.asked("GET", "/cdn/") if wanted is None]


def terms(cas: Cas) -> list[str]:
    """Return the xorbs of the big file, in its order."""
    big = FILES[BIG]
    return [term.xorb for term in cas.files[cas.file_id(big)]]


def test_files_are_downloaded_from_xorbs(here: World, cas: Cas) -> None:
    done = here.run(*PULL)
    assert done.status == 0, done.text
    assert_whole(here)
    assert from_cdn(cas) == []
    assert (cas.hub.sent_twice("xet/"), cas.hub.leaked) == (0, [])


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_killed_download_is_resumed(here: World, cas: Cas) -> None:
    hub, first, last = cas.hub, terms(cas)[0], terms(cas)[-1]
    hub.failing, hub.stall_after = f"xet/xorbs/{last}", 1000
    command = here.start(*PULL)
    assert hub.reached.wait(30)
    until(lambda: max(parts(here), default=0) > size_of(FILES[BIG]) // 2)
    command.send_signal(signal.SIGKILL)
    command.communicate()
    hub.stall_after = None

    done = here.run(*PULL)
    assert done.status == 0, done.text
    assert_whole(here)
    assert hub.sent_twice(f"xet/xorbs/{first}") == 0
    assert hub.sent_twice("xet/") < 300_000, "no more than the chunks at the edges, and what had stalled"


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("goes_on", [False, True])
def test_ctrl_c_ends_the_download_at_once(here: World, cas: Cas, goes_on: bool) -> None:
    hub, last = cas.hub, terms(cas)[-1]
    hub.failing, hub.stall_after = f"xet/xorbs/{last}", 1000
    if goes_on:  # by a stream, where a part lies there
        command = here.start(*PULL)
        until(lambda: max(parts(here), default=0) > size_of(FILES[BIG]) // 2)
        command.kill()
        command.communicate()
        hub.reached.clear()
    command = here.start(*PULL)
    assert hub.reached.wait(30)
    until(lambda: max(parts(here), default=0) > size_of(FILES[BIG]) // 2)
    began = time.monotonic()
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=20)
    assert time.monotonic() - began < 1.5 * BUSY
    assert command.returncode == 130, err
    assert b"Traceback" not in err
    assert max(parts(here)) > size_of(FILES[BIG]) // 2


def test_wrong_bytes_are_refused_and_right_ones_downloaded_later(here: World, cas: Cas) -> None:
    cas.hub.wrong.add(terms(cas)[0])
    refused = here.run(*PULL)
    assert refused.status == 1
    assert f"error: the download of `{BIG}` is not what `hf://{REPO}` lists: its digest is " in refused.stderr
    assert not any(path.name == BIG for path in (here.folder / "hf").rglob("*"))
    cas.hub.wrong.clear()
    done = here.run(*PULL)
    assert done.status == 0, done.text
    assert_whole(here)


def test_expired_token_of_the_storage_is_renewed(here: World, cas: Cas) -> None:
    cas.token_s = 1
    done = here.run(*PULL)
    assert done.status == 0, done.text
    assert_whole(here)
    assert len(cas.hub.asked("GET", "/xet-read-token/")) > 1


def test_unreachable_storage_is_replaced_by_the_hub(here: World, cas: Cas) -> None:
    cas.hub.refusals.append(Refusal(404, times=100, part="/v2/reconstructions/"))
    done = here.run(*PULL)
    assert done.status == 0, done.text
    assert_whole(here)
    assert len(from_cdn(cas)) == 2
    assert cas.hub.leaked == []


def test_a_gated_repository_opens_with_a_token(here: World, cas: Cas) -> None:
    cas.hub.gated.add(REPO)
    assert "is gated" in here.run(*PULL).stderr
    done = here.run(*PULL, HF_TOKEN=cas.hub.token)
    assert done.status == 0, done.text
    assert_whole(here)
    assert cas.hub.leaked == []
