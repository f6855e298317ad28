"""`llmdeploy models` and `models rm`: listing and removing models."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from llmdeploy.cli import models_rm
from llmdeploy.config import Settings
from llmdeploy.engines.ollama.api import Daemon
from llmdeploy.engines.ollama.documents import Installed
from llmdeploy.engines.ollama.removal import daemon_with
from llmdeploy.engines.ollama.settings import OllamaSettings
from llmdeploy.errors import LlmdeployError, NotPermitted
from llmdeploy.models.reference import HubRepo
from llmdeploy.models.store import Store
from llmdeploy.models.stores import folders
from llmdeploy.models.stores.installed import InstalledModel
from llmdeploy.service.process import ProcessId
from llmdeploy.service.state import Record, Situation
from tests.conftest import OwnOllama, Result, World, until
from tests.hub_server import COMMIT, Hub, serve
from tests.model_places import MMPROJ, WEIGHTS, fetch, lmstudio, pack, put, selftest_layers
from tests.ollama_replay import closed_port

if TYPE_CHECKING:
    from collections.abc import Iterator

GGUF, HF = "owner/x-GGUF", "owner/x"
FILES: dict[str, dict[str, Any]] = {
    GGUF: {"x-F16.gguf": WEIGHTS.read_bytes(), "x-Q8_0.gguf": b"8" * 8000, "mmproj-x-F16.gguf": MMPROJ.read_bytes()},
    HF: {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"s" * 5000},
}
SMALL, LARGE = f"hf://{GGUF}:Q8_0", f"hf://{GGUF}:F16"


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Fill the Hub's cache with huggingface_hub; return its folder."""
    home = tmp_path_factory.mktemp("hf")
    with serve(Hub(files=FILES)) as hub:
        for repo, files in FILES.items():
            fetch(hub.url, home, repo, *files)
    return home / "hub"


@pytest.fixture
def machine(world: World, fetched: Path) -> World:
    """Return a machine with models in every place."""
    home = world.folder / "home"
    shutil.copytree(fetched, world.folder / "hf" / "hub", symlinks=True)
    world.environment |= {"HF_HOME": str(world.folder / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    pack(home / ".ollama" / "models", "qwen3/8b", *selftest_layers())
    lmstudio(home, "lm/y-GGUF", y_F16=WEIGHTS)
    return world


@pytest.fixture
def cache(machine: World) -> Path:
    return machine.folder / "hf" / "hub"


def stored(world: World) -> dict[str, dict[str, Any]]:
    result = world.run("models", "--json")
    assert result.status == 0, result.text
    text = result.stdout.replace("[FOLDER]", str(world.folder))
    return {one["name"]: one for one in json.loads(text)["stored"]}


def removed(result: Result) -> dict[str, Any]:
    assert result.status == 0, result.text
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def taken(folder: Path) -> int:
    """Count the bytes of the files in a folder, each once, as `du` does."""
    found = [file.lstat() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum({it.st_ino: it.st_size for it in found}.values())


# --- The list


def test_models_are_listed_as_a_table(machine: World) -> None:
    result = machine.run("models")
    assert result.status == 0, result.text
    head, *rows = (line.split("  ") for line in result.stdout.splitlines())
    assert [word.strip() for word in head if word] == ["NAME", "SIZE", "ENGINES", "PLACE", "LAST USED"]
    cells = [[word.strip() for word in row if word] for row in rows]
    assert [row[0] for row in cells] == [
        f"hf://{HF}", LARGE, SMALL, "ollama://qwen3:8b",
        "selftest", "[FOLDER]/home/.lmstudio/models/lm/y-GGUF/y-F16.gguf",
    ]  # fmt: skip
    assert cells[1][1:] == ["2 MiB", "llamacpp, ollama", "Hub", "today"]
    assert cells[0][1:] == ["5 KiB", "vllm", "Hub", "today"]
    assert cells[3][3] == "Ollama"
    assert cells[5][3] == "LM Studio"
    assert " in all\n" in result.stderr
    assert "`llmdeploy models catalog` lists models to download" in result.stderr


def test_the_list_as_json_keeps_the_catalog(machine: World) -> None:
    document = json.loads(machine.run("models", "--json").stdout)
    assert {"selftest", "qwen3:8b"} <= {row["name"] for row in document["models"]}
    [one] = [one for one in document["stored"] if one["name"] == SMALL]
    assert one["last_used"] == "[WHEN]"
    assert {key: one[key] for key in ("place", "bytes", "frees_bytes", "engines", "revisions", "unfinished_bytes")} == {
        "place": "hub", "bytes": 8000 + MMPROJ.stat().st_size, "frees_bytes": 8000,
        "engines": ["llamacpp", "ollama"], "revisions": [COMMIT], "unfinished_bytes": 0,
    }  # fmt: skip
    names = {one["name"]: one["bytes"] for one in document["stored"]}
    assert document["stored_bytes"] == sum(names.values()) - MMPROJ.stat().st_size, "the projector is shared"


def test_every_listed_name_can_be_used(machine: World) -> None:
    for name, one in stored(machine).items():
        assert (
            [it["name"] for it in removed(machine.run("models", "rm", name, "--dry-run", "--json"))["removed"]]
            == [name]
            if one["place"] in {"hub", "ollama"}
            else True
        )


def test_unfinished_downloads_are_listed_with_the_command_to_continue(machine: World, cache: Path) -> None:
    put(cache / "models--owner--new" / "blobs" / f"{'a' * 64}.llmdeploy.incomplete", b"p" * 5000)
    result = machine.run("models")
    assert "hf://owner/new" in result.stdout.splitlines()[-1], "last"
    assert "unfinished" in result.stdout.splitlines()[-1]
    assert "`hf://owner/new` has 5 KiB of an unfinished download: `llmdeploy pull hf://owner/new --engine vllm`" in (
        result.stderr
    )
    done = machine.run("models", "rm", "hf://owner/new", "--yes")
    assert (done.status, "removed, 5 KiB freed\n" in done.stderr) == (0, True)
    assert not (cache / "models--owner--new").exists()


def on_a_terminal(world: World, *arguments: str, columns: int = 80, answer: bytes = b"") -> tuple[int, str]:
    """Run a command on a terminal; return the screen and the exit status."""
    ours, theirs = pty.openpty()
    environment = {**world.environment, "COLUMNS": str(columns)}
    command = subprocess.Popen(
        world.command(*arguments), cwd=world.work, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # all of it is closed
            break
        seen += piece
        if answer and b"[y/N]" in seen:
            os.write(ours, answer)
            answer = b""
    os.close(ours)
    return command.wait(20), seen.decode().replace("\r", "")


def test_a_narrow_terminal_shows_whole_words(machine: World) -> None:
    status, seen = on_a_terminal(machine, "models", columns=40)
    assert status == 0
    assert f"{LARGE}\n  2 MiB, Hub, today\n  llamacpp, ollama\n" in seen
    _, wide = on_a_terminal(machine, "models", columns=200)
    assert wide.startswith("NAME  ")


# --- Removing


@pytest.mark.parametrize("names", [(SMALL,), (LARGE,), (f"hf://{GGUF}",), (f"hf://{HF}",), (SMALL, f"hf://{HF}")])
def test_dry_run_predicts_what_is_freed(machine: World, cache: Path, names: tuple[str, ...]) -> None:
    before = {repo: taken(cache / f"models--{repo.replace('/', '--')}" / "blobs") for repo in FILES}
    told = removed(machine.run("models", "rm", *names, "--dry-run", "--json"))
    assert told["dry_run"]
    assert taken(cache) >= sum(before.values()), "nothing is gone"
    done = removed(machine.run("models", "rm", *names, "--yes", "--json"))
    after = sum(taken(cache / f"models--{repo.replace('/', '--')}" / "blobs") for repo in FILES)
    assert done["freed_bytes"] == told["freed_bytes"] == sum(before.values()) - after > 0
    assert {one["name"] for one in done["removed"]}.isdisjoint(stored(machine))


def test_removing_one_quantization_keeps_the_others(machine: World, cache: Path) -> None:
    assert machine.run("models", "rm", SMALL, "--yes").status == 0
    snapshot = cache / "models--owner--x-GGUF" / "snapshots" / COMMIT
    assert {file.name for file in snapshot.iterdir()} == {"x-F16.gguf", "mmproj-x-F16.gguf"}
    assert stored(machine)[LARGE]["engines"] == ["llamacpp", "ollama"]
    assert machine.run("models", "rm", LARGE, "--yes").status == 0
    assert not (cache / "models--owner--x-GGUF").exists(), "the last one takes the repository with it"


def test_removing_a_hard_linked_file_frees_nothing(machine: World, cache: Path) -> None:
    blob = (cache / "models--owner--x-GGUF" / "snapshots" / COMMIT / "x-Q8_0.gguf").resolve()
    os.link(blob, machine.folder / "mine.gguf")
    result = machine.run("models", "rm", SMALL, "--yes")
    assert "removed, 0 B freed" in result.stderr
    assert (machine.folder / "mine.gguf").read_bytes() == b"8" * 8000


def test_removal_can_be_declined_on_a_terminal(machine: World) -> None:
    status, seen = on_a_terminal(machine, "models", "rm", SMALL, answer=b"n\n")
    assert status == 1
    assert f"`{SMALL}`, 601 KiB, in `{machine.folder}/hf/hub`" in seen
    assert "x-Q8_0.gguf" in seen
    assert "frees 8 KiB" in seen
    assert "nothing was removed" in seen
    assert SMALL in stored(machine)
    status, seen = on_a_terminal(machine, "models", "rm", SMALL, answer=b"y\n")
    assert (status, "removed, 8 KiB freed" in seen) == (0, True)
    assert SMALL not in stored(machine)


def test_removal_without_a_terminal_needs_yes(machine: World) -> None:
    result = machine.run("models", "rm", SMALL)
    assert (result.status, result.stderr.splitlines()[-1]) == (2, "hint: add `--yes` to agree")
    assert SMALL in stored(machine)


def test_model_being_downloaded_is_kept(machine: World, cache: Path) -> None:
    locks = cache / ".locks" / f"models--{HF.replace('/', '--')}"
    with FileLock(locks / "0123.lock"):
        result = machine.run("models", "rm", HF, "--yes")
    assert (result.status, result.stderr.splitlines()[0]) == (1, f"error: files of `hf://{HF}` are being downloaded")
    assert f"hf://{HF}" in stored(machine)
    assert machine.run("models", "rm", HF, "--yes").status == 0


def test_unknown_name(machine: World) -> None:
    result = machine.run("models", "rm", "hf://owner/x-GUF", "--yes", "--json")
    assert (result.status, json.loads(result.stdout)["error"]["code"]) == (1, "model_not_found")
    assert f"`hf://{HF}`" in result.stdout


def test_files_of_other_programs_are_refused_with_a_command(machine: World) -> None:
    path = machine.folder / "home" / ".lmstudio" / "models" / "lm" / "y-GGUF" / "y-F16.gguf"
    result = machine.run("models", "rm", path, "--yes")
    assert (result.status, result.stderr) == (
        1,
        "error: `[FOLDER]/home/.lmstudio/models/lm/y-GGUF/y-F16.gguf` is LM Studio's, and llmdeploy removes no files "
        "of others\nhint: remove it there, or with `rm [FOLDER]/home/.lmstudio/models/lm/y-GGUF/y-F16.gguf`\n",
    )
    assert path.exists()
    assert "ships with llmdeploy" in machine.run("models", "rm", "selftest", "--yes").stderr


def test_model_in_a_pulled_folder_is_listed_served_and_removed(world: World) -> None:
    """Check also that such files spare a download if the cache does not have them."""
    world.environment |= {"HF_HOME": str(world.folder / "hf"), "LLMDEPLOY_DATA_DIR": str(world.folder / "data")}
    here = world.folder / "here"
    with serve(Hub(files={GGUF: {"x-F16.gguf": WEIGHTS.read_bytes(), "README.md": b"# x"}})) as hub:
        world.environment["HF_ENDPOINT"] = hub.url
        pulled = world.run("pull", LARGE, "--dir", here)
        assert pulled.status == 0, pulled.text
        assert stored(world)[str(here / "x-F16.gguf")]["detail"] == f"from `hf://{GGUF}`"
        sent = hub.sent_bytes("x-F16.gguf")
        result = world.run("serve", LARGE, "--detach")
        assert result.status == 0, result.text
        assert "uses `[FOLDER]/here/x-F16.gguf`: 2 MiB not fetched" in result.stderr
        assert hub.sent_bytes("x-F16.gguf") == sent
        assert "is served now" in world.run("models", "rm", here, "--yes").stderr
        assert world.run("stop").status == 0
        again = world.run("pull", LARGE, "--dir", world.folder / "there")
        assert again.status == 0, again.text
        assert hub.sent_bytes("x-F16.gguf") >= 2 * WEIGHTS.stat().st_size, "a folder that is named is filled"
    assert world.run("models", "rm", here, "--yes").status == 0
    assert not here.exists()


def test_only_pulled_files_of_a_folder_are_removed(machine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = machine.folder / "data"
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(data))
    machine.environment["LLMDEPLOY_DATA_DIR"] = str(data)
    here = machine.folder / "here"
    folders.save(here, HubRepo(GGUF), ["sub/x-F16.gguf", "x-Q8_0.gguf"])
    for name in ("sub/x-F16.gguf", "x-Q8_0.gguf.incomplete", "mine.txt"):
        put(here / name, b"x")
    assert str(here / "sub" / "x-F16.gguf") in stored(machine)
    assert machine.run("models", "rm", here, "--yes").status == 0
    assert [file.name for file in here.iterdir()] == ["mine.txt"]
    assert not [one for one in stored(machine).values() if one["root"] == str(here)]


def test_served_model_is_kept(machine: World) -> None:
    name = f"hf://{GGUF}/x-F16.gguf"
    assert machine.run("serve", name, "--detach").status == 0
    until(lambda: machine.record().get("receipt"))
    result = machine.run("models", "rm", LARGE, "--yes")
    assert (result.status, result.stderr) == (
        1,
        f"error: `{LARGE}` is served now\nhint: `llmdeploy stop` ends that\n",
    )
    assert machine.run("models", "rm", SMALL, "--yes").status == 0
    assert machine.run("stop").status == 0
    assert machine.run("models", "rm", LARGE, "--yes").status == 0


def test_ollamas_models_are_removed_only_through_its_daemon(machine: World) -> None:
    told = removed(machine.run("models", "rm", "ollama://qwen3:8b", "--dry-run", "--json"))
    assert told["freed_bytes"] > WEIGHTS.stat().st_size
    result = machine.run("models", "rm", "ollama://qwen3:8b", "--yes")
    assert result.status == 1
    assert "only Ollama itself removes its models, and it does not answer" in result.stderr
    assert "ollama serve" in result.stderr
    assert "ollama://qwen3:8b" in stored(machine)


@pytest.mark.ollama
def test_a_real_ollama_removes_its_own(machine: World, daemon: OwnOllama) -> None:
    machine.environment |= {"OLLAMA_HOST": daemon.url, "OLLAMA_MODELS": str(daemon.store)}
    pack(daemon.store, "mine/latest", *selftest_layers())
    pack(daemon.store, "other/latest", ("model", WEIGHTS))
    until(lambda: daemon.names() == {"mine:latest", "other:latest"})
    before = taken(daemon.store / "blobs")
    done = removed(machine.run("models", "rm", "ollama://mine", "--yes", "--json"))
    assert done["freed_bytes"] == before - taken(daemon.store / "blobs") > MMPROJ.stat().st_size
    assert daemon.names() == {"other:latest"}
    elsewhere = machine.folder / "elsewhere"
    pack(elsewhere, "theirs/latest", ("model", WEIGHTS))
    result = machine.run("models", "rm", "ollama://theirs", "--yes", OLLAMA_MODELS=str(elsewhere))
    assert (result.status, "has another store than the one with `theirs:latest`" in result.stderr) == (1, True)


def test_model_of_a_starting_service_or_switch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a record without a receipt, so that the files are not known yet."""
    one, other, third = (
        InstalledModel(HubRepo(f"owner/{name}"), "hub", tmp_path, (tmp_path / name,), ("vllm",), 0.0) for name in "xyz"
    )
    found = Store((one, other, third), ())
    record = Record("starting", "load", "owner/x", "x", "vllm", "", "", service=ProcessId(1, 1.0))
    record = replace(record, switch={"model": "hf://owner/y"})
    monkeypatch.setattr("llmdeploy.service.state.observe", lambda: Situation("starting", record))
    for model in (one, other):
        with pytest.raises(LlmdeployError, match="is served now"):
            models_rm._require_idle(found, [model])
    models_rm._require_idle(found, [third])


def test_ollamas_own_models_of_another_store_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Daemon, "models", lambda _: [Installed("qwen3:8b", 1, (), None, digest="ab" * 32)])
    settings = Settings(ollama=OllamaSettings(host="http://127.0.0.1:1"))
    assert daemon_with(settings, {"qwen3:8b": "ab" * 32}).url == "http://127.0.0.1:1"
    for name, digest in (("qwen3:8b", "cd" * 32), ("qwen3:4b", "ab" * 32)):
        with pytest.raises(NotPermitted, match="has another store than the one with"):
            daemon_with(settings, {name: digest})
