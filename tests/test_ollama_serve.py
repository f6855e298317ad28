"""serve, chat and stop with a real Ollama: with one that runs already, and with one that is started."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import httpx
import psutil
import pytest
from openai import OpenAI

from llmdeploy.config import Settings
from llmdeploy.engines.diagnosis import Exited
from llmdeploy.engines.ollama.api import Daemon
from llmdeploy.engines.ollama.engine import Ollama as Engine
from llmdeploy.engines.ollama.imports import Import
from llmdeploy.models.gguf import GgufModel
from llmdeploy.service.client import STOP_DEADLINE
from tests.conftest import EXAMPLES, SELFTEST, Ollama, OwnOllama, World, copy_selftest, free_port, read_until, until
from tests.ollama_replay import closed_port
from tests.tls_world import CERTIFICATE, reverse_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.ollama

SERVE = ("serve", "selftest", "--engine", "ollama")
RED, BLUE = EXAMPLES / "red.png", EXAMPLES / "blue.png"
WITHIN = 9.0
"""Seconds in which a stopped service must be gone, with all it started."""


@pytest.fixture
def attached(world: World, real_ollama: Ollama) -> Iterator[Ollama]:
    """Return an external daemon for the commands of this world; it must be unchanged after the test."""
    world.environment["OLLAMA_HOST"] = real_ollama.url
    before = real_ollama.aliases(), real_ollama.running()
    yield real_ollama
    world.run("stop")
    assert (real_ollama.aliases(), real_ollama.running()) == before


@pytest.fixture
def attached_alone(world: World, daemon: OwnOllama) -> OwnOllama:
    """Return an external daemon for this test alone."""
    world.environment["OLLAMA_HOST"] = daemon.url
    return daemon


@pytest.fixture
def own(world: World, ollama_program: Path) -> World:
    """Return a world in which no daemon runs and the program is installed."""
    return with_program(world, ollama_program)


def with_program(world: World, program: Path) -> World:
    world.environment["LLMDEPLOY_ENGINES_OLLAMA_PROGRAM"] = str(program)
    return world


def store_of(world: World) -> Path:
    """Return the store of a daemon that is started in this world."""
    return world.folder / "home" / ".ollama" / "models"


def aliases_in(store: Path) -> list[str]:
    """Return the names in a store that are not imports; no daemon runs."""
    manifests = [file for file in (store / "manifests").rglob("*") if file.is_file()]
    return [str(file) for file in manifests if "/llmdeploy/" not in str(file.relative_to(store))]


def served(world: World, *arguments: str | Path) -> dict[str, Any]:
    """Serve in the background on the port of this world; return the document of `--json`."""
    result = world.run("serve", *arguments, "--engine", "ollama", "--detach", "--json")
    assert result.status == 0, result.text
    document: dict[str, Any] = json.loads(result.stdout.replace("[PORT]", str(world.port)))
    return document


def status(world: World) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(world.run("status", "--json").stdout.replace("[PORT]", str(world.port)))
    return document


def daemon_of(world: World) -> Ollama:
    """Return the daemon behind the address of the service."""
    return Ollama(json.loads((world.state / "deployment.json").read_text())["server_url"])


def answered(world: World) -> str:
    """Return the answer to an application, which waits for as long as the gateway holds its request."""
    body = {"model": "selftest", "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}
    address = f"http://127.0.0.1:{world.port}/v1/chat/completions"
    answer = httpx.post(address, json=body, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def refused(world: World, *arguments: str | Path, **variables: str) -> dict[str, str]:
    """Return the error of a `serve` that fails."""
    result = world.run("serve", *arguments, "--engine", "ollama", "--detach", "--json", **variables)
    assert result.status == 1, result.text
    error: dict[str, str] = json.loads(result.stdout)["error"]
    return error


# --- The same words as on llama.cpp

QUESTIONS: tuple[tuple[str | Path, ...], ...] = (
    ("hello",),
    ("Count to 5",),
    ("Count to 7", "--system", "You are a helpful assistant."),
    ("sing", "--max-tokens", "5"),
    ("What color is this?", "--image", RED),
    ("What color is this?", "--image", RED, "--image", BLUE),
)


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("llamacpp") / "world")
    assert world.run("serve", "selftest", "--detach").status == 0
    yield world
    world.close()


@pytest.fixture(scope="module", params=["attached", "own"])
def serving(
    request: pytest.FixtureRequest, real_ollama: Ollama, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Return a world that serves the self-test model on Ollama, in both ways."""
    world = World(tmp_path_factory.mktemp("serving") / "world")
    if request.param == "attached":
        world.environment["OLLAMA_HOST"] = real_ollama.url
    else:
        with_program(world, request.getfixturevalue("ollama_program"))
    served(world, "selftest")
    yield world
    world.close()
    assert real_ollama.aliases() == set()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda it: " ".join(str(word).rpartition("/")[2] for word in it))
def test_same_answers_as_on_llama_cpp(serving: World, llamacpp: World, question: tuple[str | Path, ...]) -> None:
    result = serving.run("chat", *question, "--temperature", "0")
    expected = llamacpp.run("chat", *question, "--temperature", "0")
    assert expected.status == 0, expected.text
    assert result.text == expected.text
    if RED in question:
        assert result.stdout in {"The image is red.\n", "The images are red and blue.\n"}


def test_openai_client_is_answered_under_the_users_name(serving: World) -> None:
    document = status(serving)
    assert document["served_name"] == "selftest"
    with OpenAI(base_url=document["base_url"], api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "Count to 5"}]
        whole = client.chat.completions.create(model="selftest", messages=messages, temperature=0)
        stream = client.chat.completions.create(
            model="selftest", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert whole.choices[0].message.content == "1 2 3 4 5"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "1 2 3 4 5"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 10


def test_status_shows_all_of_a_deployment(serving: World) -> None:
    document = status(serving)
    assert document["state"] == "ready"
    assert (document["engine"], document["context"], document["parallel"]) == ("ollama", 8192, 1)
    assert document["capabilities"] == ["text", "image"]
    assert document["engine_version"][0].isdigit()
    ours = document["server_pid"] is not None
    assert document["base_url"] == f"http://127.0.0.1:{serving.port}/v1"  # whoever's the daemon is
    assert (daemon_of(serving).url == serving.environment["OLLAMA_HOST"]) is not ours
    assert daemon_of(serving).url != f"http://127.0.0.1:{serving.port}"
    text = serving.run("status").stdout
    assert "ready: `selftest` on ollama\n" in text
    assert f"  loaded   {document['engine_detail']}\n" in text
    assert "B on the " in document["engine_detail"]  # 461 MiB on the CPU
    assert "  context  8192 tokens a request, 1 at a time\n" in text


def test_model_stays_in_memory_with_the_planned_context(serving: World) -> None:
    ollama = daemon_of(serving)
    [model] = ollama.running()
    assert (model["name"], model["context_length"]) == ("selftest:latest", 8192)
    assert int(model["expires_at"][:4]) > 2200
    for _ in range(2):  # an application's requests change nothing of it
        assert serving.run("chat", "Count to 2", "--temperature", "0").stdout == "1 2\n"
    [after] = ollama.running()
    assert int(after["expires_at"][:4]) > 2200
    assert after["context_length"] == 8192
    assert {name for name in ollama.aliases() if "selftest" in name} == {"selftest:latest"}


def test_doctor_shows_what_runs(serving: World) -> None:
    [check] = [it for it in json.loads(serving.run("doctor", "--json").stdout)["checks"] if it["name"] == "ollama"]
    if status(serving)["server_pid"]:
        assert "not running: `llmdeploy serve` starts it" in check["detail"]  # at the user's address nothing runs
    else:
        url = serving.environment["OLLAMA_HOST"]
        assert check["detail"].startswith("Ollama ")
        assert f" at `{url}`" in check["detail"]
        assert ", computes on the " in check["detail"]
    assert check["status"] == "ok"


# --- The end


def test_stop_leaves_an_external_daemon_as_it_was(world: World, daemon: OwnOllama) -> None:
    world.environment["OLLAMA_HOST"] = daemon.url
    assert daemon.process is not None
    document = served(world, "selftest", "--context", "4096")
    assert document["server_pid"] is None
    assert [model["context_length"] for model in daemon.running()] == [4096]
    assert len(daemon.tree()) == 2
    began = time.monotonic()
    result = world.run("stop")
    assert result.text == "exit 0\n--- stdout\n--- stderr\nstopping `selftest` (process [PID])\nstopped\n"
    assert time.monotonic() - began < WITHIN
    assert daemon.running() == []
    assert daemon.aliases() == set()
    assert all(name.startswith("llmdeploy/selftest-f16:") for name in daemon.names())
    assert daemon.process.poll() is None
    until(lambda: len(daemon.tree()) == 1)
    assert not world.processes()


def test_stop_ends_a_daemon_that_was_started_and_all_its_processes(own: World) -> None:
    document = served(own, "selftest")
    tree = psutil.Process(document["server_pid"]).children(recursive=True)
    assert [process.name() for process in tree] == ["llama-server"]
    began = time.monotonic()
    assert own.run("stop").status == 0
    assert time.monotonic() - began < WITHIN
    assert not own.processes()
    assert not any(process.is_running() for process in tree)
    assert aliases_in(store_of(own)) == []


def test_stop_does_not_wait_for_a_daemon_that_hangs(world: World, attached_alone: OwnOllama) -> None:
    served(world, "selftest")
    assert attached_alone.process is not None
    attached_alone.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert world.run("stop").status == 0
        assert time.monotonic() - began < STOP_DEADLINE
        assert not world.processes()
    finally:
        attached_alone.process.send_signal(signal.SIGCONT)
    served(world, "selftest", "--context", "4096")  # which finds what was left
    assert attached_alone.aliases() == {"selftest:latest"}
    assert [model["context_length"] for model in attached_alone.running()] == [4096]


@pytest.mark.parametrize("store", ["linked", "pushed"])
def test_model_that_ollama_cannot_load_is_reported_and_leaves_nothing(
    world: World, attached_alone: OwnOllama, store: str
) -> None:
    if store == "linked":
        world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    source = copy_selftest(world.folder / "source", mmproj=False)
    rewritten(source, world.work / "broken.gguf", {}, without="blk.1.attn_q.weight")
    error = refused(world, "./broken.gguf")
    words = "check_tensor_dims: tensor 'blk.1.attn_q.weight' not found"
    assert (error["code"], error["message"]) == ("model_invalid", f"Ollama cannot load `broken`: {words}")
    assert error["hint"]
    assert attached_alone.aliases() == set()
    assert attached_alone.running() == []
    assert not world.processes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_signal_ends_the_service_in_order(world: World, attached: Ollama, number: int, code: int) -> None:
    before = attached.aliases()
    service = world.start(*SERVE, bufsize=0)
    read_until(service, "ready")
    service.send_signal(number)
    service.communicate(timeout=WITHIN)
    assert service.returncode == code
    assert attached.running() == []
    assert attached.aliases() == before
    assert not world.processes()


MOMENTS = ("checking", "reaching ollama", "fetching the weights", "loading the model", "ready")


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_an_attached_daemon_as_it_was(
    world: World, attached_alone: OwnOllama, moment: str
) -> None:
    interrupted(world, moment)
    assert attached_alone.aliases() == set()
    until(lambda: attached_alone.running() == [])
    assert not world.processes()


@pytest.mark.parametrize("moment", ["starting ollama" if it == "reaching ollama" else it for it in MOMENTS])
def test_ctrl_c_at_any_moment_leaves_no_started_daemon(own: World, moment: str) -> None:
    interrupted(own, moment)
    assert aliases_in(store_of(own)) == []
    assert not own.processes()


def interrupted(world: World, moment: str) -> None:
    world.environment.pop("PYTHONWARNINGS")  # an interrupted interpreter may warn of what it had no time to close
    service = world.start(*SERVE, bufsize=0)
    read_until(service, moment)
    service.send_signal(signal.SIGINT)
    _, stderr = service.communicate(timeout=10)
    assert service.returncode == 130, stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert world.run("status").stdout == "nothing is served\n"


# --- Killed


def test_after_kill_9_of_the_service_stop_clears_alias_and_memory(world: World, attached: Ollama) -> None:
    killed(world, attached)
    said = "`selftest` had already ended; its record is cleared"
    assert world.run("stop").text == f"exit 0\n--- stdout\n--- stderr\n{said}\n"
    assert attached.running() == []
    assert attached.aliases() == set()


def test_after_kill_9_of_the_service_the_next_serve_clears_alias_and_memory(world: World, attached: Ollama) -> None:
    killed(world, attached)
    copy_selftest(world.work).rename(world.work / "mine.gguf")
    served(world, "./mine.gguf")
    assert attached.aliases() == {"mine:latest"}
    assert [model["name"] for model in attached.running()] == ["mine:latest"]


def killed(world: World, ollama: Ollama) -> None:
    """Kill a service with -9 while it serves on an external daemon."""
    os.kill(served(world, "selftest")["service_pid"], signal.SIGKILL)
    until(lambda: not world.processes())
    assert status(world)["state"] == "crashed"
    assert "selftest:latest" in ollama.aliases()
    assert ollama.running()


def test_started_daemon_ends_after_kill_9_of_the_service(own: World) -> None:
    os.kill(served(own, "selftest")["service_pid"], signal.SIGKILL)
    until(lambda: not own.processes(), WITHIN)
    served(own, "selftest")
    assert own.run("stop").status == 0
    assert aliases_in(store_of(own)) == []


@pytest.mark.parametrize("command", ["stop", "serve"])
def test_started_daemon_is_found_after_kill_9_of_service_and_watchdog(own: World, command: str) -> None:
    document = served(own, "selftest")
    guard = psutil.Process(document["server_pid"]).parent()
    assert guard is not None
    os.kill(document["service_pid"], signal.SIGSTOP)  # it must not notice that its guard goes
    guard.kill()
    os.kill(document["service_pid"], signal.SIGKILL)
    # Nothing may be asked of it now: without a reader of its log it dies of the next line, and leaves its llama-server.
    until(lambda: {process.name() for process in own.processes()} == {"ollama", "llama-server"})
    if command == "serve":
        again = served(own, "selftest")
        assert again["server_pid"] != document["server_pid"]
        assert own.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
        assert own.run("stop").status == 0
        assert aliases_in(store_of(own)) == []
    assert own.run("stop").status == 0
    until(lambda: not own.processes(), 3)


def test_started_daemon_that_is_killed_is_started_again(own: World) -> None:
    killed = served(own, "selftest")["server_pid"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: status(own)["state"] == "starting", 3)
    began = time.monotonic()
    assert answered(own) == "1 2 3"  # asked while there was none
    assert time.monotonic() - began < WITHIN
    assert status(own)["state"] == "ready"
    assert status(own)["server_pid"] != killed
    assert own.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    until(lambda: len([it for it in own.processes() if it.name() == "llama-server"]) == 1, WITHIN)


# Commands with shorter waits: they would take minutes else.
HASTE = """
import sys
from llmdeploy.service import server_process, supervisor
server_process.PATIENCE, server_process.LOOK, supervisor.KEEP = {patience}, 0.1, 0.2
from llmdeploy.__main__ import main
sys.exit(main())
"""


def serve_in_haste(world: World, *, patience: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-c", HASTE.format(patience=patience), *SERVE]
    service = subprocess.Popen(
        command, cwd=world.work, env=world.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    read_until(service, "ready")
    return service


def test_external_daemon_that_goes_away_is_reported(world: World, attached_alone: OwnOllama) -> None:
    service = serve_in_haste(world, patience=0.5)
    attached_alone.stop()
    words = f"the server ended while it served: Ollama at `{attached_alone.url}` has not answered for 0.5 s"
    until(lambda: status(world)["down"] == words)
    assert status(world)["state"] == "starting"
    attached_alone.start()
    assert answered(world) == "1 2 3"
    until(lambda: status(world)["state"] == "ready")
    service.send_signal(signal.SIGINT)
    stdout, stderr = service.communicate(timeout=10)
    assert f"{words}; it is used again once it answers\n" in stderr.decode()
    assert stdout == f"http://127.0.0.1:{world.port}/v1\n".encode()


def test_external_daemon_that_comes_back_gets_the_model_again(world: World, attached_alone: OwnOllama) -> None:
    service = serve_in_haste(world, patience=30)
    attached_alone.stop()
    with ThreadPoolExecutor(1) as application:
        answer = application.submit(answered, world)
        until(lambda: httpx.get(f"http://127.0.0.1:{world.port}/health", trust_env=False).status_code == 503)
        attached_alone.start()
        assert answer.result() == "1 2 3"  # asked while there was none
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    # And it is kept for good again, which an application's request alone does not do.
    until(lambda: [int(model["expires_at"][:4]) > 2200 for model in attached_alone.running()] == [True])
    [model] = attached_alone.running()
    assert (model["name"], model["context_length"]) == ("selftest:latest", 8192)
    service.send_signal(signal.SIGINT)
    service.communicate(timeout=10)
    assert attached_alone.running() == []
    assert attached_alone.aliases() == set()


def test_model_that_was_unloaded_is_loaded_again(world: World, attached_alone: OwnOllama) -> None:
    service = serve_in_haste(world, patience=30)
    attached_alone.ask("/api/generate", {"model": "selftest", "keep_alive": 0})
    until(lambda: [model["name"] for model in attached_alone.running()] == ["selftest:latest"])
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=10)
    assert attached_alone.running() == []


# --- A start that is cut short

SLOW_NAME = """
import sys, time
from llmdeploy.engines.ollama.api import Daemon
create = Daemon.create_alias
def slowly(*arguments, **options):
    print("naming", file=sys.stderr, flush=True)
    time.sleep(1)
    create(*arguments, **options)
Daemon.create_alias = slowly
from llmdeploy.__main__ import main
sys.exit(main())
"""


def test_ctrl_c_while_the_alias_is_made_leaves_no_alias(world: World, attached_alone: OwnOllama) -> None:
    # The alias is made in a thread, which a cancellation does not end.
    service = subprocess.Popen(
        [sys.executable, "-P", "-c", SLOW_NAME, *SERVE], cwd=world.work, env=world.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    read_until(service, "naming")
    service.send_signal(signal.SIGINT)
    _, stderr = service.communicate(timeout=10)
    assert service.returncode == 130, stderr.decode()
    assert attached_alone.aliases() == set()
    assert attached_alone.running() == []


# --- Files of this machine become models of Ollama


def blobs(store: Path) -> dict[int, str]:
    """Return the files of a store by their inodes."""
    return {file.stat().st_ino: file.name for file in (store / "blobs").iterdir()}


def imports(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("llmdeploy/")}


def test_file_is_linked_into_the_store_of_a_started_daemon(own: World) -> None:
    weights = copy_selftest(own.work / "m")
    files = [weights, weights.with_name("mmproj-selftest-f16.gguf")]
    served(own, weights)
    found = blobs(store_of(own))
    assert all(file.stat().st_ino in found for file in files)
    assert own.run("chat", "What color is this?", "--image", RED, "--temperature", "0").stdout == "The image is red.\n"
    large = [name for name in found.values() if (store_of(own) / "blobs" / name).stat().st_size > 100_000]
    assert len(large) == 2


def test_file_is_linked_into_the_store_of_the_users_running_daemon(world: World, attached_alone: OwnOllama) -> None:
    # The store is known from the variables; once it holds a model, also from the daemon.
    weights = copy_selftest(world.work / "m")
    world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    served(world, weights)
    assert weights.stat().st_ino in blobs(attached_alone.store)
    world.run("stop")
    del world.environment["OLLAMA_MODELS"]
    other = copy_selftest(world.work / "n", mmproj=False)
    changed_copy(other, "general.size_label", "another")
    served(world, other)
    assert other.stat().st_ino in blobs(attached_alone.store)
    assert len(imports(attached_alone.names())) == 2


def test_file_is_pushed_if_the_store_cannot_be_written(world: World, attached_alone: OwnOllama) -> None:
    wrong = world.folder / "wrong"
    wrong.mkdir()
    world.environment["OLLAMA_MODELS"] = str(wrong)
    weights = copy_selftest(world.work / "m")
    served(world, weights)
    assert weights.stat().st_ino not in blobs(attached_alone.store)
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    assert [file for file in wrong.rglob("*") if file.is_file()] == []


def test_unwritable_store_is_reported_in_ollamas_words(world: World, attached_alone: OwnOllama) -> None:
    world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    weights = copy_selftest(world.work / "m")
    (attached_alone.store / "manifests" / "registry.ollama.ai").write_text("in the place of a folder")
    error = refused(world, weights)
    assert error["code"] == "request_failed"
    assert error["message"].startswith("Ollama says: ")
    assert [file.name for file in attached_alone.store.iterdir() if file.is_file()] == []


def test_full_disk_of_the_store_is_reported(world: World, attached_alone: OwnOllama) -> None:
    world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    weights = copy_selftest(world.work / "m", mmproj=False)
    tag = Import(Daemon(attached_alone.url), attached_alone.store, GgufModel(weights)).name().partition(":")[2]
    (attached_alone.store / f".{tag}").symlink_to("/dev/full")  # where the manifest is written first
    error = refused(world, weights)
    assert error["code"] == "download_failed"
    assert error["message"] == f"the disk of Ollama's store `{attached_alone.store}` is full"
    assert attached_alone.names() == set()
    assert [file.name for file in attached_alone.store.iterdir() if not file.is_dir()] == []


@pytest.mark.parametrize("way", ["linked", "pushed"])
def test_import_is_made_once(world: World, attached_alone: OwnOllama, way: str) -> None:
    if way == "linked":
        world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    weights = copy_selftest(world.work / "m")
    served(world, weights)
    world.run("stop")
    names, files = attached_alone.names(), blobs(attached_alone.store)
    result = world.run("serve", weights, "--engine", "ollama", "--detach")
    assert "fetching the weights" not in result.stderr, result.text
    world.run("stop")
    assert (attached_alone.names(), blobs(attached_alone.store)) == (names, files)
    # A copy of it elsewhere is the same model too.
    served(world, copy_selftest(world.work / "elsewhere"))
    assert imports(attached_alone.names()) == names


@pytest.mark.parametrize("way", ["replaced", "in place"])
@pytest.mark.parametrize("store", ["linked", "pushed"])
def test_file_that_changed_is_another_import(world: World, attached_alone: OwnOllama, store: str, way: str) -> None:
    if store == "linked":
        world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    weights = copy_selftest(world.work / "m", mmproj=False)
    served(world, weights)
    world.run("stop")
    before = attached_alone.names()
    changed_copy(weights, "general.size_label", "changed", in_place=way == "in place")
    served(world, weights)
    added = imports(attached_alone.names()) - before
    assert len(added) == 1
    shown = attached_alone.ask("/api/show", {"model": "selftest-f16"})
    assert shown["model_info"]["general.size_label"] == "changed"
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    # Every file of the store is what its name says.
    for file in (attached_alone.store / "blobs").iterdir():
        assert file.name == f"sha256-{hashlib.sha256(file.read_bytes()).hexdigest()}"


def changed_copy(file: Path, key: str, value: str | int, *, in_place: bool = False) -> None:
    """Change the value of a key of the GGUF at the same path; `in_place`: in the same inode."""
    new = file.with_suffix(".new")
    rewritten(file, new, {key: value})
    if in_place:
        file.write_bytes(new.read_bytes())
        new.unlink()
    else:
        new.replace(file)


def rewritten(source: Path, target: Path, values: dict[str, str | int], split: int = 0, without: str = "") -> None:
    """Write the GGUF with the gguf library, with other values, in parts of at most `split` tensors."""
    reader = gguf.GGUFReader(source)
    field = reader.fields["general.architecture"]
    writer = gguf.GGUFWriter(target, str(field.contents()), split_max_tensors=split)
    for name, one in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in values:
            continue
        writer.add_key_value(name, one.contents(), one.types[0], one.types[-1] if len(one.types) > 1 else None)
    for name, value in values.items():
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("store", ["linked", "pushed"])
def test_model_in_parts_is_one_model(world: World, attached_alone: OwnOllama, store: str) -> None:
    if store == "linked":
        world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    source = copy_selftest(world.folder / "source", mmproj=False)
    rewritten(source, world.work / "parts.gguf", {}, split=30)
    parts = sorted(file.name for file in world.work.glob("parts*"))
    assert parts == ["parts-00001-of-00002.gguf", "parts-00002-of-00002.gguf"]
    served(world, f"./{parts[0]}")
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    names = attached_alone.names()
    world.run("stop")
    served(world, f"./{parts[0]}")
    assert attached_alone.names() == names


def test_text_model_is_sent_no_image(world: World, attached_alone: OwnOllama) -> None:
    served(world, copy_selftest(world.work, mmproj=False))
    assert status(world)["capabilities"] == ["text"]
    log = attached_alone.home / "ollama.log"
    result = world.run("chat", "What color is this?", "--image", RED)
    assert result.status == 1
    assert "error: the model that is served sees no images\n" in result.stderr
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"model": "selftest-f16", "messages": [{"role": "user", "content": [picture]}]}
    answer = httpx.post(f"http://127.0.0.1:{world.port}/v1/chat/completions", json=body, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "image_not_supported")
    assert answer.json()["error"]["llmdeploy"]["source"] == "gateway"
    assert "/v1/chat/completions" not in log.read_text()
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    assert "/v1/chat/completions" in log.read_text()


def test_model_that_only_embeds_is_refused(world: World, attached_alone: OwnOllama) -> None:
    source = copy_selftest(world.folder / "source", mmproj=False)
    world.environment["OLLAMA_MODELS"] = str(attached_alone.store)
    rewritten(source, world.work / "embed.gguf", {"qwen2vl.pooling_type": 1})
    error = refused(world, "./embed.gguf")
    assert error["code"] == "model_invalid"
    assert "cannot chat: it makes embeddings" in error["message"]
    assert attached_alone.aliases() == set()
    assert attached_alone.running() == []


# --- Names


@pytest.fixture
def users_model(world: World, attached_alone: OwnOllama) -> str:
    """Make a model by hand, as a user does."""
    files = {}
    for file in (SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        httpx.post(f"{attached_alone.url}/api/blobs/sha256:{digest}", content=file.read_bytes(), trust_env=False)
        files[file.name] = f"sha256:{digest}"
    attached_alone.ask("/api/create", {"model": "mine", "files": files, "stream": False})
    return "mine"


@pytest.mark.parametrize("text", ["mine", "ollama://mine", "mine:latest"])
def test_model_of_the_user_is_served_under_its_name(
    world: World, attached_alone: OwnOllama, users_model: str, text: str
) -> None:
    before, digest = attached_alone.names(), attached_alone.digest("mine:latest")
    document = served(world, text)
    [model] = attached_alone.running()
    assert (model["name"], model["context_length"]) == ("mine:latest", document["context"])
    assert document["context"] == 4096  # Ollama's default here, not the plan's
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    assert world.run("stop").status == 0
    assert attached_alone.running() == []
    assert (attached_alone.names(), attached_alone.digest("mine:latest")) == (before, digest)


@pytest.mark.parametrize("text", ["MINE", "ollama://library/mine"])
def test_another_form_of_a_name_is_served(world: World, attached_alone: OwnOllama, users_model: str, text: str) -> None:
    """Ollama lists the name in its own form, and answers to each form."""
    served(world, text, "--timeout", "20")
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"


def test_file_with_capitals_in_its_name_is_served(world: World, attached_alone: OwnOllama) -> None:
    weights = copy_selftest(world.work).rename(world.work / "My-Model-Q4_K_M.gguf")
    assert served(world, weights, "--timeout", "20")["served_name"] == "My-Model-Q4_K_M"
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"


def test_context_that_the_users_own_model_cannot_have_is_refused(
    world: World, attached_alone: OwnOllama, users_model: str
) -> None:
    error = refused(world, "mine", "--context", "8192")
    assert error["code"] == "does_not_fit"
    assert error["message"] == "Ollama gives `mine` a context of 4096 tokens, not 8192"
    assert error["hint"].startswith("set `OLLAMA_CONTEXT_LENGTH=8192` where it is started")
    assert attached_alone.running() == []
    assert attached_alone.names() == {"mine:latest"}
    assert served(world, "mine", "--context", "4096")["context"] == 4096


def test_model_of_the_user_gets_the_context_on_a_started_daemon(
    own: World, ollama_program: Path, attached_alone: OwnOllama, users_model: str
) -> None:
    attached_alone.stop()
    own.environment["LLMDEPLOY_ENGINES_OLLAMA_MODELS"] = str(attached_alone.store)
    assert served(own, "mine", "--context", "6144")["context"] == 6144
    assert served_context(own) == 6144


def served_context(world: World) -> int:
    [model] = daemon_of(world).running()
    return int(model["context_length"])


def test_name_that_another_model_has_is_refused(world: World, attached_alone: OwnOllama, users_model: str) -> None:
    attached_alone.ask("/api/copy", {"source": "mine", "destination": "selftest"})
    attached_alone.ask("/api/generate", {"model": "selftest", "keep_alive": -1})
    digest, running = attached_alone.digest("selftest:latest"), attached_alone.running()
    assert running
    error = refused(world, "selftest")
    assert error == {
        "code": "model_invalid",
        "message": "Ollama has another model that is called `selftest`, and llmdeploy overwrites none",
        "hint": "give that one another name: `ollama cp selftest selftest-mine && ollama rm selftest`",
    }
    assert attached_alone.digest("selftest:latest") == digest
    assert attached_alone.running() == running  # the user's model is not let go either


def elsewhere(world: World) -> dict[str, str]:
    """Return the variables of another service of the same user."""
    return {"LLMDEPLOY_STATE_DIR": str(world.folder / "elsewhere"), "LLMDEPLOY_PORT": str(free_port())}


def test_name_that_another_llmdeploy_serves_is_refused(world: World, attached_alone: OwnOllama) -> None:
    served(world, "selftest")
    running = attached_alone.running()
    error = refused(world, "selftest", **elsewhere(world))
    assert error["code"] == "already_serving"
    assert error["message"] == (
        f"another llmdeploy serves `selftest` on this Ollama (state folder [FOLDER]/state of {socket.gethostname()})"
    )
    assert error["hint"] == "stop that one; where it is gone: `ollama rm selftest`"
    assert attached_alone.running() == running  # the other's model stays where it is
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"


def test_alias_of_another_llmdeploy_is_not_served_as_the_users_model(world: World, attached_alone: OwnOllama) -> None:
    served(world, "selftest")
    running = attached_alone.running()
    error = refused(world, "ollama://selftest", **elsewhere(world))
    assert error["code"] == "already_serving"
    assert attached_alone.running() == running
    assert attached_alone.aliases() == {"selftest:latest"}


def test_two_services_serve_under_two_names(world: World, attached_alone: OwnOllama) -> None:
    served(world, "selftest")
    mine = copy_selftest(world.work).rename(world.work / "mine.gguf")
    changed_copy(mine, "general.size_label", "mine")  # of one file of weights Ollama keeps one model in memory
    other = elsewhere(world)
    result = world.run("serve", "./mine.gguf", "--engine", "ollama", "--detach", **other)
    assert result.status == 0, result.text
    assert attached_alone.aliases() == {"selftest:latest", "mine:latest"}
    assert world.run("chat", "Count to 3", "--temperature", "0", **other).stdout == "1 2 3\n"
    assert world.run("stop", **other).status == 0
    assert attached_alone.aliases() == {"selftest:latest"}
    assert [model["name"] for model in attached_alone.running()] == ["selftest:latest"]


def test_copy_of_an_alias_that_the_user_made_is_kept(world: World, attached_alone: OwnOllama) -> None:
    served(world, "selftest")
    attached_alone.ask("/api/copy", {"source": "selftest", "destination": "copied"})
    attached_alone.ask("/api/create", {"model": "made", "from": "selftest", "system": "Be brief.", "stream": False})
    assert world.run("stop").status == 0
    assert attached_alone.aliases() == {"copied:latest", "made:latest"}


def test_stale_alias_is_replaced(world: World, attached_alone: OwnOllama) -> None:
    # A crash of the machine leaves the alias, and no record knows of it.
    killed(world, attached_alone)
    shutil.rmtree(world.state)
    world.state.mkdir(mode=0o700)
    stale = attached_alone.digest("selftest:latest")
    assert served(world, "selftest", "--context", "2048")["context"] == 2048
    assert attached_alone.digest("selftest:latest") != stale
    assert [model["context_length"] for model in attached_alone.running()] == [2048]
    assert attached_alone.aliases() == {"selftest:latest"}


# --- The context


def test_context_beyond_the_models_own_is_refused_before_anything_is_made(
    world: World, attached_alone: OwnOllama
) -> None:
    error = refused(world, "selftest", "--context", "8193")
    assert error == {
        "code": "does_not_fit",
        "message": "a context of 8193 tokens is longer than the model's own, 8192",
        "hint": "ask for at most that: `--context 8192`",
    }
    assert attached_alone.names() == set()
    assert attached_alone.running() == []
    assert not any((attached_alone.store / "blobs").iterdir())


def test_prompt_over_the_context_is_refused_with_both_numbers(world: World, attached: Ollama) -> None:
    base_url = served(world, "selftest", "--context", "2048")["base_url"]
    body = {"model": "selftest", "messages": [{"role": "user", "content": "a b c " * 1000}]}
    answer = httpx.post(f"{base_url}/chat/completions", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert (error["llmdeploy"]["source"], error["llmdeploy"]["engine"]) == ("engine", "ollama")
    numbers = re.fullmatch(r"the request has (\d+) tokens, and the context of `selftest` (\d+)", error["message"])
    assert numbers is not None, error
    assert int(numbers[1]) > 2048
    assert int(numbers[2]) == 2048
    result = world.run("chat", "a b c " * 1000)
    assert result.text == (
        "exit 1\n--- stdout\n--- stderr\n"
        f"error: the server refused the request (400): {numbers[0]}\n"
        "hint: send less, or serve the model again with a larger `--context`\n"
    )


# --- The cloud


def test_cloud_model_is_refused_unless_the_flag_allows_it(world: World, attached_alone: OwnOllama) -> None:
    attached_alone.stop()
    attached_alone.start(OLLAMA_NO_CLOUD="0")
    wish = {"model": "far", "from": "gpt-oss:20b", "remote_host": "https://ollama.com", "stream": False}
    attached_alone.ask("/api/create", wish)
    expected = {
        "code": "cloud_model",
        "message": "`NAME` runs at ollama.com, not here: the prompts would leave this machine",
        "hint": "`llmdeploy serve NAME --engine ollama --allow-cloud` allows it",
    }
    assert refused(world, "gpt-oss:20b-cloud") == {
        name: value.replace("NAME", "gpt-oss:20b-cloud") for name, value in expected.items()
    }
    error = refused(world, "far")
    assert (error["code"], error["hint"]) == ("cloud_model", expected["hint"].replace("NAME", "far"))
    assert "the prompts would leave this machine" in error["message"]
    assert attached_alone.aliases() == {"far:latest"}
    attached_alone.stop()
    attached_alone.start(OLLAMA_NO_CLOUD="1")  # it has the last word
    allowed = refused(world, "far", "--allow-cloud")
    assert allowed["code"] == "request_failed"
    assert "which its server has switched off (`OLLAMA_NO_CLOUD`)" in allowed["message"]


# --- A hostile environment


def test_dead_proxies_change_nothing(world: World, attached: Ollama) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    world.environment |= dict.fromkeys(names, dead)
    served(world, "selftest")
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
    assert world.run("status").status == 0
    assert world.run("stop").status == 0
    assert attached.running() == []
    assert attached.aliases() == set()


def test_daemon_over_https_and_under_a_path(world: World, attached_alone: OwnOllama) -> None:
    with reverse_proxy(attached_alone.url, "/ollama") as url:
        world.environment["OLLAMA_HOST"] = url
        error = refused(world, "selftest")
        assert error["code"] == "engine_missing"
        assert f"no safe connection to `{url}`" in error["message"]
        world.environment["SSL_CERT_FILE"] = str(CERTIFICATE)
        assert served(world, "selftest")["base_url"] == f"http://127.0.0.1:{world.port}/v1"
        assert answered(world) == "1 2 3"
        result = world.run("chat", "What color is this?", "--image", RED, "--temperature", "0")
        assert result.stdout == "The image is red.\n", result.text
        assert [model["name"] for model in attached_alone.running()] == ["selftest:latest"]
        assert world.run("stop").status == 0
    assert attached_alone.aliases() == set()
    assert attached_alone.running() == []


def test_dead_proxies_change_nothing_for_a_started_daemon(own: World) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    own.environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), dead)
    served(own, "selftest")
    assert own.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"


def test_healthy_log_has_no_cause(own: World) -> None:
    """Lines of a daemon that served well are not taken for the cause of its end."""
    served(own, "selftest")
    assert own.run("chat", "a b c " * 9000).status == 1
    assert own.run("chat", "Count to 3", "--temperature", "0").status == 0
    assert own.run("stop").status == 0
    lines = (own.state / "server.log").read_text().splitlines()
    assert len(lines) > 100
    assert Engine(Settings()).diagnose(lines, Exited(1)) is None
