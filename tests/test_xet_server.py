"""Checks that the Xet storage on loopback behaves like the real one, with the real hf_xet."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hub_server import Hub, Refusal, serve
from tests.xet_server import Cas, serve_xet

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "owner/model"
NOISE = random.Random(6).randbytes(3_000_000)
WEIGHTS = NOISE + bytes(2_000_000) + NOISE[:1_500_000]
"""Content that can be compressed, content that repeats, and content that does neither."""
START = 3_333_333

DOWNLOAD = f"""
import sys
from huggingface_hub import hf_hub_download

path = hf_hub_download("{REPO}", "model.safetensors")
sys.stdout.buffer.write(open(path, "rb").read())
"""
STREAM = f"""
import sys
from hf_xet import XetFileInfo, XetSession
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils._xet import refresh_xet_connection_info

metadata = get_hf_file_metadata(hf_hub_url("{REPO}", "model.safetensors"))
opened = refresh_xet_connection_info(file_data=metadata.xet_file_data, headers={{}})
group = XetSession().new_download_stream_group(
    endpoint=opened.endpoint,
    token=opened.access_token,
    token_expiry_unix_secs=opened.expiration_unix_epoch,
    token_refresh_url=metadata.xet_file_data.refresh_route,
)
info = XetFileInfo(metadata.xet_file_data.file_hash, metadata.size)
for piece in group.download_stream(info, start={START}):
    sys.stdout.buffer.write(piece)
"""


@pytest.fixture
def cas() -> Iterator[Cas]:
    hub = Hub(files={REPO: {"model.safetensors": WEIGHTS, "config.json": b"{}"}})
    with serve(hub), serve_xet(hub) as cas:
        yield cas


def run(script: str, cas: Cas, home: Path) -> subprocess.CompletedProcess[bytes]:
    known = {key: value for key, value in os.environ.items() if key in {"PATH", "SYSTEMROOT", "TMPDIR", "TEMP"}}
    environment = {**known, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": cas.hub.url}
    environment["HF_XET_CLIENT_RETRY_BASE_DELAY"] = "10ms"
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60)


def read_by(script: str, cas: Cas, home: Path) -> bytes:
    done = run(script, cas, home)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_real_client_downloads_a_file_from_xorbs(cas: Cas, tmp_path: Path) -> None:
    assert read_by(DOWNLOAD, cas, tmp_path) == WEIGHTS
    hub = cas.hub
    assert hub.asked("GET", "/cdn/") == []
    assert len(hub.asked("GET", "/xet-read-token/")) == 1
    assert (hub.sent_twice(), hub.leaked) == (0, [])
    # What repeats was stored once and is sent once; zeros take no room.
    assert len(NOISE) < hub.sent_bytes("xet/xorbs/") < len(NOISE) + 300_000


def test_stream_starts_at_the_offset(cas: Cas, tmp_path: Path) -> None:
    assert read_by(STREAM, cas, tmp_path) == WEIGHTS[START:]
    assert len(cas.hub.asked("GET", "/v2/reconstructions/")) >= 1
    assert cas.hub.sent_bytes("xet/xorbs/") < 1_700_000


def test_expiring_token_is_renewed(cas: Cas, tmp_path: Path) -> None:
    cas.token_s = 1
    assert read_by(STREAM, cas, tmp_path) == WEIGHTS[START:]
    assert len(cas.hub.asked("GET", "/xet-read-token/")) > 1


def test_expired_signature_is_replaced(cas: Cas, tmp_path: Path) -> None:
    cas.file_id(WEIGHTS)
    cas.hub.refusals.append(Refusal(403, part="/xorbs/"))
    assert read_by(DOWNLOAD, cas, tmp_path) == WEIGHTS
    asked = [path for _, path, _ in cas.hub.asked("GET", "/v2/reconstructions/")]
    assert len(asked) > len(set(asked))


def test_truncated_xorb_is_requested_again(cas: Cas, tmp_path: Path) -> None:
    cas.file_id(WEIGHTS)
    cas.hub.cut_after, cas.hub.failing = 100_000, "xet/xorbs/"
    assert read_by(DOWNLOAD, cas, tmp_path) == WEIGHTS
    assert cas.hub.cut_after is None


def test_real_client_does_not_notice_wrong_bytes(cas: Cas, tmp_path: Path) -> None:
    """Show that hf_xet compares no hash, so the caller must."""
    cas.file_id(WEIGHTS)
    cas.hub.wrong |= set(cas.xorbs)
    received = read_by(DOWNLOAD, cas, tmp_path)
    assert len(received) == len(WEIGHTS)
    assert received != WEIGHTS
