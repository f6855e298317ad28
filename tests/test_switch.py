"""`switch`: the other deployment takes over, or everything is as it was, and no application notices."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llmdeploy import config
from llmdeploy.cli import switch as words
from llmdeploy.cli.events import AsText
from llmdeploy.config import Flags, Settings
from llmdeploy.engines.llamacpp.settings import LlamaCppSettings
from llmdeploy.models.reference import CatalogName
from llmdeploy.service import client, history
from llmdeploy.service.events import Note, Public, Step
from llmdeploy.service.history import PreviousDeployment
from llmdeploy.service.process import identify
from llmdeploy.service.state import Record
from tests.conftest import BUSY, EMBEDDED, SELFTEST, Result, World, copy_selftest, read_until, until, write_server
from tests.load import Load

CONFIG = '# how I serve\nmodel = "selftest"   # the small one\n\n[engines.llamacpp]\nthreads = 1\n'
WAYS = ("--beside", "--no-beside")
BLIND = """
for word in "$@"; do
  shift
  case "$word" in --mmproj) skip=1 ;; *) [ -n "$skip" ] && skip= || set -- "$@" "$word" ;; esac
done
"""
"""A `llama-server` that leaves out `--mmproj FILE`."""


NO_MODEL = "`` is not a model name, a file, a folder or a `hf://` address"


@pytest.fixture
def switching(world: World) -> Iterator[World]:
    """Return a world that serves the self-test model, as its configuration file says."""
    world.config.parent.mkdir(parents=True)
    world.config.write_text(CONFIG)
    world.environment["LLMDEPLOY_CONFIG"] = str(world.config)
    result = world.run("serve", "--detach")
    assert result.status == 0, result.text
    return world


def servers(world: World) -> list[psutil.Process]:
    """Return the servers that run in this world: processes that lead their group."""
    return [it for it in world.processes() if "watchdog.py" not in " ".join(it.cmdline()) and is_engine(it)]


def is_engine(process: psutil.Process) -> bool:
    return any("llamacpp.server_program" in word or word.endswith("/llama-server") for word in process.cmdline())


def answer(world: World, model: str = "selftest") -> str:
    """Return the answer of the deployment that serves now."""
    body = {"model": model, "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}
    response = httpx.post(f"http://127.0.0.1:{world.port}/v1/chat/completions", json=body, trust_env=False, timeout=30)
    return str(response.json()["choices"][0]["message"]["content"])


# --- It takes over


@pytest.mark.parametrize("way", WAYS)
def test_another_deployment_takes_over_and_no_request_fails(switching: World, way: str) -> None:
    before = switching.record()
    with Load(switching.port) as load:
        until(lambda: load.total > 10)
        result = switching.run("switch", "llamacpp", "--context", "4096", way)
        asked = load.total
        until(lambda: load.total > asked + 10 or load.failures)
    assert result.status == 0, result.text
    assert load.failures == []
    after = switching.record()
    assert (before["plan"]["context"]["value"], after["plan"]["context"]["value"]) == (8192, 4096)
    assert before["server"] != after["server"]
    assert before["service"] == after["service"]
    assert after["switch"] is None
    assert [it.pid for it in servers(switching)] == [after["server"]["pid"]]
    assert switching.config.read_text() == (
        '# how I serve\nmodel = "selftest"   # the small one\nengine = "llamacpp"\ncontext = 4096\n\n'
        "[engines.llamacpp]\nthreads = 1\n"
    )


def test_steps_and_phases_are_shown(switching: World) -> None:
    result = switching.run("switch", "--model", "selftest", "--parallel", "2", "--no-beside")
    steps = [
        "check: the engine, the weights, the memory",
        "prepare: start the new server",
        "prove: have it answer",
        "commit: write the configuration, point the address to it",
    ]
    said = [line.removeprefix("[TIME] ") for line in result.stderr.splitlines() if line.startswith("[TIME]")]
    assert [line for line in said if line in steps] == steps
    assert "          one after the other, as asked for\n" in result.stderr
    assert "          8192 tokens a request, 2 at a time, 1 threads; " in result.stderr
    assert result.stderr.endswith("serving `selftest` on llamacpp\n")
    assert result.stdout == "http://127.0.0.1:[PORT]/v1\n"


def test_json_prints_events_line_by_line_and_then_the_document(switching: World) -> None:
    result = switching.run("switch", "llamacpp", "--parallel", "2", "--json")
    *events, document = map(json.loads, result.stdout.splitlines())
    assert [it["step"] for it in events if it["event"] == "step"] == ["check", "prepare", "prove", "commit", "finish"]
    assert all("elapsed" in it for it in events)
    [room] = [it for it in events if it["event"] == "room"]
    assert room["beside"] is True
    assert (document["state"], document["parallel"], document["switch"]) == ("ready", 2, None)


def test_another_model_under_its_own_name(switching: World) -> None:
    copy_selftest(switching.work)
    (switching.work / "selftest-f16.gguf").rename(switching.work / "mine.gguf")
    (switching.work / "mmproj-selftest-f16.gguf").rename(switching.work / "mmproj-mine.gguf")
    result = switching.run("switch", "--model", "./mine.gguf")
    assert result.status == 0, result.text
    assert answer(switching, "mine") == "1 2 3"
    assert f'model = "{switching.work}/mine.gguf"' in switching.config.read_text()
    assert switching.run("stop").status == 0
    result = switching.run("serve", "--detach", "--json")
    assert json.loads(result.stdout)["served_name"] == "mine"


def test_followed_logs_continue_with_the_new_server(switching: World) -> None:
    logs = switching.start("logs", "--follow", "--lines", "1", bufsize=0)
    assert logs.stdout is not None
    assert logs.stdout.readline()  # it follows now
    assert switching.run("switch", "llamacpp", "--context", "4096").status == 0
    new = Path(switching.record()["log"])
    assert new.name == "server-2.log"
    told = b""
    while new.read_bytes().splitlines()[0] not in told and select.select([logs.stdout], [], [], 5)[0]:
        told += os.read(logs.stdout.fileno(), 2**16)
    logs.send_signal(signal.SIGINT)
    logs.communicate(timeout=10)
    assert logs.returncode == 130
    assert new.read_bytes().splitlines()[0] in told


def test_back_restores_the_previous_deployment(switching: World) -> None:
    assert switching.run("switch", "llamacpp", "--context", "4096").status == 0
    assert switching.config.read_text() != CONFIG
    result = switching.run("switch", "--back")
    assert result.status == 0, result.text
    assert switching.record()["plan"]["context"]["value"] == 8192
    assert switching.config.read_text() == CONFIG
    assert switching.run("switch", "--back").status == 0  # and forth
    assert switching.record()["plan"]["context"]["value"] == 4096


def test_flags_of_serve_are_kept(world: World) -> None:
    assert world.run("serve", "selftest", "--context", "2048", "--detach").status == 0
    assert world.run("switch", "llamacpp", "--parallel", "2").status == 0
    plan = world.record()["plan"]
    assert (plan["context"]["value"], plan["parallel"]["value"]) == (2048, 2)


def test_flags_of_a_model_are_kept_for_that_model_only(world: World) -> None:
    copy_selftest(world.work)
    (world.work / "mmproj-selftest-f16.gguf").rename(world.work / "eyes.gguf")
    (world.work / "selftest-f16.gguf").rename(world.work / "mine.gguf")
    serve = ("serve", "./mine.gguf", "--mmproj", "eyes.gguf", "--threads", "1", "--parallel", "2", "--detach")
    assert world.run(*serve).status == 0
    assert world.run("switch", "llamacpp", "--context", "4096").status == 0
    after = world.record()
    assert after["capabilities"] == ["text", "image"]
    assert after["settings"]["mmproj"] == str(world.work / "eyes.gguf")
    assert after["settings"]["engines.llamacpp.threads"] == 1
    assert world.run("switch", "--model", "selftest").status == 0
    assert "mmproj" not in world.record()["settings"]


def test_switch_to_another_projector_alone(switching: World) -> None:
    result = switching.run("switch", "--mmproj", str(SELFTEST / "mmproj-selftest-f16.gguf"))
    assert result.status == 0, result.text
    assert switching.record()["settings"]["mmproj"] == str(SELFTEST / "mmproj-selftest-f16.gguf")


def test_switch_to_what_is_served_already_changes_nothing(switching: World) -> None:
    before = switching.record()
    result = switching.run("switch", "llamacpp")
    assert result.status == 0
    assert "`selftest` on llamacpp is served already\n" in result.stderr
    assert switching.record()["server"] == before["server"]


def test_receipt_names_engine_files_and_flags(switching: World) -> None:
    until(lambda: switching.record()["receipt"])
    receipt = switching.record()["receipt"]
    weights, projector = receipt["files"]
    assert weights["path"].endswith("selftest-f16.gguf")
    assert weights["sha256"] == "6c86af684f8a841610da2af21356c175a527ffd68d0cb53d35713bb941d143e2"
    assert projector["bytes"] == (SELFTEST / "mmproj-selftest-f16.gguf").stat().st_size
    assert "--ctx-size" in receipt["argv"]
    assert 2**20 < receipt["memory"]["ram_bytes"] < 2**30
    assert receipt["engine_version"]


# --- It does not, and all is as it was


def huge(world: World) -> str:
    """Write a model that needs more memory than any machine has: one matrix is declared as huge, in a sparse file."""
    weights = copy_selftest(world.work, mmproj=False)
    content = bytearray(weights.read_bytes())
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 8
    struct.pack_into("<Q", content, at, 2**34)
    weights.write_bytes(content)
    os.truncate(weights, 2**43)
    return "./selftest-f16.gguf"


def missing(world: World) -> list[str]:
    return ["--model", "./not-here.gguf"]


def too_large(world: World) -> list[str]:
    return ["--model", huge(world)]


def dying(world: World) -> list[str]:
    return configured(world, "echo 'error: no luck' >&2; exit 3")


def blind(world: World) -> list[str]:
    return configured(world, BLIND + EMBEDDED)


def hanging(world: World) -> list[str]:
    return [*configured(world, "exec sleep 1000"), "--timeout", "2"]


def configured(world: World, script: str) -> list[str]:
    text = world.config.read_text()
    world.config.write_text(f'{text}server = "{write_server(world.folder / "llama-server", script)}"\n')
    return ["llamacpp"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("target", "step", "reason"),
    [
        (missing, "check", "there is no file"),
        (too_large, "check", "is free"),
        (dying, "prepare", "the server ended before it was ready (status 3): error: no luck"),
        (blind, "prove", "the server answers no question about an image (500): "),
        (hanging, "prepare", "the server was not ready after 2 s"),
    ],
)
def test_failed_switch_is_undone(switching: World, target: Any, step: str, reason: str, way: str) -> None:
    arguments = target(switching)
    config = switching.config.read_bytes()
    with Load(switching.port) as load:
        until(lambda: load.total > 10)
        result = switching.run("switch", *arguments, way, "--json")
        asked = load.total
        until(lambda: load.total > asked + 10 or load.failures)
    assert result.status == 1, result.text
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert error["message"].startswith(f"the switch failed at the step `{step}`: ")
    assert reason in error["message"]
    assert error["message"].endswith("; `selftest` on llamacpp serves as before")
    if step in ("prepare", "prove"):
        assert "its log is `[FOLDER]/state/server-2.log`" in error["hint"]
    assert load.failures == []
    assert switching.config.read_bytes() == config
    now = switching.record()
    assert (now["state"], now["switch"], now["plan"]["context"]["value"]) == ("ready", None, 8192)
    assert [it.pid for it in servers(switching)] == [now["server"]["pid"]]


def test_unwritable_configuration_undoes_the_switch(switching: World) -> None:
    # The error is found before anything is started.
    switching.config.write_text("model = [\n")
    result = switching.run("switch", "llamacpp", "--context", "4096")
    assert result.status == 1
    assert switching.record()["plan"]["context"]["value"] == 8192
    switching.config.write_text(CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="file modes do not bind root")
def test_unwritable_folder_undoes_the_switch(switching: World) -> None:
    switching.config.parent.chmod(0o500)
    result = switching.run("switch", "llamacpp", "--context", "4096")
    switching.config.parent.chmod(0o700)
    assert result.status == 1
    assert "the switch failed at the step `check`: " in result.stderr
    assert switching.record()["plan"]["context"]["value"] == 8192


@pytest.mark.skipif(not Path("/proc/fs").is_dir(), reason="a folder that nobody can write to is Linux's")
def test_unwritable_configuration_is_found_before_anything_is_stopped(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    before = world.record()["server"]
    world.config.parent.parent.mkdir(parents=True)
    world.config.parent.symlink_to("/proc/fs")
    result = world.run("switch", "--context", "4096", "--no-beside")
    assert "error: the switch failed at the step `check`: `[FOLDER]/home/.config/llmdeploy/config.toml` cannot be " in (
        result.stderr
    )
    assert world.record()["server"] == before


# --- Killed, interrupted, at once


def begun(world: World, *arguments: str) -> subprocess.Popen[bytes]:
    return world.start("switch", *arguments, bufsize=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["check", "prepare", "loading the weights", "prove", "commit", "serving"])
def test_killed_service_comes_back_with_the_old_or_the_new_deployment(switching: World, step: str, way: str) -> None:
    command = begun(switching, "llamacpp", "--context", "4096", way)
    read_until(command, step)
    os.kill(switching.record()["service"]["pid"], signal.SIGKILL)
    stdout, stderr = command.communicate(timeout=20)
    assert command.returncode == 1 or step in {"commit", "serving"}, (stdout, stderr)  # a commit waits for nothing
    assert b"Traceback" not in stderr
    written = "context = 4096" in switching.config.read_text()
    assert written or switching.config.read_text() == CONFIG
    result = switching.run("serve", "--detach", "--json")
    assert result.status == 0, result.text
    assert json.loads(result.stdout)["context"] == (4096 if written else 8192)
    assert answer(switching) == "1 2 3"
    until(lambda: [it.pid for it in servers(switching)] == [switching.record()["server"]["pid"]])


@pytest.mark.parametrize("step", ["prepare", "loading the weights"])
def test_next_start_ends_the_servers_of_a_killed_service_and_watchdogs(switching: World, step: str) -> None:
    command = begun(switching, "llamacpp", "--context", "4096")
    read_until(command, step)
    for process in [it for it in switching.processes() if not is_engine(it) or "watchdog.py" in " ".join(it.cmdline())]:
        if process.pid != command.pid:
            process.kill()
    command.communicate(timeout=20)
    result = switching.run("serve", "--detach")
    assert result.status == 0, result.text
    until(lambda: [it.pid for it in servers(switching)] == [switching.record()["server"]["pid"]])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["check", "prepare", "loading the weights", "still starting"])
def test_interrupted_switch_is_undone(switching: World, step: str, way: str) -> None:
    slow = "sleep 7; " if step == "still starting" else "sleep 1; "
    arguments = configured(switching, slow + EMBEDDED)
    config = switching.config.read_bytes()
    command = begun(switching, *arguments, way)
    read_until(command, step)
    command.send_signal(signal.SIGINT)
    _, stderr = command.communicate(timeout=30)
    assert command.returncode == 130, stderr
    assert b"interrupted: the switch is undone\n`selftest` on llamacpp serves\n" in stderr
    assert switching.config.read_bytes() == config
    now = switching.record()
    assert (now["state"], now["switch"]) == ("ready", None)
    assert answer(switching) == "1 2 3"
    until(lambda: [it.pid for it in servers(switching)] == [switching.record()["server"]["pid"]])


def test_switch_whose_command_is_killed_is_undone(switching: World) -> None:
    command = begun(switching, *configured(switching, f"sleep 5; {EMBEDDED}"), "--no-beside")
    read_until(command, "starting the server")
    command.kill()
    command.communicate()
    until(lambda: switching.record()["switch"] is None and switching.record()["state"] == "ready", 20)
    assert answer(switching) == "1 2 3"


def test_second_switch_at_once_is_refused(switching: World) -> None:
    first = begun(switching, *configured(switching, f"sleep 3; {EMBEDDED}"), "--context", "4096")
    read_until(first, "starting the server")
    began = time.monotonic()
    second = switching.run("switch", "llamacpp", "--context", "2048", "--json")
    assert time.monotonic() - began < 3 * BUSY
    assert second.status == 1
    assert json.loads(second.stdout)["error"] == {
        "code": "switch_under_way",
        "message": "a switch to `selftest` on llamacpp is under way",
        "hint": "wait until it is done: `llmdeploy status` shows how far it is",
    }
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert switching.record()["plan"]["context"]["value"] == 4096


def test_stop_during_a_switch_leaves_nothing(switching: World) -> None:
    command = begun(switching, *configured(switching, f"sleep 30; {EMBEDDED}"))
    read_until(command, "starting the server")
    assert "  switch   to `selftest` on llamacpp, at the step prepare\n" in switching.run("status").stdout
    result = switching.run("stop")
    assert result.status == 0, result.text
    _, stderr = command.communicate(timeout=20)
    assert command.returncode == 1, stderr
    assert stderr.endswith(b"error: the service was stopped, and the switch with it\nhint: `llmdeploy serve`\n")
    assert not switching.processes()
    assert switching.run("status").stdout == "nothing is served\n"


def test_no_server_is_on_record_between_the_old_and_the_new(switching: World) -> None:
    command = begun(switching, *configured(switching, f"sleep 30; {EMBEDDED}"), "--no-beside")
    read_until(command, "starting the server")
    assert json.loads(switching.run("status", "--json").stdout)["server_pid"] is None
    chat = switching.run("chat", "Count to 3", "--timeout", "0.5")
    assert chat.stderr.startswith(
        "a switch to llamacpp is in progress: the answer waits for it\nerror: no answer from "
    )
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=30)
    assert [it.pid for it in servers(switching)] == [switching.record()["server"]["pid"]]


# --- Requests that wait


def test_two_hundred_requests_wait_for_a_switch_and_the_next_is_refused(switching: World) -> None:
    gate = switching.folder / "gate"
    script = f'until [ -e "{gate}" ]; do sleep 0.1; done; {EMBEDDED}'
    command = begun(switching, *configured(switching, script), "--no-beside", "--parallel", "8")
    read_until(command, "starting the server")
    answers, refused = asyncio.run(ask_many(switching.port, 200, gate))
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 0, stderr
    assert [it.status_code for it in answers] == [200] * 200
    assert {it.json()["choices"][0]["message"]["content"] for it in answers} == {"1 2 3"}
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("service_unavailable", "too_many_waiting")
    assert error["llmdeploy"]["source"] == "gateway"


async def ask_many(port: int, many: int, gate: Path) -> tuple[list[httpx.Response], httpx.Response]:
    """Send so many requests that wait, and one more once they do; then let the new server start."""
    limits = httpx.Limits(max_connections=many + 5)
    body = {"model": "selftest", "messages": [{"role": "user", "content": "Count to 3"}], "temperature": 0}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=90, trust_env=False, limits=limits
    ) as client:
        waiting = [asyncio.ensure_future(client.post("/v1/chat/completions", json=body)) for _ in range(many)]
        while f"llmdeploy_requests_held {many}.0" not in (await client.get("/metrics")).text:
            assert not [it.result().text for it in waiting if it.done()]
            await asyncio.sleep(0.1)
        refused = await client.post("/v1/chat/completions", json=body)
        gate.touch()
        return await asyncio.gather(*waiting), refused


def test_no_hold_refuses_requests_during_the_switch(switching: World) -> None:
    arguments = configured(switching, f"sleep 4; {EMBEDDED}")
    command = begun(switching, *arguments, "--no-beside", "--no-hold")
    read_until(command, "starting the server")
    body = {"model": "selftest", "messages": [{"role": "user", "content": "hello"}]}
    response = httpx.post(f"http://127.0.0.1:{switching.port}/v1/chat/completions", json=body, trust_env=False)
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert response.json()["error"]["code"] == "switching"
    command.communicate(timeout=30)
    assert command.returncode == 0
    assert answer(switching) == "1 2 3"


def test_requests_wait_while_a_dead_server_is_started_again(switching: World) -> None:
    """Requests wait while it is started again."""
    before = switching.record()["server"]
    psutil.Process(before["pid"]).kill()
    assert answer(switching) == "1 2 3"
    until(lambda: switching.record()["state"] == "ready")
    assert switching.record()["server"] != before


# --- Without a service, without doing it, and what makes no sense


def test_switch_without_a_service_is_checked_and_written(world: World) -> None:
    world.config.parent.mkdir(parents=True)
    world.config.write_text(CONFIG)
    result = world.run("switch", "llamacpp", "selftest", "--context", "4096")
    assert result.status == 0, result.text
    assert "the next `llmdeploy serve` serves `selftest` on llamacpp\n" in result.stderr
    assert "  context                 4096  (as asked for)\n" in result.stdout
    assert "+context = 4096\n" in result.stdout
    assert not world.processes()
    assert json.loads(world.run("serve", "--detach", "--json").stdout)["context"] == 4096
    assert world.run("switch", "--back").status == 0
    assert world.config.read_text() == CONFIG


def test_switch_without_a_service_does_not_write_what_cannot_be_served(world: World) -> None:
    result = world.run("switch", "vllm")
    assert result.text.startswith("exit 1\n--- stdout\n--- stderr\nerror: no vLLM on this machine\nhint: ")
    assert not world.config.exists()


def test_dry_run_touches_nothing(switching: World) -> None:
    before = {file.name: file.read_bytes() for file in switching.state.iterdir()}
    running = {it.pid for it in switching.processes()}
    result = switching.run("switch", "llamacpp", "--context", "4096", "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert (document["switched"], document["beside"], document["engine"]) == (False, True, "llamacpp")
    assert document["plan"]["context"] == {"value": 4096, "reason": "as asked for"}
    assert document["config"] == {
        "file": "[FOLDER]/home/.config/llmdeploy/config.toml",
        "diff": document["config"]["diff"],
        "written": False,
    }
    assert "+context = 4096\n" in document["config"]["diff"]
    assert switching.config.read_text() == CONFIG
    one_by_one = switching.run("switch", "llamacpp", "--context", "4096", "--dry-run", "--no-beside")
    assert "  one after the other, as asked for: requests wait while it is exchanged\n" in one_by_one.stdout
    assert {it.pid for it in switching.processes()} == running
    assert {file.name: file.read_bytes() for file in switching.state.iterdir()} == before


def test_dry_run_says_whether_requests_would_wait(switching: World) -> None:
    result = switching.run("switch", "--context", "4096", "--dry-run", "--no-beside", "--no-hold")
    assert "\n  one after the other, as asked for: requests are refused while it is exchanged\n" in result.stdout
    result = switching.run("switch", "llamacpp", "--dry-run")
    assert result.stderr == "`selftest` on llamacpp is served already: nothing would be started\n"


def test_switch_without_a_service_says_written_only_if_the_file_changed(world: World) -> None:
    for written in (True, False):
        result = world.run("switch", "llamacpp", "--json")
        assert json.loads(result.stdout)["config"]["written"] is written
    assert world.run("switch", "llamacpp").stderr == "the next `llmdeploy serve` serves `selftest` on llamacpp\n"


def test_project_file_is_changed_if_it_decides(switching: World) -> None:
    (switching.work / "llmdeploy.toml").write_text('engine = "llamacpp"\n')
    assert switching.run("switch", "llamacpp", "--context", "4096").status == 0
    assert (
        switching.work / "llmdeploy.toml"
    ).read_text() == 'engine = "llamacpp"\nmodel = "selftest"\ncontext = 4096\n'
    assert switching.config.read_text() == CONFIG


def test_variable_that_beats_the_file_is_reported(switching: World) -> None:
    result = switching.run("switch", "llamacpp", "--context", "4096", LLMDEPLOY_ENGINE="llamacpp")
    assert result.status == 0
    assert "warning: `LLMDEPLOY_ENGINE` beats the file: `unset LLMDEPLOY_ENGINE`\n" in result.stderr


def served(**settings: Any) -> Record:
    """Return a record of a deployment with these settings."""
    itself = identify(os.getpid())
    assert itself is not None
    document = config.document(Settings(**settings))
    return Record("ready", "", "/m.gguf", "m", "llamacpp", "", "", itself, settings=document)


@pytest.mark.parametrize(
    ("flags", "model", "kept"),
    [
        ({}, None, (2048, 3, True, Path("/p.gguf"))),
        ({"context": 512}, None, (512, 3, True, Path("/p.gguf"))),
        ({"engines.llamacpp.threads": 1}, "/m.gguf", (2048, 1, True, Path("/p.gguf"))),
        ({}, "/other.gguf", (2048, 3, False, None)),
    ],
)
def test_settings_of_serve_are_kept(flags: dict[str, Any], model: str | None, kept: tuple[Any, ...]) -> None:
    """Projector and cloud consent belong to the model; consent to a model's code is never taken over."""
    now = served(
        context=2048,
        llamacpp=LlamaCppSettings(threads=3),
        flags=Flags(Path("/p.gguf"), allow_cloud=True, trust_remote_code=True),
    )
    found = words._target(model, {"engine": None, **flags}, Flags(), now, repair=True).settings
    assert (found.context, found.llamacpp.threads, found.flags.allow_cloud, found.flags.mmproj) == kept
    assert not found.flags.trust_remote_code


def test_back_takes_a_timeout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    document = config.document(Settings(timeout=600, context=2048))
    found = PreviousDeployment("selftest", "llamacpp", document, "/config.toml", {})
    monkeypatch.setattr(history, "load_previous", lambda: found)
    assert words._back(5).settings.timeout == 5
    assert words._back(None).settings.context == 2048


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("check", "interrupted: the switch is undone"),
        ("prove", "interrupted: the switch is undone"),
        ("undo", "interrupted: the switch is undone"),
        ("commit", "interrupted: it is switched already"),
        ("finish", "interrupted: it is switched already"),
    ],
)
def test_interruption_calls_off_first_and_then_reports_the_outcome(
    last: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same holds if the interruption comes while an event is shown.
    happened = []

    def events(*_: object) -> Any:
        try:
            yield Step("check")
            yield Step(last)
            yield Note("")
        finally:
            happened.append("left")

    def on_event(_: object, event: Public, elapsed: float) -> None:
        if isinstance(event, Note):
            raise KeyboardInterrupt

    monkeypatch.setattr(client, "switch", events)
    monkeypatch.setattr(client, "wait_switched", lambda: happened.append("waited"))
    monkeypatch.setattr(AsText, "on_event", on_event)
    target = words.Target(CatalogName("selftest"), Settings(), Path("/config.toml"), {}, repair=True)
    with pytest.raises(KeyboardInterrupt):
        words._switch(target, served(), hold=True, beside=True, as_json=False)
    assert happened == ["left", "waited"]
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([], "nothing is named to switch to", "`llmdeploy switch vllm`; `llmdeploy switch --model qwen3:8b`"),
        (
            ["qwen3:8b"],
            "no engine is called `qwen3:8b`: there are llamacpp, ollama, vllm",
            "`llmdeploy switch --model qwen3:8b` switches to a model of that name",
        ),
        (["vllm", "a", "--model", "b"], "two models are named: `a` and `b`", "name one"),
        (
            ["vllm", "--back"],
            "`--back` returns to what was served before, as it was",
            "`llmdeploy switch --back`",
        ),
        (["--back"], "there was no switch to return from", "`llmdeploy switch ENGINE` makes one"),
        (
            ["vllm", "--threads", "3"],
            "`--threads` is an option of llamacpp, and the engine is vllm",
            "leave it out, or name its engine: `llmdeploy switch llamacpp`",
        ),
        (["VLLM"], "no engine is called `VLLM`: there are llamacpp, ollama, vllm", "`llmdeploy switch vllm`"),
        (["olama"], "no engine is called `olama`: there are llamacpp, ollama, vllm", "`llmdeploy switch ollama`"),
        ([""], "no engine is called ``: there are llamacpp, ollama, vllm", "`llmdeploy switch vllm`"),
        (["llamacpp", ""], NO_MODEL, "`llmdeploy models catalog` lists the names"),
        (["--model", ""], NO_MODEL, "`llmdeploy models catalog` lists the names"),
    ],
)
def test_contradictory_words_are_refused(world: World, arguments: list[str], error: str, hint: str) -> None:
    result: Result = world.run("switch", *arguments)
    assert result.text == f"exit 2\n--- stdout\n--- stderr\nerror: {error}\nhint: {hint}\n"


def test_orders_need_the_token(switching: World) -> None:
    url = f"http://127.0.0.1:{switching.port}/llmdeploy/switch"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}):
        response = httpx.post(url, json={}, headers=headers, trust_env=False)
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "not_permitted"
    assert oct((switching.state / "token").stat().st_mode & 0o777) == "0o600"
    (switching.state / "token").unlink()
    result = switching.run("switch", "llamacpp", "--context", "4096")
    assert result.text == (
        "exit 1\n--- stdout\n--- stderr\n"
        "error: the service's token `[FOLDER]/state/token` cannot be read: No such file or directory\n"
        "hint: `llmdeploy stop`, then serve again\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "an address of its own"])
def test_service_on_another_address_takes_orders_too(world: World, host: str) -> None:
    world.environment["LLMDEPLOY_API_KEY"] = "sesame"
    if host != "0.0.0.0":
        addresses = [it for card in psutil.net_if_addrs().values() for it in card if it.family == socket.AF_INET]
        host = next((it.address for it in addresses if not it.address.startswith("127.")), "")
        if not host:
            pytest.skip("this machine has loopback alone")
    assert world.run("serve", "selftest", "--host", host, "--detach").status == 0
    result = world.run("switch", "llamacpp", "--context", "4096")
    assert result.status == 0, result.text
    assert world.run("chat", "Count to 3", "--temperature", "0").stdout == "1 2 3\n"
