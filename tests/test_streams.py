"""Streams that are closed, full or in another encoding: exit status and message are right, without a traceback."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmdeploy import __version__
from tests.conftest import EXAMPLES, ROOT, Result, World, llama_server, until

FULL = (
    "error: stdout cannot be written: No space left on device\n"
    "hint: free disk space, or write elsewhere\n"
)  # fmt: skip
CLOSED = ["2>&-", ">&-", "<&-"]
NOTHING = "hint: `llmdeploy serve` starts the configured model\n"

LIGHT: list[tuple[list[str], int, str]] = [
    (["status"], 1, "nothing is served\n"),
    (["models"], 0, "selftest"),
    (["doctor"], 0, "python"),
    (["--version"], 0, f"llmdeploy {__version__}\n"),
    (["--help"], 0, "Usage: llmdeploy"),
    (["serve", "--help"], 0, "Usage: llmdeploy serve"),
    (["stop", "--json"], 0, '"stopped": false'),
]
"""Command lines that need no server: their status, and a piece of what they say."""


def shell(world: World, line: str, *arguments: str | Path, **variables: str) -> Result:
    """Run a line of bash in which `"$@"` is the command."""
    done = subprocess.run(
        ["bash", "-c", line, "bash", *world.command(*arguments)],
        cwd=world.work, env=world.environment | variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
    )  # fmt: skip
    return Result(done.returncode, world.plain(done.stdout), world.plain(done.stderr))


def without_reader(world: World, *arguments: str) -> Result:
    """Run the command with stdout in a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    command = world.start(*arguments, stdout=writer)
    os.close(writer)
    _, stderr = command.communicate(timeout=60)
    return Result(command.returncode, "", world.plain(stderr))


def clean(result: Result) -> Result:
    """Return the result after checking that it has no traceback and no complaint of the interpreter."""
    assert "Traceback" not in result.text, result.text
    assert "Exception ignored" not in result.text, result.text
    return result


def is_served(world: World) -> bool:
    return world.run("status").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "piece"), LIGHT, ids=lambda it: " ".join(it) if type(it) is list else ""
)
@pytest.mark.parametrize("stream", CLOSED)
def test_a_closed_stream(world: World, arguments: list[str], status: int, piece: str, stream: str) -> None:
    result = clean(shell(world, f'exec "$@" {stream}', *arguments))
    assert result.status == status, result.text
    assert piece in result.stdout or stream == ">&-"
    assert "error" not in result.stderr


# With PYTHONUNBUFFERED the interpreter writes at once, without it at exit.
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [it[0] for it in LIGHT] + [["config"], ["config", "show"]], ids=" ".join)
def test_a_full_disk_behind_stdout(world: World, arguments: list[str], unbuffered: str) -> None:
    result = clean(shell(world, 'exec "$@" >/dev/full', *arguments, PYTHONUNBUFFERED=unbuffered))
    assert (result.status, result.stderr) == (1, FULL)


def test_json_error_goes_to_stderr_if_stdout_is_full(world: World) -> None:
    result = clean(shell(world, 'exec "$@" >/dev/full', "serve", "--bad", "--json"))
    assert (result.status, result.stderr) == (2, "error: No such option: --bad\nhint: `llmdeploy serve --help`\n")


@pytest.mark.parametrize("arguments", [it[0] for it in LIGHT], ids=" ".join)
def test_a_reader_that_has_left(world: World, arguments: list[str]) -> None:
    result = clean(without_reader(world, *arguments))
    assert (result.status, result.stderr) == (1, "")


# With a service


@pytest.mark.parametrize("stream", CLOSED)
def test_serve_chat_stop_with_a_closed_stream(world: World, stream: str) -> None:
    line = f'exec "$@" {stream}'
    seen = stream != ">&-"
    serve = clean(shell(world, line, "serve", "selftest", "--detach"))
    assert (serve.status, serve.stdout) == (0, "http://127.0.0.1:[PORT]/v1\n" if seen else ""), serve.text
    assert is_served(world)
    chat = clean(shell(world, line, "chat", "Count to 3"))
    assert (chat.status, chat.stdout, chat.stderr) == (0, "1 2 3\n" if seen else "", "")
    stop = clean(shell(world, line, "stop", "--json"))
    assert (stop.status, bool(stop.stdout)) == (0, seen)
    assert not world.processes()


def test_serve_chat_stop_with_a_full_disk_behind_stdout(world: World) -> None:
    """Starting and stopping work; only the output is lost."""
    line = 'exec "$@" >/dev/full'
    serve = clean(shell(world, line, "serve", "selftest", "--detach"))
    assert serve.status == 1
    assert serve.stderr.endswith(FULL)
    assert is_served(world)
    for arguments in (["chat", "Count to 3"], ["chat", "Count to 3", "--json"]):
        chat = clean(shell(world, line, *arguments))
        assert (chat.status, chat.stderr) == (1, FULL)
    stop = clean(shell(world, line, "stop", "--json"))
    assert (stop.status, stop.stderr) == (1, f"stopping `selftest` (process [PID])\n{FULL}")
    assert not world.processes()


def test_serve_chat_stop_with_a_reader_that_has_left(world: World) -> None:
    assert clean(without_reader(world, "serve", "selftest", "--detach")).status == 1
    assert is_served(world)
    for arguments in (["chat", "Count to 3"], ["chat", "Count to 3", "--json"]):
        assert clean(without_reader(world, *arguments)).text == "exit 1\n--- stdout\n--- stderr\n"
    stop = clean(without_reader(world, "stop", "--json"))
    assert (stop.status, stop.stderr) == (1, "stopping `selftest` (process [PID])\n")
    assert not world.processes()


@pytest.mark.parametrize("stream", CLOSED)
def test_a_foreground_serve_with_a_closed_stream(world: World, stream: str) -> None:
    service = subprocess.Popen(
        ["bash", "-c", f'exec "$@" {stream}', "bash", *world.command("serve", "selftest")],
        cwd=world.work, env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: is_served(world))
    service.send_signal(signal.SIGTERM)
    stdout, stderr = (world.plain(it) for it in service.communicate(timeout=10))
    clean(Result(service.returncode, stdout, stderr))
    assert service.returncode == 0
    assert stdout == ("" if stream == ">&-" else "http://127.0.0.1:[PORT]/v1\n")
    assert stderr.endswith("" if stream == "2>&-" else "stopping\nstopped\n")
    assert not world.processes()


def test_a_foreground_serve_that_cannot_print_its_address(world: World) -> None:
    for arguments in (["serve", "selftest"], ["serve", "selftest", "--json"]):
        result = clean(shell(world, 'exec "$@" >/dev/full', *arguments))
        assert result.status == 1
        assert result.stderr.endswith(FULL)
        assert not world.processes()
        record = json.loads(world.run("status", "--json").stdout)
        assert record["state"] == "failed"
        assert record["error"] == {
            "code": "stdout_unwritable",
            "message": "stdout cannot be written: No space left on device",
            "hint": "free disk space, or write elsewhere",
        }


def test_a_foreground_serve_whose_reader_has_left(world: World) -> None:
    result = clean(without_reader(world, "serve", "selftest"))
    assert result.status == 1
    assert "error" not in result.stderr
    assert not world.processes()
    assert world.run("status").text == f"exit 1\n--- stdout\nnothing is served\n--- stderr\n{NOTHING}"


def test_an_image_from_a_closed_stdin(world: World) -> None:
    result = clean(shell(world, 'exec "$@" <&-', "chat", "--image", "-", "x"))
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("error: `standard input` is empty\nhint: ")
    assert not world.processes()


# Locales and encodings

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0"}


def test_chinese_in_the_c_locale(served: World) -> None:
    for arguments in (["chat", "数到五"], ["chat", "x", "--image", "图.png"], ["serve", "模型.gguf"]):
        result = clean(served.run(*arguments, **C_LOCALE))
        assert (result.status, result.stdout) == (2, ""), result.text
        error, hint = result.stderr.splitlines()
        assert error.startswith("error: `\\udce")
        assert error.endswith("` is not text in this locale")
        assert hint == "hint: rename the file, or choose a UTF-8 locale: `LC_ALL=C.UTF-8`"
    answer = served.run("chat", "--image", EXAMPLES / "red.png", stdin="图片是什么颜色？", **C_LOCALE)
    assert answer.text == "exit 0\n--- stdout\nThe image is red.\n--- stderr\n"


@pytest.mark.parametrize(
    "variables", [C_LOCALE, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}], ids=str
)
def test_output_is_utf_8_everywhere(world: World, variables: dict[str, str]) -> None:
    assert world.run("config", "set", "model", "模型").status == 0
    assert world.run("config", "get", "model", **variables).text == "exit 0\n--- stdout\n模型\n--- stderr\n"
    assert json.loads(world.run("config", "get", "model", "--json", **variables).stdout)["value"] == "模型"
    result = clean(world.run("serve", **variables))
    assert (result.status, result.stderr.splitlines()[0]) == (
        2, "error: `模型` is not a model name, a file, a folder or a `hf://` address",
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["chat"], ["chat", "x", "--image"], ["serve"], ["config", "get"], []], ids=" ".join
)
def test_undecodable_argument(world: World, arguments: list[str]) -> None:
    word = os.fsdecode(b"a\xff")
    result = clean(world.run(*arguments, word))
    hint = "rename the file, or choose a UTF-8 locale: `LC_ALL=C.UTF-8`"
    assert (
        result.text == f"exit 2\n--- stdout\n--- stderr\nerror: `a\\udcff` is not text in this locale\nhint: {hint}\n"
    )
    as_json = world.run(*arguments, word, "--json")
    assert (as_json.status, as_json.stderr) == (2, "")
    assert json.loads(as_json.stdout)["error"]["message"] == "`a\udcff` is not text in this locale"


EVIL = "a\x1b[31m\x07\rb"
SHOWN = "a\\x1b[31m\\x07\\rb"


def test_control_characters_in_names_are_escaped(world: World) -> None:
    (world.work / f"{EVIL}.gguf").write_bytes(b"")
    for arguments in (
        ["serve", f"{EVIL}.gguf"],
        ["chat", "x", "--model", f"{EVIL}.gguf"],
        ["chat", "x", "--image", f"{EVIL}.png"],
        ["chat", "x", "--model", f"{EVIL} "],
        ["status"],
        ["doctor"],
        ["stop"],
    ):  # fmt: skip
        result = world.run(*arguments)
        assert not set("\x1b\x07\r") & set(result.text), (arguments, result.text)
        # A served name has only the characters that every engine allows.
        assert SHOWN in result.text or "`a-31m-b`" in result.text, (arguments, result.text)


def test_control_characters_in_names_on_a_terminal(world: World) -> None:
    ours, theirs = pty.openpty()
    command = world.start("chat", "x", "--image", f"{EVIL}.png", stdout=theirs, stderr=theirs)
    command.wait(timeout=20)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert f"`{SHOWN}.png` does not exist" in shown
    assert "\x1b[31m\x07" not in shown


# One JSON document


def document(result: Result) -> dict[str, object]:
    """Parse stdout, which must be exactly one JSON document."""
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--bad", "--json"],
        ["serve", "--json", "--port", "abc"],
        ["serve", "--json", ""],
        ["chat", "--json"],
        ["sevre", "--json"],
        ["--json"],
        ["config", "get", "prot", "--json"],
        ["--install-completion", "zsh", "--json"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_document(world: World, arguments: Sequence[str]) -> None:
    result = world.run(*arguments)
    assert (result.status, result.stderr) == (2, ""), result.text
    error = document(result)["error"]
    assert isinstance(error, dict)
    assert error["code"] == "usage"
    assert error["message"]
    assert error["hint"]


def test_json_after_a_double_dash_is_an_argument(world: World) -> None:
    result = world.run("serve", "--bad", "--", "--json")
    assert (
        result.text == "exit 2\n--- stdout\n--- stderr\nerror: No such option: --bad\nhint: `llmdeploy serve --help`\n"
    )


@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["foreground", "detach"])
def test_an_interrupted_start_is_one_document(world: World, detach: list[str]) -> None:
    llama_server(world, "exec sleep 60")
    command = world.start("serve", "selftest", "--json", *detach, bufsize=0)
    says = command.stderr if detach else command.stdout  # events are on stdout
    assert says is not None
    while b"starting the server" not in (line := says.readline()):
        assert line
    command.send_signal(signal.SIGINT)
    stdout, stderr = (world.plain(it) for it in command.communicate(timeout=10))
    result = clean(Result(command.returncode, stdout, stderr))
    assert result.status == 130
    documents = [it for it in map(json.loads, stdout.splitlines()) if "event" not in it] if not detach else []
    assert (documents or [document(result)]) == [
        {"error": {"code": "interrupted", "message": "interrupted", "hint": ""}}
    ]
    assert not world.processes()


def test_server_crash_during_foreground_serve_json(world: World) -> None:
    """Check that the document of the ready service stays the only one; events follow it."""
    service = world.start("serve", "selftest", "--json")
    until(lambda: is_served(world))
    killed = json.loads(world.run("status", "--json").stdout)["server_pid"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: json.loads(world.run("status", "--json").stdout).get("server_pid") not in {None, killed})
    until(lambda: is_served(world))
    service.send_signal(signal.SIGTERM)
    stdout, stderr = (world.plain(it) for it in service.communicate(timeout=10))
    clean(Result(service.returncode, stdout, stderr))
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["state"] for line in lines if "event" not in line] == ["ready"]
    notes = [line["text"] for line in lines if line.get("event") == "note"]
    assert any("killed from outside (SIGKILL); it is started again in 0.5 s" in note for note in notes)
    assert notes[-1] == "it serves again"


def test_a_bug_is_one_document_and_a_traceback(world: World) -> None:
    broken = world.folder / "broken"
    broken.mkdir()
    (broken / "psutil.py").write_text("raise RuntimeError('boom')\n")
    for arguments in (["doctor", "--json"], ["serve", "selftest", "--json"], ["serve", "selftest", "--json", "-d"]):
        result = world.run(*arguments, PYTHONPATH=f"{broken}:{ROOT}")
        assert result.status == 1, result.text
        assert document(result) == {
            "error": {
                "code": "internal",
                "message": f"this is a bug in llmdeploy {__version__}, not in what you typed: RuntimeError('boom')",
                "hint": "report it with the lines on stderr",
            }
        }
        assert "Traceback" in result.stderr
        assert "boom" in result.stderr


# Edge cases of the command line


def test_working_folder_was_removed(world: World) -> None:
    line = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    for arguments in (
        ["serve", "./x.gguf"],
        ["config", "path", "--project"],
        ["config", "set", "--project", "port", "1"],
    ):
        assert shell(world, line, *arguments).text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: the current folder no longer exists\nhint: `cd` into one that does\n"
        )
    assert clean(shell(world, line, "status")).stdout == "nothing is served\n"
    assert clean(shell(world, line, "chat", "Count to 3")).stdout == "1 2 3\n"


@pytest.mark.parametrize("arguments", [["--version"], ["-q", "--version"], ["--version", "-v"]], ids=" ".join)
def test_the_version(world: World, arguments: list[str]) -> None:
    assert world.run(*arguments).text == f"exit 0\n--- stdout\nllmdeploy {__version__}\n--- stderr\n"


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_completion_option_with_a_shell_name(world: World, option: str) -> None:
    result = world.run(option, "zsh")
    assert result.text == (
        "exit 2\n--- stdout\n--- stderr\n"
        f"error: `{option}` takes no value: it works for the shell that runs it\nhint: `llmdeploy {option}`\n"
    )
    assert not in_home(world)


def in_home(world: World) -> list[Path]:
    """List the files in the world's home folder."""
    return list((world.folder / "home").rglob("*"))


def test_config_alone_shows_its_help(world: World) -> None:
    result = clean(world.run("config"))
    assert result.status == 2
    assert "Usage: llmdeploy config" in result.stdout
    assert result.stderr == "error: a command is missing\nhint: `llmdeploy config --help`\n"
