"""serve, status, stop: the life of a deployment, seen from a shell."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

from llmdeploy.service.deployment import STOP_GRACE
from tests.conftest import SELFTEST, World, copy_selftest, free_port

WITHIN = 5.0
"""Seconds in which a stopped service must be gone, with all it started."""


def until(condition: object, seconds: float = 10) -> None:
    """Wait for a condition, not for a time."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def serve_until_ready(world: World, **options: object) -> subprocess.Popen[bytes]:
    service = world.start("serve", "selftest", **options)
    until(lambda: world.run("status").status == 0)
    return service


def test_foreground_says_phases_and_answers_with_the_address(world: World) -> None:
    service = serve_until_ready(world)
    service.send_signal(signal.SIGTERM)
    stdout, stderr = service.communicate(timeout=10)
    assert world.plain(stdout) == "http://127.0.0.1:[PORT]/v1\n"
    lines = world.plain(stderr).splitlines()
    plan = lines.pop(1)
    assert lines == [
        "[TIME] checking",
        "[TIME] starting the server",
        "[TIME] loading the weights",
        "[TIME] allocating the KV cache",
        "[TIME] warming up",
        "[TIME] ready; Ctrl-C stops it",
        "serving `selftest` on llamacpp",
        "stopping",
        "stopped",
    ]
    assert "8192 tokens a request, 4 at a time" in plan
    assert service.returncode == 0


def test_detach_prints_one_document_and_an_openai_client_is_answered(world: World) -> None:
    result = world.run("serve", "selftest", "--detach", "--json")
    assert result.status == 0, result.text
    document = json.loads(result.stdout)
    assert document.items() >= {
        "state": "ready", "model": "selftest", "served_name": "selftest", "engine": "llamacpp",
        "context": 8192, "parallel": 4, "error": None,
    }.items()  # fmt: skip
    assert psutil.pid_exists(document["service_pid"])
    assert psutil.pid_exists(document["server_pid"])

    base_url = document["base_url"].replace("[PORT]", str(world.port))
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "Count to 5"}]
        whole = client.chat.completions.create(model="selftest", messages=messages, temperature=0)
        stream = client.chat.completions.create(
            model="selftest", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert whole.choices[0].message.content == "1 2 3 4 5"
    assert whole.usage.completion_tokens == 10
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "1 2 3 4 5"
    assert chunks[-1].usage.completion_tokens == 10


def test_status_tells_the_whole_story(served: World) -> None:
    result = served.run("status")
    assert result.text == (
        "exit 0\n"
        "--- stdout\n"
        "ready: `selftest` on llamacpp\n"
        "  address  http://127.0.0.1:[PORT]/v1\n"
        "  since    [WHEN]\n"
        "  service  process [PID]\n"
        "  server   process [PID]\n"
        "  context  8192 tokens a request, 4 at a time\n"
        "  log      [FOLDER]/state/server.log\n"
        "--- stderr\n"
    )


def test_nothing_served(world: World) -> None:
    assert world.run("status").text == (
        "exit 1\n--- stdout\nnothing is served\n--- stderr\nhint: `llmdeploy serve` starts the configured model\n"
    )
    assert world.run("status", "--json").text == 'exit 1\n--- stdout\n{\n  "state": "stopped"\n}\n--- stderr\n'
    assert world.run("stop").text == "exit 0\n--- stdout\n--- stderr\nnothing is served\n"
    assert not world.state.exists()


def test_stop_ends_everything_and_serve_works_again(world: World) -> None:
    for _ in range(2):
        assert world.run("serve", "selftest", "--detach").status == 0
        began = time.monotonic()
        result = world.run("stop")
        assert time.monotonic() - began < WITHIN
        assert result.text == "exit 0\n--- stdout\n--- stderr\nstopping `selftest` (process [PID])\nstopped\n"
        assert not world.processes()
    assert world.run("status").status == 1


def test_context_is_per_request(world: World) -> None:
    """llama.cpp divides its context by its slots: the user's number must not be divided."""
    result = world.run("serve", "selftest", "--detach", "--context", "1024", "--parallel", "2")
    assert result.status == 0, result.text
    slots = httpx.get(f"http://127.0.0.1:{world.port}/slots", trust_env=False).json()
    assert [slot["n_ctx"] for slot in slots] == [1024, 1024]


def test_a_gguf_file_with_its_mmproj_beside_it(world: World) -> None:
    weights = copy_selftest(world.work / "my models")
    weights.rename(weights.with_name("mine.gguf"))
    weights.with_name("mmproj-selftest-f16.gguf").rename(weights.with_name("mmproj-mine.gguf"))
    result = world.run("serve", "./my models/mine.gguf", "--detach", "--json")
    assert result.status == 0, result.text
    assert json.loads(result.stdout)["served_name"] == "mine"
    capabilities = httpx.get(f"http://127.0.0.1:{world.port}/v1/models", trust_env=False).json()["models"]
    assert "multimodal" in capabilities[0]["capabilities"]


def test_mmproj_by_flag(world: World) -> None:
    copy_selftest(world.work / "m", mmproj=False)
    result = world.run("serve", "m/selftest-f16.gguf", "--mmproj", SELFTEST / "mmproj-selftest-f16.gguf", "--detach")
    assert result.status == 0, result.text
    capabilities = httpx.get(f"http://127.0.0.1:{world.port}/v1/models", trust_env=False).json()["models"]
    assert "multimodal" in capabilities[0]["capabilities"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)], ids=lambda it: str(it)
)
def test_a_signal_stops_service_and_engine(world: World, number: int, status: int) -> None:
    service = serve_until_ready(world)
    began = time.monotonic()
    service.send_signal(number)
    service.communicate(timeout=10)
    assert time.monotonic() - began < WITHIN
    assert service.returncode == status
    assert not world.processes()
    assert world.run("status").text.startswith("exit 1\n--- stdout\nnothing is served\n")


def test_a_signal_during_the_start_leaves_nothing(world: World) -> None:
    """At every moment of the start, from the interpreter's first line to readiness."""
    for delay in (0.05, 0.15, 0.25, 0.35, 0.45):
        service = world.start("serve", "selftest")
        time.sleep(delay)  # the moment itself is what is tested
        service.send_signal(signal.SIGINT)
        _, stderr = service.communicate(timeout=10)
        assert service.returncode in {130, -signal.SIGINT}, (delay, stderr.decode())
        assert "Traceback" not in stderr.decode() or service.returncode == -signal.SIGINT, (delay, stderr.decode())
        assert not world.processes()
        assert world.run("status").status == 1


def test_a_closed_terminal_stops_everything(world: World) -> None:
    ours, theirs = pty.openpty()
    service = world.start("serve", "selftest", stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_own_terminal)
    os.close(theirs)
    until(lambda: world.run("status").status == 0)
    os.close(ours)
    service.wait(timeout=WITHIN)
    until(lambda: not world.processes(), WITHIN)
    assert world.run("status").stdout == "nothing is served\n"


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_an_engine_that_ignores_sigterm_is_killed(world: World) -> None:
    """The guard waits for its grace and then kills: here a real engine that stands still."""
    assert world.run("serve", "selftest", "--detach").status == 0
    server = json.loads(world.run("status", "--json").stdout)["server_pid"]
    os.kill(server, signal.SIGSTOP)  # a stopped process does not act on SIGTERM
    began = time.monotonic()
    assert world.run("stop").status == 0
    assert STOP_GRACE - 0.5 < time.monotonic() - began < WITHIN
    assert not world.processes()


def test_after_kill_9_of_the_service(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    document = json.loads(world.run("status", "--json").stdout)
    os.kill(document["service_pid"], signal.SIGKILL)
    until(lambda: not world.processes(), WITHIN)  # the guard ends the engine
    result = world.run("status")
    assert result.text == (
        "exit 1\n"
        "--- stdout\n"
        "crashed: `selftest` on llamacpp\n"
        "  address  http://127.0.0.1:[PORT]/v1\n"
        "  since    [WHEN]\n"
        "  service  process [PID], gone\n"
        "  server   process [PID], gone\n"
        "  reason   the service was killed or crashed: it left no word\n"
        "  context  8192 tokens a request, 4 at a time\n"
        "  log      [FOLDER]/state/server.log\n"
        "--- stderr\n"
        "hint: `llmdeploy serve` serves again; `llmdeploy stop` only clears this away\n"
    )
    assert world.run("serve", "selftest", "--detach").status == 0
    assert world.run("status").status == 0


def test_after_kill_9_of_the_engine(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    document = json.loads(world.run("status", "--json").stdout)
    os.kill(document["server_pid"], signal.SIGKILL)
    until(lambda: not world.processes(), WITHIN)
    result = world.run("status", "--json")
    assert result.status == 1
    failed = json.loads(result.stdout)
    assert failed["state"] == "failed"
    assert failed["error"] == {
        "code": "server_died",
        "message": "the server ended while it served: the server was killed from outside (SIGKILL)",
        "hint": "look for who did; where memory ran out, `dmesg` says so; its log is `[FOLDER]/state/server.log`",
    }
    assert world.run("serve", "selftest", "--detach").status == 0


def test_after_kill_9_of_service_and_guard_the_engine_is_found(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    document = json.loads(world.run("status", "--json").stdout)
    guard = psutil.Process(document["server_pid"]).parent()
    os.kill(document["service_pid"], signal.SIGSTOP)  # it must not notice that its guard goes
    guard.kill()
    os.kill(document["service_pid"], signal.SIGKILL)
    until(lambda: len(world.processes()) == 1)
    assert (
        f"server   process {document['server_pid']}\n"
        in subprocess.run(world.command("status"), env=world.environment, capture_output=True, text=True).stdout
    )
    result = world.run("serve", "selftest", "--detach")
    assert result.status == 0, result.text
    assert document["server_pid"] not in [process.pid for process in world.processes()]


def test_after_kill_9_of_the_guard_the_engine_is_not_left(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    document = json.loads(world.run("status", "--json").stdout)
    psutil.Process(document["server_pid"]).parent().kill()
    until(lambda: not world.processes(), WITHIN)
    assert json.loads(world.run("status", "--json").stdout)["state"] == "failed"


def test_a_record_whose_pid_was_given_again_is_not_obeyed(world: World) -> None:
    """The pid of the record lives, but it is another process: `stop` must not touch it."""
    assert world.run("serve", "selftest", "--detach").status == 0
    record = world.state / "deployment.json"
    content = json.loads(record.read_text())
    world.run("stop")
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        content["service"]["pid"] = content["server"]["pid"] = bystander.pid
        record.write_text(json.dumps(content))
        assert json.loads(world.run("status", "--json").stdout)["state"] == "crashed"
        assert world.run("stop").text == (
            "exit 0\n--- stdout\n--- stderr\n`selftest` had ended already; cleared away\n"
        )
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '"text"', '{"schema":1,"server":3}']
)
def test_a_broken_record_is_none(world: World, content: str) -> None:
    world.state.mkdir()
    (world.state / "deployment.json").write_text(content)
    assert world.run("status").text.startswith("exit 1\n--- stdout\nnothing is served\n")
    assert world.run("stop").status == 0


def test_a_second_serve_is_refused(served: World) -> None:
    for arguments in (["serve", "selftest"], ["serve", "selftest", "--detach"]):
        assert served.run(*arguments).text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: `selftest` is served already on llamacpp at http://127.0.0.1:[PORT] (process [PID])\n"
            "hint: `llmdeploy stop` ends it; LLMDEPLOY_STATE_DIR names another folder for a second one\n"
        )
    assert served.run("status").status == 0


def test_two_serves_at_once_one_wins(world: World) -> None:
    both = [world.start("serve", "selftest", "--detach") for _ in range(2)]
    ends = [process.communicate(timeout=30) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], ends
    assert world.run("status").status == 0


def test_a_port_in_use_names_its_holder_and_a_free_one(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", world.port))
        taken.listen()
        result = world.run("serve", "selftest", "--json")
    error = json.loads(result.stdout)["error"]
    assert result.status == 1
    assert error["code"] == "port_in_use"
    assert error["message"].startswith("port [PORT] is in use by `")
    assert error["message"].endswith("(process [PID])")
    port = int(error["hint"].split()[-1].strip("`"))
    assert world.run("serve", "selftest", "--detach", "--port", str(port)).status == 0


def test_the_deadline_ends_a_start_that_hangs(world: World) -> None:
    """A `llama-server` that never listens."""
    hanging = _program(world, "sleep 60")
    result = world.run("serve", "selftest", "--timeout", "0.5", PATH=f"{hanging.parent}:{os.environ['PATH']}")
    assert result.status == 1
    assert "error: the server was not ready after 0.5 s, still starting the server\n" in result.stderr
    assert not world.processes()


def test_a_start_that_goes_on_is_mentioned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _program(world, "echo reading tensors; sleep 60")
    result = world.run("serve", "selftest", "--timeout", "6", PATH=f"{slow.parent}:{os.environ['PATH']}")
    assert "[TIME] still starting the server: reading tensors\n" in result.stderr


def test_interrupting_detach_stops_the_start(world: World) -> None:
    hanging = _program(world, "sleep 60")
    world.environment["PATH"] = f"{hanging.parent}:{os.environ['PATH']}"
    command = world.start("serve", "selftest", "--detach")
    until(lambda: b"starting the server" in (world.state / "service.log").read_bytes() if world.state.exists() else 0)
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=10)
    assert command.returncode == 130
    assert not world.processes()


def test_a_llama_server_on_path_is_preferred(world: World) -> None:
    program = _program(world, f'exec "{world.command()[0]}" -m llmdeploy.engines.llamacpp_server "$@"')
    path = f"{program.parent}:{os.environ['PATH']}"
    result = world.run("serve", "selftest", "--detach", "--json", PATH=path)
    assert result.status == 0, result.text
    assert json.loads(result.stdout)["engine_version"] == "7777 (abcdef0)"
    assert (
        "llama-server 7777 (abcdef0) at `[FOLDER]/bin/llama-server`, found on PATH"
        in world.run("doctor", PATH=path).stdout
    )
    assert world.run("chat", "Count to 3").stdout == "1 2 3\n"


def test_a_broken_llama_server_on_path_does_not_stand_in_the_way(world: World) -> None:
    program = _program(world, "echo 'error while loading shared libraries: libcuda.so.1' >&2; exit 127", version=False)
    path = f"{program.parent}:{os.environ['PATH']}"
    doctor = world.run("doctor", PATH=path)
    assert (
        "the embedded build; `[FOLDER]/bin/llama-server` (found on PATH) cannot be run: error while loading"
        in doctor.stdout
    )
    assert world.run("serve", "selftest", "--detach", PATH=path).status == 0


def _program(world: World, script: str, *, version: bool = True) -> Path:
    """A program called llama-server that tells its version and then does what `script` says."""
    program = world.folder / "bin" / "llama-server"
    program.parent.mkdir()
    tell = 'if [ "$1" = --version ]; then echo "version: 7777 (abcdef0)" >&2; exit 0; fi\n' if version else ""
    program.write_text(f"#!/bin/sh\n{tell}{script}\n")
    program.chmod(0o755)
    return program


def test_ready_means_ready(world: World) -> None:
    """Ready means that the very first request is answered; benchmarks/first_answer.py measures how soon."""
    assert world.run("serve", "selftest", "--detach").status == 0
    body = {"messages": [{"role": "user", "content": "Count to 2"}], "temperature": 0}
    answer = httpx.post(f"http://127.0.0.1:{world.port}/v1/chat/completions", json=body, trust_env=False)
    assert answer.json()["choices"][0]["message"]["content"] == "1 2"


def test_files_are_the_owners_alone(served: World) -> None:
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in served.state.iterdir()}
    assert modes == dict.fromkeys(("deployment.json", "server.log", "service.log", "service.lock"), "0o600")
    assert oct(served.state.stat().st_mode & 0o777) == "0o700"


def test_another_port_by_flag(world: World) -> None:
    port = free_port()
    result = world.run("serve", "selftest", "--detach", "--port", str(port))
    assert result.stdout == f"http://127.0.0.1:{port}/v1\n"
    assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json() == {"status": "ok"}
