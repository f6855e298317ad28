"""serve, status, stop: the life of a deployment, seen from a shell."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

from llmdeploy.engines.llamacpp.engine import PHASES
from llmdeploy.service import client, state
from llmdeploy.service.running import STOP_GRACE
from tests import hub_server
from tests.conftest import BUSY, EMBEDDED, SELFTEST, World, copy_selftest, free_port, llama_server, read_until, until
from tests.hub_server import Hub

WITHIN = 9.0
"""Seconds in which a stopped service must be gone, with all it started."""


def serve_until_ready(world: World, **options: object) -> subprocess.Popen[bytes]:
    service = world.start("serve", "selftest", **options)
    until(lambda: is_served(world))
    return service


def is_served(world: World) -> bool:
    return world.run("status").status == 0


def stop_within(world: World, seconds: float) -> None:
    """Assert that `stop` ends everything within that time."""
    began = time.monotonic()
    result = world.run("stop")
    assert result.status == 0, result.text
    assert time.monotonic() - began < seconds * BUSY
    until(lambda: not world.processes(), 3)  # the command that waited for a start has a word to say
    assert world.run("status").stdout == "nothing is served\n"


def test_foreground_shows_phases_and_prints_the_address(world: World) -> None:
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
        "[TIME] ready; Ctrl-C stops it",
        "serving `selftest` on llamacpp",
        "stopping",
        "stopped",
    ]
    assert "8192 tokens a request, 4 at a time" in plan
    assert service.returncode == 0


def test_json_prints_events_line_by_line_and_then_the_document(world: World) -> None:
    service = world.start("serve", "selftest", "--json")
    until(lambda: is_served(world))
    service.send_signal(signal.SIGTERM)
    stdout, _ = service.communicate(timeout=10)
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["phase"] for line in lines if line.get("event") == "phase"] == [
        "checking",
        "starting the server",
        "loading the weights",
        "allocating the KV cache",
    ]
    assert all(line["elapsed"] >= 0 for line in lines if line.get("event") == "phase")
    [document] = [line for line in lines if "event" not in line]
    assert (document["state"], document["served_name"]) == ("ready", "selftest")
    assert lines[-1] == {"event": "stopping"}


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


def test_status_shows_all_of_a_deployment(served: World) -> None:
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
    slots = world.ask_engine("/slots").json()
    assert [slot["n_ctx"] for slot in slots] == [1024, 1024]


def test_background_service_gets_the_options_and_its_server_no_key(world: World) -> None:
    result = world.run("serve", "selftest", "--detach", "--host", "127.0.0.2", LLMDEPLOY_API_KEY="sesame")
    assert result.status == 0, result.text
    [service] = [it for it in world.processes() if "serve" in it.cmdline()]
    assert service.cmdline()[-5:] == ["llmdeploy", "serve", "--json", "--", "selftest"]
    assert world.record()["settings"]["host"] == "127.0.0.2"
    assert world.record()["url"].startswith("http://127.0.0.2:")
    assert service.environ()["LLMDEPLOY_API_KEY"] == "sesame"
    assert not [it for it in world.processes() if "sesame" in shlex.join(it.cmdline())]
    assert "LLMDEPLOY_API_KEY" not in psutil.Process(world.record()["server"]["pid"]).environ()


def test_largest_body_is_configurable(world: World) -> None:
    assert world.run("serve", "selftest", "--detach", LLMDEPLOY_GATEWAY_MAX_BODY_MB="1").status == 0

    def sent(size: int) -> httpx.Response:
        empty = json.dumps({"model": "another", "messages": [{"role": "user", "content": ""}]})
        body = empty.replace('""', f'"{"x" * (size - len(empty))}"')
        assert len(body) == size
        return httpx.post(f"http://127.0.0.1:{world.port}/v1/chat/completions", content=body, trust_env=False)

    assert sent(2**20).json()["error"]["code"] == "model_not_found"
    assert sent(2**20 + 1).json()["error"]["message"] == "the body is larger than 1 MiB"


def test_address_of_another_machine_is_refused(world: World) -> None:
    result = world.run("serve", "selftest", "--detach", "--host", "192.0.2.77", LLMDEPLOY_API_KEY="sesame")
    assert result.text.endswith(
        "error: this machine has no address `192.0.2.77` to listen on\n"
        "hint: `llmdeploy serve selftest --host 0.0.0.0` listens on all that it has\n"
    )
    assert result.status == 1


def test_chat_without_the_key_says_how_to_give_it(world: World) -> None:
    assert world.run("serve", "selftest", "--detach", LLMDEPLOY_API_KEY="sesame").status == 0
    assert world.run("chat", "hello").stderr == (
        "error: the server refused the request (401): the API key is missing or wrong\n"
        "hint: give the key that it serves with: `export LLMDEPLOY_API_KEY=KEY`, or name its file as `api_key_file`\n"
    )


def test_gguf_file_with_its_mmproj_beside_it(world: World) -> None:
    weights = copy_selftest(world.work / "my models")
    weights.rename(weights.with_name("mine.gguf"))
    weights.with_name("mmproj-selftest-f16.gguf").rename(weights.with_name("mmproj-mine.gguf"))
    result = world.run("serve", "./my models/mine.gguf", "--detach", "--json")
    assert result.status == 0, result.text
    assert json.loads(result.stdout)["served_name"] == "mine"
    [model] = httpx.get(f"http://127.0.0.1:{world.port}/v1/models", trust_env=False).json()["data"]
    assert model["capabilities"] == ["text", "image"]
    [model] = world.ask_engine("/v1/models").json()["models"]
    assert "multimodal" in model["capabilities"]


def test_mmproj_by_flag(world: World) -> None:
    copy_selftest(world.work / "m", mmproj=False)
    result = world.run("serve", "m/selftest-f16.gguf", "--mmproj", SELFTEST / "mmproj-selftest-f16.gguf", "--detach")
    assert result.status == 0, result.text
    [model] = httpx.get(f"http://127.0.0.1:{world.port}/v1/models", trust_env=False).json()["data"]
    assert model["capabilities"] == ["text", "image"]
    [model] = world.ask_engine("/v1/models").json()["models"]
    assert "multimodal" in model["capabilities"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)], ids=lambda it: str(it)
)
def test_signal_stops_service_and_engine(world: World, number: int, status: int) -> None:
    service = serve_until_ready(world)
    began = time.monotonic()
    service.send_signal(number)
    service.communicate(timeout=10)
    assert time.monotonic() - began < WITHIN
    assert service.returncode == status
    assert not world.processes()
    assert world.run("status").text.startswith("exit 1\n--- stdout\nnothing is served\n")


@pytest.mark.parametrize("moment", ["checking", "starting the server", *(phase.name for phase in PHASES), "ready"])
def test_signal_during_the_start_leaves_nothing(world: World, moment: str) -> None:
    del world.environment["PYTHONWARNINGS"]  # an interrupted interpreter may warn of what it had no time to close
    service = world.start("serve", "selftest", bufsize=0)
    read_until(service, moment)
    service.send_signal(signal.SIGINT)
    _, stderr = service.communicate(timeout=10)
    assert service.returncode == 130, stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert not world.processes()
    assert world.run("status").stdout == "nothing is served\n"


def test_closed_terminal_stops_everything(world: World) -> None:
    ours, theirs = pty.openpty()
    service = world.start("serve", "selftest", stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_own_terminal)
    os.close(theirs)
    until(lambda: is_served(world))
    os.close(ours)
    service.wait(timeout=WITHIN)
    until(lambda: not world.processes(), WITHIN)
    assert world.run("status").stdout == "nothing is served\n"


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_engine_that_ignores_sigterm_is_killed(world: World) -> None:
    """Kill a real engine that is suspended: the watchdog waits for the grace and then kills it."""
    assert world.run("serve", "selftest", "--detach").status == 0
    server = json.loads(world.run("status", "--json").stdout)["server_pid"]
    os.kill(server, signal.SIGSTOP)  # a stopped process does not act on SIGTERM
    began = time.monotonic()
    assert world.run("stop").status == 0
    assert STOP_GRACE - 0.5 < time.monotonic() - began < WITHIN
    assert not world.processes()


def test_kill_9_of_the_service_ends_the_engine(world: World) -> None:
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
        "  reason   the service was killed or crashed, and left no message\n"
        "  context  8192 tokens a request, 4 at a time\n"
        "  log      [FOLDER]/state/server.log\n"
        "--- stderr\n"
        "hint: `llmdeploy serve` serves again; `llmdeploy stop` only clears the record\n"
    )
    assert world.run("serve", "selftest", "--detach").status == 0
    assert world.run("status").status == 0


def served_by(world: World, *others: int) -> int:
    """Wait until a server other than these is ready; return its pid."""
    until(lambda: world.record()["state"] == "ready" and world.record()["server"]["pid"] not in others, 20)
    return int(world.record()["server"]["pid"])


def test_engine_is_started_again_after_kill_9(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    first = served_by(world)
    os.kill(first, signal.SIGKILL)
    until(lambda: world.record()["state"] == "starting", 2)
    assert served_by(world, first) != first
    assert world.run("chat", "Count to 3").stdout == "1 2 3\n"
    told = (world.state / "service.log").read_text()
    assert "the server was killed from outside (SIGKILL); it is started again in 0.5 s\n" in told
    stop_within(world, WITHIN)


def test_start_with_other_settings_does_not_take_over_repairs(world: World) -> None:
    # A repair that was remembered must not outlive the setting that its hint asks for.
    for threads in ("1", "2", "2"):
        assert world.run("serve", "selftest", "--detach", "--threads", threads).status == 0
        assert world.run("stop").status == 0
    assert len(json.loads((world.state / "starts.json").read_text())) == 2


def test_server_is_started_again_although_its_log_cannot_be_opened(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    first = served_by(world)
    log = world.state / "server.log"
    log.unlink()
    log.mkdir()
    os.kill(first, signal.SIGKILL)
    assert served_by(world, first) != first
    assert world.run("chat", "Count to 3").stdout == "1 2 3\n"


def test_signal_stops_a_service_that_waits_to_start_its_server_again(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    killed: list[int] = []
    for _ in range(3):
        killed.append(served_by(world, *killed))
        os.kill(killed[-1], signal.SIGKILL)
    until(lambda: world.record()["phase"] == "restarting", WITHIN)
    stop_within(world, 1.5)


def orphan(world: World) -> int:
    """Return the pid of a server whose service and watchdog were killed with -9."""
    assert world.run("serve", "selftest", "--detach").status == 0
    service, server = (world.record()[name]["pid"] for name in ("service", "server"))
    guard = psutil.Process(server).parent()
    assert guard is not None
    os.kill(service, signal.SIGSTOP)  # it must not notice that its guard goes
    guard.kill()
    os.kill(service, signal.SIGKILL)
    until(lambda: [process.pid for process in world.processes()] == [server])
    return int(server)


def test_engine_is_found_after_kill_9_of_service_and_watchdog(world: World) -> None:
    server = orphan(world)
    document = json.loads(world.run("status", "--json").stdout)
    assert (document["state"], document["server_pid"]) == ("crashed", server)
    assert "  server   process [PID]\n" in world.run("status").stdout  # it is not said to be gone
    result = world.run("serve", "selftest", "--detach")
    assert result.status == 0, result.text
    assert server not in [process.pid for process in world.processes()]


def test_stop_ends_a_leftover_server(world: World) -> None:
    orphan(world)
    stop_within(world, WITHIN)


def test_kill_9_of_the_watchdog_ends_the_engine(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    document = json.loads(world.run("status", "--json").stdout)
    psutil.Process(document["server_pid"]).parent().kill()
    until(lambda: not psutil.pid_exists(document["server_pid"]), WITHIN)
    assert served_by(world, document["server_pid"])


def test_process_that_reuses_a_recorded_pid_is_left_alone(world: World) -> None:
    """`stop` must not touch a process that has the pid of the record, but started at another time."""
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
            "exit 0\n--- stdout\n--- stderr\n`selftest` had already ended; its record is cleared\n"
        )
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '"text"', '{"schema":1,"server":3}']
)
def test_broken_record_counts_as_no_record(world: World, content: str) -> None:
    world.state.mkdir()
    (world.state / "deployment.json").write_text(content)
    assert world.run("status").text.startswith("exit 1\n--- stdout\nnothing is served\n")
    assert world.run("stop").status == 0


def test_second_serve_is_refused(served: World) -> None:
    for arguments in (["serve", "selftest"], ["serve", "selftest", "--detach"]):
        assert served.run(*arguments).text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: `selftest` is served already on llamacpp at http://127.0.0.1:[PORT] (process [PID])\n"
            "hint: `llmdeploy stop` ends it; LLMDEPLOY_STATE_DIR names another folder for a second one\n"
        )
    assert served.run("status").status == 0


def test_one_of_two_simultaneous_serves_wins(world: World) -> None:
    both = [world.start("serve", "selftest", "--detach") for _ in range(2)]
    ends = [process.communicate(timeout=30) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], ends
    assert world.run("status").status == 0


def test_port_in_use_names_its_holder_and_a_free_one(world: World) -> None:
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
    # The `llama-server` never listens.
    llama_server(world, "sleep 60")
    result = world.run("serve", "selftest", "--timeout", "0.5")
    assert result.status == 1
    assert "error: the server was not ready after 0.5 s, still starting the server\n" in result.stderr
    assert not world.processes()


def test_long_phase_is_mentioned_again(world: World) -> None:
    llama_server(world, "echo reading tensors; sleep 60")
    result = world.run("serve", "selftest", "--timeout", "6")
    assert "[TIME] still starting the server: reading tensors\n" in result.stderr


def test_interrupting_detach_stops_the_start(world: World) -> None:
    llama_server(world, "sleep 60")
    command = world.start("serve", "selftest", "--detach")
    until(lambda: b"starting the server" in (world.state / "service.log").read_bytes() if world.state.exists() else 0)
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=10)
    assert command.returncode == 130
    assert not world.processes()


def test_llama_server_on_path_is_preferred(world: World) -> None:
    llama_server(world, EMBEDDED)
    result = world.run("serve", "selftest", "--detach", "--json")
    assert result.status == 0, result.text
    assert json.loads(result.stdout)["engine_version"] == "7777 (abcdef0)"
    assert "llama-server 7777 (abcdef0) at `[FOLDER]/bin/llama-server`, found on PATH" in world.run("doctor").stdout
    assert world.run("chat", "Count to 3").stdout == "1 2 3\n"


def test_broken_llama_server_on_path_is_passed_over(world: World) -> None:
    llama_server(world, "echo 'error while loading shared libraries: libcuda.so.1' >&2; exit 127", version=False)
    doctor = world.run("doctor")
    assert (
        "the embedded build; `[FOLDER]/bin/llama-server` (found on PATH) cannot be run: error while loading"
        in doctor.stdout
    )
    assert world.run("serve", "selftest", "--detach").status == 0


def test_first_request_after_ready_is_answered(world: World) -> None:
    """Ready means that the very first request is answered; benchmarks/first_answer.py measures how soon."""
    assert world.run("serve", "selftest", "--detach").status == 0
    body = {"model": "selftest", "messages": [{"role": "user", "content": "Count to 2"}], "temperature": 0}
    answer = httpx.post(f"http://127.0.0.1:{world.port}/v1/chat/completions", json=body, trust_env=False)
    assert answer.json()["choices"][0]["message"]["content"] == "1 2"


FILES = ("deployment.json", "digests.json", "server.log", "service.log", "service.lock", "starts.json", "token")


def test_state_files_are_private(served: World) -> None:
    until(lambda: served.record()["receipt"])
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in served.state.iterdir()}
    assert modes == dict.fromkeys(FILES, "0o600")
    assert oct(served.state.stat().st_mode & 0o777) == "0o700"


def test_another_port_by_flag(world: World) -> None:
    port = free_port()
    result = world.run("serve", "selftest", "--detach", "--port", str(port))
    assert result.stdout == f"http://127.0.0.1:{port}/v1\n"
    assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json() == {
        "status": "ok",
        "engine": "llamacpp",
        "model": "selftest",
    }


# Beyond doubt: the server that is announced is ours

# A program that answers 200 to everything and claims to serve a model. `spawn` leaves one behind that claims ours.
STRANGER = """
import http.server, subprocess, sys
port = sys.argv[sys.argv.index("--port") + 1]
if sys.argv[1] == "spawn":
    command = [sys.executable, __file__, "selftest", "--port", port]
    subprocess.Popen(command, start_new_session=True, stdout=-3, stderr=-3)
    sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status": "ok", "data": [{"id": "%s"}]}' % sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("way", "after", "error"),
    [
        ("other", "", "the server was not ready after 1 s, still starting the server"),
        # The server stays until the stranger has been asked for its health.
        ("spawn", "; sleep 0.5; exit 1", "the server ended before it was ready (status 1): it wrote nothing"),
    ],
)
def test_another_program_on_the_port_is_never_taken_for_the_server(
    world: World, way: str, after: str, error: str
) -> None:
    stranger = world.folder / "stranger.py"
    stranger.write_text(STRANGER)
    llama_server(world, f'"{sys.executable}" "{stranger}" {way} "$@"{after}')
    result = world.run("serve", "selftest", "--timeout", "1")
    for process in world.processes():
        assert str(stranger) in process.cmdline()
        process.kill()
    assert (result.status, result.stdout) == (1, ""), result.text
    assert f"error: {error}\n" in result.stderr
    assert "ready;" not in result.stderr


@pytest.mark.parametrize("moment", ["before it was ready", "while it served"])
def test_open_pipe_delays_neither_an_end_nor_a_stop(world: World, moment: str) -> None:
    # A process that the server started, and that left its process group, may hold its stderr open for ever.
    leave = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    left_behind = f'"{sys.executable}" -c "{leave}"'
    llama_server(world, f"{left_behind}\n{'exit 3' if moment == 'before it was ready' else EMBEDDED}")
    began = time.monotonic()
    result = world.run("serve", "selftest", "--detach")
    if moment == "before it was ready":
        assert time.monotonic() - began < WITHIN
        assert "error: the server ended before it was ready (status 3): it wrote nothing\n" in result.stderr
    else:
        assert result.status == 0, result.text
        killed = world.record()["server"]["pid"]
        os.kill(killed, signal.SIGKILL)
        served_by(world, killed)
        began = time.monotonic()
        assert world.run("stop").status == 0
        assert time.monotonic() - began < WITHIN
    assert "Traceback" not in (world.state / "service.log").read_text()
    for process in world.processes():
        assert process.cmdline() == ["sleep", "60"]
        process.kill()


# The start


def test_deadline_counts_from_the_start_of_the_server(world: World) -> None:
    llama_server(world, 'case "$1" in --version) sleep 1.2; echo "version: 1" >&2;; *) sleep 60;; esac', version=False)
    began = time.monotonic()
    result = world.run("serve", "selftest", "--timeout", "1")
    assert "error: the server was not ready after 1 s" in result.stderr
    assert time.monotonic() - began > 1.2 + 1


def test_missing_engine_is_reported_before_any_download(world: World) -> None:
    assert world.run("config", "set", "engines.llamacpp.server", world.folder / "none").status == 0
    with hub_server.serve(Hub(files={"owner/repo": {"x.gguf": b"GGUF"}})) as hub:
        result = world.run("serve", "hf://owner/repo/x.gguf", HF_ENDPOINT=hub.url)
        assert hub.requests == []
    assert result.status == 1
    assert "error: `[FOLDER]/none` (set by `engines.llamacpp.server`) cannot be run: No such file" in result.stderr
    assert "fetching" not in result.stderr


def test_phases_only_go_forward(world: World) -> None:
    # The log lines of a draft model, which is loaded after the model, are not taken for the model's.
    lines = ["loading model", "initializing, n_slots = 4", "loading model"]
    llama_server(world, "\n".join(f"echo 'srv: {line}'" for line in lines) + "\nsleep 60")
    result = world.run("serve", "selftest", "--timeout", "1")
    said = [line.removeprefix("[TIME] ") for line in result.stderr.splitlines() if line.startswith("[TIME] ")]
    assert said == ["checking", "starting the server", "loading the weights", "allocating the KV cache"]
    assert "error: the server was not ready after 1 s, still allocating the KV cache\n" in result.stderr


def test_detach_mentions_a_long_phase(world: World) -> None:
    llama_server(world, "echo reading tensors; sleep 60")
    result = world.run("serve", "selftest", "--detach", "--timeout", "6.5")
    assert "[TIME] still starting the server: reading tensors\n" in result.stderr, result.text


def test_detach_reports_that_another_command_stopped_the_start(world: World) -> None:
    llama_server(world, "sleep 60")
    command = world.start("serve", "selftest", "--detach", bufsize=0)
    read_until(command, "starting the server")
    stop_within(world, WITHIN)
    _, stderr = command.communicate(timeout=10)
    assert command.returncode == 1
    assert stderr.decode().endswith(
        "error: the start was stopped by another command\nhint: `llmdeploy serve` starts again\n"
    )


# The record


@pytest.mark.parametrize("gone", ["deployment.json", "."])
def test_deleted_record_is_written_again(world: World, gone: str) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    until(lambda: world.record()["receipt"])  # the last that is written
    if gone == ".":
        shutil.rmtree(world.state)
    else:
        (world.state / gone).unlink()
    assert not is_served(world)
    until(lambda: is_served(world), 3 * BUSY)
    (world.state / "token").unlink(missing_ok=True)
    until(lambda: (world.state / "token").is_file(), 3 * BUSY)
    stop_within(world, WITHIN)


def test_unreadable_record_does_not_end_the_service(world: World) -> None:
    # The record is replaced by a folder, as the superuser may read any file.
    service = serve_until_ready(world)
    file = world.state / "deployment.json"
    file.unlink()
    file.mkdir()
    for _ in range(2):  # the service has looked, and tried to write it again
        before = world.state.stat().st_mtime_ns
        until(lambda before=before: world.state.stat().st_mtime_ns != before)
    assert httpx.get(f"http://127.0.0.1:{world.port}/health", trust_env=False).status_code == 200
    file.rmdir()
    until(lambda: is_served(world), 3 * BUSY)
    stop_within(world, WITHIN)
    _, stderr = service.communicate(timeout=10)
    assert service.returncode == 0
    assert "Traceback" not in stderr.decode()


# Signals


def has_signal(pid: int, field: str, number: int) -> bool:
    """Return whether a signal is in one of the sets of /proc/PID/status."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines[field], 16) >> (number - 1) & 1)


def test_second_ctrl_c_kills_a_server_that_does_not_react(world: World) -> None:
    service = serve_until_ready(world)
    server = world.record()["server"]["pid"]
    os.kill(server, signal.SIGSTOP)
    service.send_signal(signal.SIGINT)
    until(lambda: has_signal(server, "ShdPnd", signal.SIGTERM))
    began = time.monotonic()
    service.send_signal(signal.SIGINT)
    _, stderr = service.communicate(timeout=10)
    assert time.monotonic() - began < 1.5 * BUSY
    assert service.returncode == 130
    assert "Traceback" not in stderr.decode()
    assert not world.processes()


@pytest.mark.parametrize("way", ["foreground", "detach"])
def test_suspended_service_is_stopped(world: World, way: str) -> None:
    if way == "foreground":
        service = serve_until_ready(world)
    else:
        assert world.run("serve", "selftest", "--detach").status == 0
    os.kill(world.record()["service"]["pid"], signal.SIGSTOP)
    stop_within(world, WITHIN)
    if way == "foreground":
        _, stderr = service.communicate(timeout=10)
        assert service.returncode == 0, stderr.decode()


def test_service_that_ignores_sigterm_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve_until_ready(world, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setenv("LLMDEPLOY_STATE_DIR", str(world.state))
    monkeypatch.setattr(client, "STOP_DEADLINE", 0.5)
    client.stop(state.observe())
    service.communicate(timeout=WITHIN)
    assert service.returncode == -signal.SIGKILL
    until(lambda: not world.processes(), WITHIN)
    assert world.run("status").stdout == "nothing is served\n"


def test_signal_that_was_ignored_before_stays_ignored(world: World) -> None:
    """`nohup llmdeploy serve` outlives its terminal."""
    service = serve_until_ready(world, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    service.send_signal(signal.SIGHUP)
    assert has_signal(service.pid, "SigIgn", signal.SIGHUP)
    assert world.run("chat", "Count to 3").stdout == "1 2 3\n"
    assert service.poll() is None
    stop_within(world, WITHIN)
    service.communicate(timeout=10)
    assert service.returncode == 0
