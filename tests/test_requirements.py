"""Requirements of several engines together, and the disks that the downloads go to."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from llmdeploy.errors import DownloadFailed
from llmdeploy.models import requirements
from llmdeploy.models.hub.cache import cached_paths
from llmdeploy.models.reference import HubRepo
from llmdeploy.models.requirements import RequiredFile, Requirements, require_room
from llmdeploy.units import MIB

ONE = RequiredFile("x.gguf", 100 * MIB)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide a folder on a disk with 150 MiB left."""
    left = namedtuple("usage", "free")(150 * MIB)
    monkeypatch.setattr("shutil.disk_usage", lambda path: left)
    return tmp_path / "cache"


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Path]:
    """Provide a folder of another user without permissions for others."""
    folder = tmp_path / "others"
    (folder / "hub").mkdir(parents=True)
    folder.chmod(0)
    may_change = hasattr(os, "geteuid") and os.geteuid() == 0
    if may_change:
        os.seteuid(65534)
    try:
        with suppress(PermissionError):
            os.listdir(folder)
            pytest.skip("modes do not bind this user")
        yield folder
    finally:
        if may_change:
            os.seteuid(0)
        folder.chmod(0o755)


def test_file_that_two_engines_need_counts_once(disk: Path) -> None:
    llamacpp = Requirements("hf://o/r", disk, (ONE,), "c" * 40)
    ollama = replace(llamacpp, copies=40 * MIB)
    require_room([llamacpp, ollama])
    with pytest.raises(DownloadFailed) as full:
        require_room([llamacpp, replace(ollama, copies=60 * MIB)])
    assert full.value.message == f"`hf://o/r` needs 160 MiB more, and the disk of `{disk}` has 150 MiB left"


def test_different_files_of_two_engines_are_added(disk: Path) -> None:
    llamacpp = Requirements("hf://o/r", disk, (ONE,), "c" * 40)
    for other in (replace(llamacpp, source="hf://o/q"), replace(llamacpp, revision="d" * 40)):
        with pytest.raises(DownloadFailed, match="200 MiB more"):
            require_room([llamacpp, other])
    here = replace(llamacpp, source="hf://o/q", files=(replace(ONE, here=ONE.size),), copies=500 * MIB)
    require_room([llamacpp, here])


def test_folder_of_another_user_does_not_crash(others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert others.is_relative_to(requirements.existing(others / "hub" / "x"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(others / "hub"))
    assert cached_paths(HubRepo("o/r", "a" * 40)) == ()
