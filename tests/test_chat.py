"""`llmdeploy chat`: only the answer is on stdout."""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, World, copy_selftest, llama_server

RED, BLUE = EXAMPLES / "red.png", EXAMPLES / "blue.png"
SORRY = "I am only the self-test model. Ask me the colour of an image, or ask me to count.\n"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["What color is this?", "--image", RED], "The image is red.\n"),
        (["--image", RED, "--image", BLUE, "What color is this?"], "The images are red and blue.\n"),
        (["-i", BLUE], "The image is blue.\n"),
        (["Count to 5", "--temperature", "0"], "1 2 3 4 5\n"),
        (["Count to 5", "--system", "You are a helpful assistant.", "--seed", "7"], "1 2 3 4 5\n"),
        (["Count to 9", "--model", "selftest", "--temperature", "0"], "1 2 3 4 5 6 7 8 9\n"),
    ],
    ids=lambda it: "" if isinstance(it, str) else " ".join(str(word).rpartition("/")[2] for word in it),
)
def test_the_answer_and_nothing_else(served: World, arguments: list[str | Path], answer: str) -> None:
    assert served.run("chat", *arguments).text == f"exit 0\n--- stdout\n{answer}--- stderr\n"


def test_text_from_stdin_alone_and_with_a_prompt(served: World) -> None:
    assert served.run("chat", stdin="Count to 4\n").stdout == "1 2 3 4\n"
    both = served.run("chat", "Summarise", "--json", stdin="some notes\n")
    alone = served.run("chat", "Summarise", "--json")
    tokens = [json.loads(it.stdout)["usage"]["prompt_tokens"] for it in (both, alone)]
    assert tokens[0] > tokens[1]


def test_an_image_from_stdin(served: World) -> None:
    result = served.run("chat", "What color is this?", "--image", "-", stdin=RED.read_bytes())
    assert result.stdout == "The image is red.\n"


@pytest.fixture
def site() -> Iterator[str]:
    """Serve the example images on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(EXAMPLES))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_by_url(served: World, site: str) -> None:
    # A dead proxy in the environment must not affect requests to this machine itself.
    result = served.run(
        "chat", "--image", f"{site}/blue.png", HTTP_PROXY="http://127.0.0.1:9", ALL_PROXY="http://127.0.0.1:9"
    )
    assert result.text == "exit 0\n--- stdout\nThe image is blue.\n--- stderr\n"


def test_json_is_one_document(served: World) -> None:
    document = json.loads(served.run("chat", "Count to 3", "--temperature", "0", "--json").stdout)
    assert 0 < document.pop("ttft_seconds") <= document.pop("duration_seconds")
    usage = document.pop("usage")
    assert (usage["completion_tokens"], usage["total_tokens"]) == (6, usage["prompt_tokens"] + 6)
    assert document == {
        "model": "selftest", "engine": "llamacpp", "content": "1 2 3", "reasoning": None, "finish_reason": "stop",
    }  # fmt: skip


def test_a_cut_answer_is_reported(served: World) -> None:
    result = served.run("chat", "sing", "--max-tokens", "8", "--temperature", "0")
    assert result.status == 0
    assert result.stdout.startswith("la la")
    assert result.stderr == "the answer was cut off: it reached the limit of tokens\n"


def test_the_answer_streams(served: World) -> None:
    """Check that the first words arrive while the model is still generating."""
    chat = served.start("chat", "sing", "--max-tokens", "6000")
    assert chat.stdout is not None
    first = os.read(chat.stdout.fileno(), 100)
    assert first.startswith(b"la")
    assert chat.poll() is None
    chat.kill()
    chat.communicate()


def test_ctrl_c_ends_an_answer_and_not_the_service(served: World) -> None:
    chat = served.start("chat", "sing", "--max-tokens", "8000")
    assert chat.stdout is not None
    os.read(chat.stdout.fileno(), 100)
    chat.send_signal(signal.SIGINT)
    _, stderr = chat.communicate(timeout=5)
    assert chat.returncode == 130
    assert stderr == b""
    assert served.run("chat", "Count to 2").stdout == "1 2\n"


def test_reader_of_stdout_leaves_early(served: World) -> None:
    """`llmdeploy chat sing | head -c 5`: no traceback."""
    pipeline = f"{shlex.join(served.command())} chat sing --max-tokens 5000 | head -c 5"
    done = subprocess.run(
        ["bash", "-c", pipeline], env=served.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (done.stdout, done.stderr) == ("la la", "")


def test_configured_model_is_started_and_left_running(world: World) -> None:
    result = world.run("chat", "Count to 3", "--temperature", "0")
    assert result.stdout == "1 2 3\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "nothing is served; starting `selftest` on llamacpp in the background"
    assert lines[-2:] == [
        "`selftest` stays up at http://127.0.0.1:[PORT]/v1; `llmdeploy stop` ends it",
        "hint: this is the self-test model; `llmdeploy config set model qwen3:8b` chooses a real one",
    ]
    assert world.run("status").status == 0
    assert world.run("chat", "Count to 2").text == "exit 0\n--- stdout\n1 2\n--- stderr\n"


def test_named_model_is_started_if_nothing_is_served(world: World) -> None:
    result = world.run("chat", "--model", "selftest", "--image", RED, "What color is this?")
    assert result.stdout == "The image is red.\n"
    assert "hint:" not in result.stderr


def test_quiet_prints_only_the_answer(world: World) -> None:
    assert world.run("-q", "chat", "Count to 3").text == "exit 0\n--- stdout\n1 2 3\n--- stderr\n"


def test_chat_waits_for_a_starting_service(world: World) -> None:
    service = world.start("serve", "selftest")
    while not (world.state / "deployment.json").exists():
        time.sleep(0.01)
    result = world.run("chat", "Count to 3")
    assert (result.status, result.stdout) == (0, "1 2 3\n")
    assert all(line.startswith("[TIME] ") for line in result.stderr.splitlines()), result.stderr
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=10)


def test_asking_for_a_model_that_is_not_served(served: World) -> None:
    assert served.run("chat", "hello", "--model", "qwen3:8b").text == (
        "exit 1\n--- stdout\n--- stderr\n"
        "error: `selftest` is served, not `qwen3:8b`\n"
        "hint: `llmdeploy switch --model qwen3:8b` serves it; leave out `--model` to ask `selftest`\n"
    )


def test_waiting_for_endless_stdin_is_announced_and_limited(served: World) -> None:
    chat = served.start("chat", "hello", "--timeout", "2", stdin=subprocess.PIPE)
    assert chat.stdin is not None
    status = chat.wait(timeout=20)
    assert chat.stderr is not None
    assert chat.stdout is not None
    assert (status, chat.stdout.read(), chat.stderr.read().decode()) == (
        1,
        b"",
        "waiting up to 2 s for the end of stdin; add `< /dev/null` to skip it\n"
        "error: stdin did not end within 2 s\n"
        "hint: add `< /dev/null` to skip it\n",
    )
    for stream in (chat.stdin, chat.stdout, chat.stderr):
        stream.close()


def test_on_a_terminal_stdin_is_not_read(served: World) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        served.command("chat", "Count to 3"), env=served.environment, stdin=theirs, capture_output=True, timeout=20
    )
    os.close(ours)
    os.close(theirs)
    assert done.stdout == b"1 2 3\n"


def test_prompt_longer_than_the_context(served: World) -> None:
    result = served.run("chat", stdin="word " * 20_000)
    assert result.status == 1
    assert re.fullmatch(
        r"error: the server refused the request \(400\): "
        r"the request has \d+ tokens, and the context of `selftest` 8192\n"
        r"hint: send less, or serve the model again with a larger `--context`\n",
        result.stderr,
    )


def test_image_for_a_model_without_vision(world: World) -> None:
    copy_selftest(world.work / "m", mmproj=False)
    assert world.run("serve", "m/selftest-f16.gguf", "--detach").status == 0
    assert world.run("chat", "--image", RED, "What color is this?").text == (
        "exit 1\n--- stdout\n--- stderr\n"
        "error: the model that is served sees no images\n"
        "hint: serve one that does, with its projector: `llmdeploy serve x.gguf --mmproj mmproj.gguf`\n"
    )


def test_two_chats_at_once_with_nothing_served_are_both_answered_by_one_server(world: World) -> None:
    chats = [world.start("chat", "Count to 3", "--temperature", "0") for _ in range(2)]
    ends = [chat.communicate(timeout=30) for chat in chats]
    assert [(chat.returncode, stdout) for chat, (stdout, _) in zip(chats, ends, strict=True)] == [
        (0, b"1 2 3\n")
    ] * 2, ends
    servers = [
        process for process in world.processes() if "llmdeploy.engines.llamacpp.server_program" in process.cmdline()[:4]
    ]
    assert [server.pid for server in servers] == [json.loads(world.run("status", "--json").stdout)["server_pid"]]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
def test_invalid_temperature(world: World, value: str) -> None:
    result = world.run("chat", "hello", f"--temperature={value}")
    assert (result.status, result.stdout) == (2, ""), result.text
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert value in error
    assert hint.startswith("hint: ")
    assert not world.processes()


def test_an_error_after_a_part_of_the_answer_begins_on_its_own_line(world: World) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    chat = world.start("chat", "sing", "--max-tokens", "8000", stderr=subprocess.STDOUT)
    assert chat.stdout is not None
    first = os.read(chat.stdout.fileno(), 100)
    os.kill(json.loads(world.run("status", "--json").stdout)["server_pid"], signal.SIGKILL)
    rest, _ = chat.communicate(timeout=10)
    assert chat.returncode == 1
    answer, error, hint = (first + rest).decode().splitlines()
    assert set(answer.split()) == {"la"}
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


def test_the_timeout_reaches_the_service_that_is_started(world: World) -> None:
    llama_server(world, "sleep 60")
    result = world.run("chat", "hello", "--timeout", "1")
    assert (result.status, result.stdout) == (1, "")
    assert "error: the server was not ready after 1 s, still starting the server\n" in result.stderr
    assert not world.processes()
