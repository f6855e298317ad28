"""`llmdeploy pull` as a command, from a Hub on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.blobs import blob
from tests.conftest import SELFTEST, World, until
from tests.hub_server import COMMIT, Hub, closed_port, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

GGUF, HF = "owner/selftest-GGUF", "owner/selftest"
WEIGHTS, MMPROJ = "selftest-f16.gguf", "mmproj-selftest-f16.gguf"
LARGE = 30_000_000
"""Bytes of each of two files, more than one block of a download."""
BLOCK = 1024 * 1024
"""Bytes that are written at once."""


def tensors(size: int, byte: int) -> bytes:
    """Build a safetensors file with one tensor of this many bytes."""
    head = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes([byte]) * size


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {name: (SELFTEST / name).read_bytes() for name in (WEIGHTS, MMPROJ)}
    form = {file.name: file.read_bytes() for file in (SELFTEST / "hf").iterdir() if file.is_file()}
    form |= {f"model-0000{n}-of-00002.safetensors": tensors(LARGE, n) for n in (1, 2)}
    del form["model.safetensors"]
    with serve(Hub(files={GGUF: files, HF: form, "owner/words": {"data.parquet": b"PAR1"}})) as hub:
        yield hub


@pytest.fixture
def here(world: World, hub: Hub) -> World:
    """Return a world that uses this Hub."""
    world.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(world.folder / "hf")}
    return world


def document(world: World, *arguments: str) -> dict[str, Any]:
    result = world.run("pull", *arguments, "--json")
    assert result.status == 0, result.text
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_a_model_is_fetched_once_and_served_without_the_hub(here: World, hub: Hub) -> None:
    pulled = here.run("pull", GGUF)
    assert (pulled.status, pulled.stdout) == (0, f"hf://{GGUF}\n"), pulled.text
    assert "llamacpp: `hf://owner/selftest-GGUF`, 2 MiB to fetch into `[FOLDER]/hf/hub`" in pulled.stderr
    assert hub.sent_bytes() >= sum((SELFTEST / name).stat().st_size for name in (WEIGHTS, MMPROJ))

    before = hub.sent_bytes()
    again = here.run("pull", GGUF)
    assert "is here, 2 MiB" in again.stderr
    assert hub.sent_bytes() == before

    served = here.run("serve", GGUF, "--detach", HF_HUB_OFFLINE="1")
    assert served.status == 0, served.text
    image = Path(__file__).parents[1] / "examples" / "red.png"
    assert here.run("chat", "--image", image, "What color is this?").stdout == "The image is red.\n"


def test_a_dry_run_lists_files_and_sizes_and_fetches_nothing(here: World, hub: Hub) -> None:
    result = here.run("pull", GGUF, "--dry-run")
    assert result.status == 0, result.text
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["llamacpp", "2", "MiB", "-", WEIGHTS] in rows
    assert ["llamacpp", "593", "KiB", "-", MMPROJ] in rows
    assert "memory" in result.stderr
    assert not list((here.folder / "hf").rglob("blobs/*"))
    found = document(here, GGUF, "--dry-run")
    assert found["dry_run"] is True
    [one] = found["pulls"]
    assert one["revision"] == COMMIT
    assert one["missing_bytes"] == one["bytes"] == sum(file["size"] for file in one["files"])
    assert one["free_bytes"] > one["bytes"]
    assert one["needed_memory_bytes"] > 0


def test_only_what_the_engine_needs_is_fetched(here: World, hub: Hub) -> None:
    hub.files[HF] |= {"pytorch_model.bin": b"1" * 1000, "onnx/model.onnx": b"2" * 1000, "README.md": b"# Model"}
    [one] = document(here, HF, "--engine", "vllm")["pulls"]
    names = {file["name"] for file in one["files"]}
    assert {"config.json", "model-00001-of-00002.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "onnx/model.onnx"}
    assert hub.sent_bytes("pytorch_model.bin") == hub.sent_bytes("onnx/") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_pull_continues_without_fetching_bytes_twice(here: World, hub: Hub, number: signal.Signals) -> None:
    hub.failing, hub.stall_after = "model-00002", 20 * BLOCK + 1000
    blobs = here.folder / "hf" / "hub" / "models--owner--selftest" / "blobs"
    first, second = (blob(hub.files[HF][f"model-0000{n}-of-00002.safetensors"]).sha256 for n in (1, 2))
    part = blobs / f"{second}.llmdeploy.incomplete"
    command = here.start("pull", HF, "--engine", "vllm", "--no-fit")  # no header is read before
    until(lambda: (blobs / first).exists() and part.exists() and part.stat().st_size == 20 * BLOCK, 30)
    command.send_signal(number)
    _, err = command.communicate(timeout=5)
    assert command.returncode == (130 if number == signal.SIGINT else -number)
    assert b"Traceback" not in err
    assert (b"the same command continues" in err) == (number == signal.SIGINT)
    hub.stall_after = None

    kept = sum(file.stat().st_size for file in blobs.iterdir())
    before = hub.sent_bytes()
    [one] = document(here, HF, "--engine", "vllm", "--no-fit")["pulls"]
    assert one["missing_bytes"] == one["bytes"] - kept == hub.sent_bytes() - before
    snapshot = blobs.parent / "snapshots" / COMMIT
    for file in one["files"]:
        assert (snapshot / file["name"]).read_bytes() == hub.files[HF][file["name"]], file["name"]
    assert not list(blobs.glob("*.incomplete"))


def test_full_disk_is_reported_before_the_download_with_both_numbers(here: World, hub: Hub) -> None:
    disk = here.folder / "small"
    mount = f'mkdir -p "{disk}" && mount -t tmpfs -o size=40m tmpfs "{disk}" && exec "$@"'
    own_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*own_disk, "true"], capture_output=True).returncode:
        pytest.skip("no name spaces here: a small disk cannot be mounted")
    done = subprocess.run(
        [*own_disk, *here.command("pull", HF, "--engine", "vllm")],
        env=here.environment | {"HF_HOME": str(disk)},
        cwd=here.work,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error: `hf://owner/selftest` needs 57 MiB more, and the disk of " in done.stderr
    assert " has 40 MiB left\n" in done.stderr
    assert hub.sent_bytes("model-0000") < 1_000_000, "headers at most"


def test_a_folder_gets_the_files_and_serves_them(here: World) -> None:
    result = here.run("pull", f"hf://{GGUF}:F16", "--dir", "models")
    assert result.status == 0, result.text
    assert result.stdout == f"[FOLDER]/work/models/{WEIGHTS}\n"
    folder = here.work / "models"
    assert sorted(file.name for file in folder.iterdir()) == [MMPROJ, WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == (SELFTEST / WEIGHTS).read_bytes()
    assert not (folder / WEIGHTS).is_symlink()
    served = here.run("serve", folder / WEIGHTS, "--detach")
    assert served.status == 0, served.text


def test_a_tilde_is_the_home_folder(here: World) -> None:
    result = here.run("pull", f"hf://{GGUF}:F16", "--dir=~/models")
    assert (result.status, result.stdout) == (0, f"[FOLDER]/home/models/{WEIGHTS}\n"), result.text


def test_a_lock_pins_a_revision_for_pull_and_for_serve(here: World, hub: Hub) -> None:
    locked = here.run("pull", GGUF, "--lock")
    assert locked.status == 0, locked.text
    lock = (here.work / "llmdeploy.lock").read_text()
    assert COMMIT in lock
    changed = (SELFTEST / WEIGHTS).read_bytes()[:-1] + b"\1"
    newer = hub.commit(GGUF, {WEIGHTS: changed, MMPROJ: hub.files[GGUF][MMPROJ]})

    before = hub.sent_bytes()
    again = here.run("pull", "--locked")
    assert again.status == 0, again.text
    assert hub.sent_bytes() == before
    elsewhere = here.folder / "elsewhere"
    again = here.run("pull", "--locked", HF_HOME=str(elsewhere))
    assert again.status == 0, again.text
    assert [path.name for path in elsewhere.rglob("snapshots/*")] == [COMMIT]
    served = here.run("serve", GGUF, "--detach", HF_HOME=str(elsewhere), HF_HUB_OFFLINE="1")
    assert served.status == 0, served.text
    assert f"revision {COMMIT} of `hf://{GGUF}`, by `./llmdeploy.lock`" in served.stderr
    assert here.record()["receipt"]["revision"] == COMMIT
    assert here.record()["receipt"]["changed"] == []

    [blob] = (path for path in (here.folder / "hf").rglob("blobs/*") if path.stat().st_size == len(changed))
    blob.write_bytes(changed)
    again = here.run("pull", "--locked")
    assert again.status == 1
    assert "is not what `llmdeploy.lock` names: it was changed after its download\n" in again.stderr

    updated = here.run("pull", GGUF, "--lock")
    assert updated.status == 0, updated.text
    assert f'revision = "{newer}"' in (here.work / "llmdeploy.lock").read_text()


def test_a_branch_is_locked_to_its_commit(here: World, hub: Hub) -> None:
    hub.refs[GGUF] = {"stable": COMMIT}
    model = f"hf://{GGUF}@stable"
    assert here.run("pull", model, "--lock", "--no-fit").status == 0
    newer = hub.commit(GGUF, {WEIGHTS: b"GGUF newer", MMPROJ: hub.files[GGUF][MMPROJ]})
    hub.refs[GGUF]["stable"] = newer
    elsewhere = here.folder / "elsewhere"
    again = here.run("pull", "--locked", "--no-fit", HF_HOME=str(elsewhere))
    assert again.status == 0, again.text
    assert [path.name for path in elsewhere.rglob("snapshots/*")] == [COMMIT]


def test_folder_with_another_revision_is_not_used_for_the_main_branch(here: World, hub: Hub) -> None:
    hub.refs[GGUF] = {"old": COMMIT}
    assert here.run("pull", f"hf://{GGUF}@old", "--dir", "old", "--no-fit").status == 0
    newer = hub.commit(GGUF, {WEIGHTS: b"GGUF newer", MMPROJ: hub.files[GGUF][MMPROJ]})
    [one] = document(here, f"hf://{GGUF}:F16", "--dry-run", "--no-fit")["pulls"]
    assert one["revision"] == newer


def test_difference_from_the_lock_is_refused_before_the_download(here: World, hub: Hub) -> None:
    assert here.run("pull", GGUF, "--lock").status == 0
    hub.files[GGUF][WEIGHTS] = b"GGUF forged"
    before = hub.sent_bytes()
    result = here.run("pull", GGUF, "--locked", "--no-fit", HF_HOME=str(here.folder / "elsewhere"))
    assert result.status == 1, result.text
    assert f"error: `hf://{GGUF}` is not what `llmdeploy.lock` names: `{WEIGHTS}`\n" in result.stderr
    assert hub.sent_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--locked"], 1, "error: there is no `llmdeploy.lock` here"),
        (["--locked", "--lock"], 2, "error: `--lock` and `--locked` exclude each other"),
        (["--locked", "--quant", "Q8_0"], 2, "error: `--quant` and `--locked` exclude each other"),
        (["qwen3:8b", "--revision", "v1"], 2, "error: `qwen3:8b` has no revisions"),
        ([f"hf://{GGUF}:F16", "--quant", "Q8_0"], 2, "already names a quantization"),
        ([GGUF, "--source", "elsewhere"], 2, "error: `--source` must be `huggingface` or `modelscope`"),
        ([GGUF, "--dir", __file__], 2, "` is a file"),
        ([GGUF, "--engine", "mine"], 2, "error: `--engine` must be"),
        ([GGUF, "--quant", "Q3_K_S"], 1, "F16"),
        ([GGUF, "--revision", "v9"], 1, f"error: `{GGUF}` has no revision `v9`"),
        ([HF], 1, f"error: `hf://{HF}` holds no GGUF file; as a whole it runs on vLLM"),
        (["owner/words"], 1, "error: `hf://owner/words` holds no model that an engine here runs"),
        (["owner/words", "--engine", "vllm"], 1, "error: `hf://owner/words` holds no safetensors in its top folder"),
        (["hf://owner/nothing"], 1, "error: there is no repository `owner/nothing`, or it is private"),
    ],
)
def test_impossible_pulls_are_explained(here: World, arguments: list[str], status: int, told: str) -> None:
    result = here.run("pull", *arguments)
    assert result.status == status, result.text
    assert told in result.stderr
    assert "\nhint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_invalid_mirror(here: World) -> None:
    result = here.run("pull", GGUF, HF_ENDPOINT="mirror")
    assert "error: `HF_ENDPOINT` is `mirror`, which is not an address\n" in result.stderr


def test_no_network_names_the_alternatives(here: World) -> None:
    result = here.run("pull", GGUF, HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    assert result.status == 1
    assert "refuses the connection" in result.stderr
    for way in ("HF_ENDPOINT", "--source modelscope"):
        assert way in result.stderr
