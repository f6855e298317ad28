"""Downloads by the real huggingface_hub from a Hub on loopback: resumed, checked, several files at a time."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.conftest import BUSY, until
from tests.hub_machine import Machine
from tests.hub_server import Hub, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "owner/model"
ADDRESS = f"hf://{REPO}"
NOISE = random.Random(6).randbytes(8_000_000)
WEIGHTS = {f"model-0000{n}-of-00003.safetensors": NOISE[n:] for n in (1, 2, 3)}
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", **WEIGHTS}
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": {name: name for name in WEIGHTS}}).encode()}
SIZE = sum(map(len, (FILES | INDEX).values()))
GGUF = "hf://owner/model-GGUF/model.gguf"
HOOKED = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(files={REPO: FILES | INDEX, "owner/model-GGUF": {"model.gguf": NOISE}})) as hub:
        yield hub


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path, hub.url)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def are_right(paths: list[Path]) -> bool:
    """Return whether these are the repository's files, with its content."""
    held = {path.name: path.read_bytes() for path in paths[0].parent.iterdir()}
    return held == FILES | INDEX


def on_disk(machine: Machine) -> int:
    return sum(path.stat().st_size for path in [*machine.parts(), *machine.blobs()])


# --- Again


def test_file_removed_during_a_download_is_reported(machine: Machine, hub: Hub) -> None:
    hub.rate = 4_000_000
    process = machine.start("pull", "hf", ADDRESS)
    until(lambda: list(machine.cache.glob("*/snapshots/*/tokenizer.json")))
    next(machine.cache.glob("*/snapshots/*/tokenizer.json")).unlink()
    error = machine.said(process)["error"]
    assert error["message"] == f"`tokenizer.json` was removed while other files of `{ADDRESS}` were downloaded"
    assert are_right(machine.pull(ADDRESS))


@HOOKED
def test_killed_pull_is_resumed_without_repeating_bytes(machine: Machine, hub: Hub) -> None:
    hub.rate = 4_000_000
    process = machine.start("pull", "hf", ADDRESS)
    until(lambda: on_disk(machine) > 6_000_000)
    process.kill()
    process.communicate()
    assert machine.parts()
    kept = on_disk(machine)
    assert 6_000_000 < kept < SIZE
    assert machine.here(ADDRESS) == [], "what is here in part is not taken for whole"

    until(lambda: len([name for name, *_ in hub.sent if name.endswith(".safetensors")]) == 3)  # the server has noticed
    before = hub.sent_bytes()
    hub.rate = None
    need = machine.run("need", ADDRESS)
    assert sum(file["here"] for file in need["files"]) == kept
    assert are_right(machine.pull(ADDRESS))
    assert hub.sent_bytes() - before == SIZE - kept
    assert machine.parts() == []


def test_connection_that_ends_early_is_resumed(machine: Machine, hub: Hub) -> None:
    hub.cut_after = 5_500_000
    [path] = machine.pull(GGUF)
    assert path.read_bytes() == NOISE
    block = 5 * 2**20  # whole blocks are written
    assert [wanted for _, _, wanted in hub.asked("GET", "/cdn/")] == [None, f"bytes={block}-"]


def test_stalled_download_ends_and_is_resumed_later(machine: Machine, hub: Hub) -> None:
    hub.stall_after = 2 * 2**20
    assert machine.fail(GGUF, HF_HUB_DOWNLOAD_TIMEOUT="1")[0] == f"`{hub.url}` did not answer in time"
    [part] = machine.parts()
    assert part.stat().st_size == 2 * 2**20
    hub.stall_after = None
    [path] = machine.pull(GGUF)
    assert path.read_bytes() == NOISE
    assert hub.sent_twice() == 0


def test_server_without_ranges_sends_the_whole_file_again(machine: Machine, hub: Hub) -> None:
    hub.cut_after, hub.ignores_range = 3_000_000, True
    [path] = machine.pull(GGUF)
    assert path.read_bytes() == NOISE
    assert hub.sent_bytes() == 3_000_000 + len(NOISE)


@HOOKED
def test_ctrl_c_ends_all_downloads_and_keeps_partial_files(machine: Machine, hub: Hub) -> None:
    hub.stall_after = 2 * 2**20
    hub.failing = ".safetensors"
    process = machine.start("pull", "hf", ADDRESS)
    until(lambda: len(machine.parts()) >= 3 and all(part.stat().st_size for part in machine.parts()[:1]))
    assert hub.reached.wait(30)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert time.monotonic() - began < 1 * BUSY
    assert out == ""
    assert "KeyboardInterrupt" in err
    assert "Exception in thread" not in err
    assert process.returncode in {-signal.SIGINT, 130}
    assert any(part.stat().st_size for part in machine.parts())


# --- Right or not


def test_refusal_leaves_no_partial_file(machine: Machine, hub: Hub) -> None:
    hub.gated = {"owner/model-GGUF"}
    assert "is gated" in machine.fail(GGUF)[0]
    assert machine.parts() == []


def test_wrong_digest_is_reported_and_the_partial_file_removed(machine: Machine, hub: Hub) -> None:
    hub.wrong = {"model.gguf"}
    message, hint = machine.fail(GGUF)
    assert message.startswith("the download of `model.gguf` is not what `hf://owner/model-GGUF` lists: its digest is ")
    assert "again later" in hint
    assert machine.parts() == machine.blobs() == []
    assert hub.sent_bytes() == 2 * len(NOISE), "it is tried once more"


def test_damaged_partial_file_is_downloaded_again(machine: Machine, hub: Hub) -> None:
    part = part_of(machine, NOISE)
    part.write_bytes(bytes(1000))
    [path] = machine.pull(GGUF)
    assert path.read_bytes() == NOISE
    assert hub.sent_bytes() == 2 * len(NOISE) - 1000


def test_whole_partial_file_is_checked_and_not_downloaded(machine: Machine, hub: Hub) -> None:
    part_of(machine, NOISE).write_bytes(NOISE)
    [path] = machine.pull(GGUF)
    assert path.read_bytes() == NOISE
    assert hub.sent == []


def part_of(machine: Machine, content: bytes) -> Path:
    name = f"{hashlib.sha256(content).hexdigest()}.llmdeploy.incomplete"
    part = machine.cache / "models--owner--model-GGUF" / "blobs" / name
    part.parent.mkdir(parents=True)
    return part


def test_model_is_not_present_if_one_file_failed(machine: Machine, hub: Hub) -> None:
    hub.wrong = {"model-00002-of-00003.safetensors"}
    assert "model-00002-of-00003.safetensors" in machine.fail(ADDRESS)[0]
    assert machine.here(ADDRESS) == []
    assert not list(machine.cache.glob("*/snapshots/*/config.json")), "the first is placed last"


# --- Room


def test_too_small_disk_is_reported_before_the_first_byte(machine: Machine, hub: Hub) -> None:
    hub.claimed_size = 10**18
    message, hint = machine.fail(GGUF)
    assert message.startswith("`hf://owner/model-GGUF` needs ")
    assert f"the disk of `{machine.cache}` has " in message
    assert message.endswith(" left")
    assert "`HF_HOME`" in hint
    assert hub.asked("GET", "/resolve/") == []


@pytest.fixture
def small_disk(machine: Machine) -> Machine:
    """Provide the machine with a disk of 12 MiB for its cache, in a name space in which anyone may mount one."""
    mount = 'mkdir -p "$HF_HOME" && mount -t tmpfs -o size=12m tmpfs "$HF_HOME" && exec "$@"'
    own_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*own_disk, "true"], env=machine.env, capture_output=True).returncode
    ):
        pytest.skip("no name spaces here: a small disk cannot be mounted")
    machine.prefix = own_disk
    return machine


def test_too_small_disk_is_reported_with_both_sizes(small_disk: Machine, hub: Hub) -> None:
    message, hint = small_disk.fail(ADDRESS)
    wanted = rf"`hf://{REPO}` needs \S+ \wi?B more, and the disk of `{small_disk.cache}` has \S+ \wi?B left"
    assert re.fullmatch(wanted, message), message
    assert hint == "free some space, or set `HF_HOME` to a folder on another disk"
    assert hub.sent == []


def test_disk_that_becomes_full_is_reported(small_disk: Machine, hub: Hub) -> None:
    # Another program takes the space once the first bytes are here; what lies on that disk is told at the end.
    script = """
        (until find "$HF_HOME" -name "*incomplete*" -size +1000k | grep -q .; do sleep 0.05; done
         head -c 8m /dev/zero > "$HF_HOME/other") &
        "$@"; wait; find "$HF_HOME" -name "*incomplete*" -o -type l >&2
    """
    small_disk.prefix += ["sh", "-c", script, "sh"]
    hub.rate = 4_000_000
    process = small_disk.start("pull", "gguf", GGUF)
    out, err = process.communicate(timeout=30)
    error = json.loads(out)["error"]
    assert error["message"] == f"the disk of `{small_disk.cache}` became full"
    assert error["code"] == "disk_full"
    assert "`HF_HOME`" in error["hint"]
    left = [line for line in err.splitlines() if not line.isdecimal()]
    assert [Path(line).suffix for line in left] == [".incomplete"]


def test_file_system_with_a_size_limit_is_reported(machine: Machine) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are a thing of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        message, hint = machine.fail(GGUF)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message == f"the file system of `{machine.cache}` takes no file of this size"
    assert "`HF_HOME`" in hint
    assert machine.blobs() == []


def test_cache_that_cannot_be_written_is_reported(machine: Machine) -> None:
    (machine.home / "hf").write_text("a file where a folder belongs")
    message, hint = machine.fail(GGUF)
    assert re.fullmatch(rf"`{machine.home}/hf/\S+` cannot be used: .+", message), message
    assert "`HF_HOME`" in hint


def test_folder_that_cannot_be_written_is_reported(machine: Machine, tmp_path: Path) -> None:
    """Check that the hint does not name the variable of a cache that is not used."""
    (tmp_path / "file").write_text("a file where a folder belongs")
    message, hint = machine.fail(GGUF, tmp_path / "file" / "folder")
    assert message.startswith(f"`{tmp_path}/file/folder` cannot be used: ")
    assert hint == "give a folder that you may write to with `--dir`"


def test_state_folder_that_cannot_be_written_is_reported(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder belongs")
    message, hint = machine.fail(GGUF, tmp_path / "folder", LLMDEPLOY_STATE_DIR=str(tmp_path / "file" / "state"))
    assert message.startswith(f"the state folder `{tmp_path}/file/state` cannot be written: ")
    assert "`LLMDEPLOY_STATE_DIR`" in hint


# --- Two at once


def test_two_processes_download_a_file_once(machine: Machine, hub: Hub) -> None:
    hub.rate = 16_000_000
    both = [machine.start("pull", "hf", ADDRESS) for _ in range(2)]
    done = [machine.said(process) for process in both]
    assert [are_right([Path(file) for file in one["files"]]) for one in done] == [True, True]
    assert (hub.sent_bytes(), hub.sent_twice()) == (SIZE, 0)


@HOOKED
def test_lock_of_a_killed_process_is_free(machine: Machine, hub: Hub) -> None:
    hub.stall_after = 2 * 2**20
    first = machine.start("pull", "gguf", GGUF)
    assert hub.reached.wait(30)
    hub.stall_after = None
    second = machine.start("pull", "gguf", GGUF)
    assert second.stderr
    lines = [second.stderr.readline() for _ in range(2)]  # it tells what the first has brought, and waits
    assert lines == [f"{2 * 2**20}\n"] * 2
    first.kill()
    first.communicate()
    assert machine.said(second)["files"]
    assert hub.sent_twice() == 0


def test_lock_of_the_library_is_waited_for(machine: Machine, hub: Hub) -> None:
    lock = machine.cache / ".locks" / "models--owner--model-GGUF" / f"{hashlib.sha256(NOISE).hexdigest()}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        process = machine.start("pull", "gguf", GGUF)
        assert process.stderr
        assert [process.stderr.readline() for _ in range(3)] == ["0\n"] * 3
        assert hub.sent == []
    assert machine.said(process)["files"]


# --- Into a folder


def test_folder_gets_the_files_and_nothing_else(machine: Machine, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    machine.pull(ADDRESS, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES | INDEX
    assert not machine.cache.exists()
    assert all(file["here"] == file["size"] for file in machine.run("need", ADDRESS, folder)["files"])
    machine.pull(ADDRESS, folder)
    assert hub.sent_twice() == 0


def test_partial_files_of_a_folder_are_resumed(machine: Machine, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.gguf.incomplete").write_bytes(NOISE[:7_000_000])
    machine.pull(GGUF, folder)
    assert (folder / "model.gguf").read_bytes() == NOISE
    assert hub.sent_bytes() == len(NOISE) - 7_000_000


def test_file_of_the_user_is_never_replaced(machine: Machine, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"mine")
    message, hint = machine.fail(GGUF, folder)
    assert message == (
        f"`{folder / 'model.gguf'}` is there already, and is not what `owner/model-GGUF` has under that name"
    )
    assert "`--dir`" in hint
    assert (folder / "model.gguf").read_bytes() == b"mine"
    assert hub.sent == []
