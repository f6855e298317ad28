"""Bad input: message, hint and exit status are right, and nothing is left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, SELFTEST, World, copy_selftest

RED = EXAMPLES / "red.png"


@pytest.fixture
def bad(world: World) -> World:
    """Return a world whose working folder has files that are neither models nor images."""
    folder = world.work
    (folder / "folder").mkdir()
    (folder / "text.gguf").write_text("hello, this is text\n" * 50)
    (folder / "empty.gguf").write_bytes(b"")
    whole = (SELFTEST / "selftest-f16.gguf").read_bytes()
    (folder / "header.gguf").write_bytes(whole[:1000])
    (folder / "tensors.gguf").write_bytes(whole[:1_500_000])
    (folder / "text.png").write_text("not an image\n")
    (folder / "cut.png").write_bytes(RED.read_bytes()[:200])
    (folder / "gone.png").symlink_to("nowhere.png")
    return world


CASES = [
    (
        ["serve", "selftset"], 1,
        "error: no model is called `selftset`",
        "hint: did you mean `selftest`?",
    ),
    (
        ["serve", "qwen2.5-vx:7b"], 1,
        "error: no model is called `qwen2.5-vx:7b`",
        "hint: did you mean `qwen2.5-vl:7b` or `qwen2.5-vl:72b` or `qwen2.5:7b`?",
    ),
    (
        ["serve", "no such model"], 2,
        "error: `no such model` is not a model name, a file, a folder or a `hf://` address",
        "hint: `llmdeploy models catalog` lists the names",
    ),
    (
        ["serve", "./missing.gguf"], 1,
        "error: there is no file `[FOLDER]/work/missing.gguf`",
        None,
    ),
    (
        ["serve", "./folder"], 1,
        "error: `[FOLDER]/work/folder` is a folder, not a GGUF file",
        "hint: give a `.gguf` file",
    ),
    (
        ["serve", "text.gguf"], 1,
        "error: `[FOLDER]/work/text.gguf` is not a GGUF file, whatever its name says",
        None,
    ),
    (
        ["serve", "empty.gguf"], 1,
        "error: `[FOLDER]/work/empty.gguf` is empty",
        "hint: the download did not finish: fetch it again",
    ),
    (
        ["serve", "header.gguf"], 1,
        "error: `[FOLDER]/work/header.gguf` is truncated or damaged: "
        "its header does not end within the 1,000 bytes that are there",
        "hint: fetch the file again",
    ),
    (
        ["serve", "tensors.gguf"], 1,
        "error: `[FOLDER]/work/tensors.gguf` is truncated or damaged: "
        "1,500,000 bytes are there and 1,726,752 are needed",
        "hint: fetch the file again",
    ),
    (
        ["serve", "selftest", "--mmproj", "none.gguf"], 1,
        "error: there is no file `[FOLDER]/work/none.gguf`",
        "hint: give the vision projector's path with `--mmproj`",
    ),
    (
        ["serve", "hf://owner/repo/x.safetensors"], 2,
        "error: `hf://owner/repo/x.safetensors` does not name a repository or a GGUF file of the Hub",
        "hint: the forms are `hf://owner/repo`, `hf://owner/repo:Q4_K_M` and `hf://owner/repo/file.gguf`",
    ),
    (
        ["serve", "selftest", "--context", "9000"], 1,
        "error: a context of 9000 tokens is longer than the model's own, 8192",
        "hint: ask for at most that: `--context 8192`",
    ),
    (
        ["serve", "selftest", "--port", "99999"], 2,
        "error: Invalid value for '--port': 99999 is not in the range 1<=x<=65535",
        "hint: `llmdeploy serve --help`",
    ),
    (
        ["serve", "--engine", "lamacpp"], 2,
        "error: `--engine` must be `llamacpp` or `ollama` or `vllm`, not `lamacpp`",
        None,
    ),
    (
        ["serve", "--host", "example.com"], 2,
        "error: `--host` must be an IP address or `localhost`, not `example.com`",
        None,
    ),
    (
        ["serve", "--host", "0.0.0.0", "--detach"], 1,
        "error: others can reach `0.0.0.0`, and no API key is set",
        "hint: make one: `mkdir -p [FOLDER]/home/.config/llmdeploy && "
        "(umask 077 && openssl rand -hex 32 > [FOLDER]/home/.config/llmdeploy/api_key) && "
        "llmdeploy config set api_key_file [FOLDER]/home/.config/llmdeploy/api_key`",
    ),
    (
        ["serve", "--prot", "1"], 2,
        "error: No such option: --prot (Possible options: --host, --mmproj, --port)",
        "hint: `llmdeploy serve --help`",
    ),
    (
        ["srve"], 2,
        "error: No such command 'srve'. Did you mean 'serve'?",
        "hint: `llmdeploy --help`",
    ),
    (
        ["chat", "hello", "--max-tokens", "-1"], 2,
        "error: Invalid value for '--max-tokens': -1 is not in the range x>=1",
        "hint: `llmdeploy chat --help`",
    ),
    (["chat"], 2, "error: no prompt was given", 'hint: `llmdeploy chat "Hello"`'),
    (
        ["chat", "--image", "missing.png", "x"], 1,
        "error: `missing.png` does not exist",
        None,
    ),
    (
        ["chat", "--image", "text.png", "x"], 1,
        "error: `text.png` is text, not an image",
        "hint: PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are read",
    ),
    (
        ["chat", "--image", "cut.png", "x"], 1,
        None,
        "hint: was it cut? download or export it again",
    ),
    (
        ["chat", "--image", "folder", "x"], 1,
        "error: `folder` is a folder",
        "hint: name one image",
    ),
    (
        ["chat", "--image", "http://127.0.0.1:9/a.png", "x"], 1,
        "error: `http://127.0.0.1:9/a.png` cannot be fetched: `127.0.0.1` refused the connection",
        "hint: check the port; is the server up?",
    ),
    (
        ["chat", "--image", "-", "--image", "-", "x"], 2,
        "error: stdin can hold only one image",
        "hint: give `--image -` once",
    ),
    (
        ["chat", "hello", "--model", "selftset"], 1,
        "error: no model is called `selftset`",
        "hint: did you mean `selftest`?",
    ),
    (
        ["config", "get", "prot"], 2,
        "error: unknown key `prot`",
        None,
    ),
    (
        ["config", "set", "port", "abc"], 2,
        "error: `port` must be a whole number from 1 to 65535, not `abc`",
        None,
    ),
    (
        ["serve", ""], 2,
        "error: `` is not a model name, a file, a folder or a `hf://` address",
        "hint: `llmdeploy models catalog` lists the names",
    ),
    (
        ["serve", "http://x/y.gguf"], 2,
        "error: `http://x/y.gguf` is not the address of a model",
        "hint: the forms are `hf://owner/repo`, `hf://owner/repo:Q4_K_M` and `hf://owner/repo/file.gguf`",
    ),
    (["serve", "a" * 8000], 1, None, "hint: `llmdeploy models catalog` lists the names"),
    (["serve", f"{'a' * 8000}.gguf"], 1, None, None),
    (
        ["serve", f"hf://owner/repo/{'a' * 8000}"],
        2,
        None,
        "hint: the forms are `hf://owner/repo`, `hf://owner/repo:Q4_K_M` and `hf://owner/repo/file.gguf`",
    ),
    (
        ["serve", "--context", "100"], 2,
        "error: Invalid value for '--context': 100 is not in the range 256<=x<=100000000",
        "hint: `llmdeploy serve --help`",
    ),
    (
        ["serve", "--parallel", "1000"], 2,
        "error: Invalid value for '--parallel': 1000 is not in the range 1<=x<=256",
        "hint: `llmdeploy serve --help`",
    ),
    (
        ["serve", "--threads", "99999"], 2,
        "error: Invalid value for '--threads': 99999 is not in the range 1<=x<=1024",
        "hint: `llmdeploy serve --help`",
    ),
    (
        ["chat", "--image", "", "x"], 2,
        "error: `--image` is empty",
        "hint: give a file, an address, or `-` for stdin",
    ),
    (
        ["chat", "--image", "gone.png", "x"], 1,
        "error: `gone.png` does not exist",
        "hint: it is a link to a file that does not exist",
    ),
    (
        ["config", "set", "engines.llamacpp.server", "bin/llama-server"], 2,
        "error: `engines.llamacpp.server` must be the absolute path of a program, not `bin/llama-server`",
        None,
    ),
    (
        ["config", "set", "--project", "engines.llamacpp.server", "/x"], 2,
        "error: `engines.llamacpp.server` names a program to run, which the file of a folder may not",
        None,
    ),
    (["logs"], 1, "error: `[FOLDER]/state/server.log` does not exist yet", "hint: `llmdeploy serve` writes the log"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "error", "hint"), CASES, ids=lambda it: str(it)[:60])
def test_bad_input(bad: World, arguments: list[str], status: int, error: str | None, hint: str | None) -> None:
    result = bad.run(*arguments)
    lines = result.stderr.splitlines()
    assert (result.status, result.stdout) == (status, ""), result.text
    assert lines[-2] == error if error else lines[-2].startswith("error: "), result.text
    assert lines[-1] == hint if hint else lines[-1].startswith("hint: "), result.text
    assert not bad.processes()

    as_json = bad.run(*arguments, "--json")
    if "--json" not in as_json.stdout:  # commands without a JSON document
        document = json.loads(as_json.stdout)["error"]
        assert as_json.status == status
        assert [f"error: {document['message']}", f"hint: {document['hint']}"] == lines[-2:]


def test_binary_prompt_on_stdin_is_refused(world: World) -> None:
    result = world.run("chat", stdin=RED.read_bytes())
    assert result.text == (
        "exit 2\n--- stdout\n--- stderr\nerror: stdin is not text\nhint: an image is given as `--image -`\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("port = 8000\nprot = 1\n", "`[FOLDER]/home/.config/llmdeploy/config.toml`, line 2: unknown key `prot`"),
        (
            'model = "selftest"\n\nport = "x"\n',
            "`[FOLDER]/home/.config/llmdeploy/config.toml`, line 3: "
            '`port` must be a whole number from 1 to 65535, not "x"',
        ),
        ("port = \n", "`[FOLDER]/home/.config/llmdeploy/config.toml`, line 1, column 8: invalid value"),
    ],
    ids=["unknown key", "wrong type", "bad TOML"],
)
def test_a_broken_config_file(world: World, content: str, message: str) -> None:
    world.config.parent.mkdir(parents=True)
    world.config.write_text(content)
    for arguments in (["serve"], ["chat", "hello"], ["config", "show"]):
        result = world.run(*arguments)
        assert (result.status, result.stdout) == (1, "")
        assert result.stderr.splitlines()[0] == f"error: {message}"
        assert result.stderr.splitlines()[1].startswith("hint: ")
    assert world.config.read_text() == content


def test_a_state_folder_that_cannot_be_written(world: World) -> None:
    """Block the folder with a file, because root may write into any folder."""
    blocked = world.folder / "blocked"
    blocked.write_text("")
    for arguments in (["serve", "selftest"], ["serve", "selftest", "--detach"], ["chat", "hello"]):
        result = world.run(*arguments, LLMDEPLOY_STATE_DIR=str(blocked / "state"))
        assert result.status == 1
        assert result.stderr.splitlines()[-2:] == [
            "error: the state folder `[FOLDER]/blocked/state` cannot be written: Not a directory",
            "hint: name another: `LLMDEPLOY_STATE_DIR=/tmp/llmdeploy-$USER llmdeploy serve`",
        ]
    assert world.run("status", LLMDEPLOY_STATE_DIR=str(blocked / "state")).status == 1


def test_a_full_state_folder(world: World) -> None:
    """/dev/full acts as a full disk; that the record cannot be written is reported."""
    world.state.mkdir()
    (world.state / "service.lock").symlink_to("/dev/full")
    result = world.run("serve", "selftest")
    assert result.status == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_working_folder_is_not_on_the_import_path(world: World) -> None:
    """Check that the service does not import a file json.py from the working folder."""
    for name in ("json.py", "signal.py", "xllamacpp.py"):
        (world.work / name).write_text("raise SystemExit('hijacked')\n")
    copy_selftest(world.work)
    program = Path(world.command()[0]).with_name("llmdeploy")
    assert program.exists()
    import subprocess

    done = subprocess.run(
        [program, "chat", "--model", "selftest-f16.gguf", "Count to 3"],
        cwd=world.work, env=world.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1 2 3\n"), done.stderr


def test_programs_are_not_run_from_the_working_folder(world: World) -> None:
    program = world.work / "llama-server"
    program.write_text(f"#!/bin/sh\ntouch '{world.folder}/ran'\n")
    program.chmod(0o755)
    (world.work / "llmdeploy.toml").write_text(f"[engines.llamacpp]\nserver = '{program}'\n")
    message = "`engines.llamacpp.server` names a program to run, which the file of a folder may not"
    for arguments in (["serve"], ["serve", "--detach"], ["chat", "hello"], ["models"], ["config", "show"], ["doctor"]):
        result = world.run(*arguments)
        assert result.status == 1
        assert f"`./llmdeploy.toml`, line 2: {message}" in result.text
        assert "`llmdeploy config set engines.llamacpp.server /path/to/program` writes it" in result.stderr
    assert not (world.folder / "ran").exists()
    assert not world.state.exists()


def test_a_value_that_begins_with_a_dash(world: World) -> None:
    assert world.run("config", "set", "engines.llamacpp.gpu_layers", "-1").status == 0
    assert world.run("config", "get", "engines.llamacpp.gpu_layers").stdout == "-1\n"


def test_configuration_file_that_is_a_pipe_or_endless(world: World) -> None:
    """Check that the error comes at once; opening a pipe would block until something writes to it."""
    pipe = world.work / "llmdeploy.toml"
    os.mkfifo(pipe)
    for arguments in (["serve"], ["chat", "hello"], ["config", "show"]):
        assert world.run(*arguments, timeout=10).text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: `./llmdeploy.toml` is a pipe\nhint: move it away: a configuration file is TOML text\n"
        )
    pipe.unlink()
    for arguments in (["serve"], ["chat", "hello"], ["config", "show"]):
        assert world.run(*arguments, timeout=10, LLMDEPLOY_CONFIG="/dev/zero").text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: `/dev/zero` is larger than 1 MiB\nhint: a configuration file is a few lines of TOML text\n"
        )


def test_world_writable_state_folder(world: World) -> None:
    """Refuse a record that others can write: they could make llmdeploy kill processes."""
    world.state.mkdir()
    world.state.chmod(0o777)
    for arguments in (["status"], ["serve", "selftest"], ["serve", "selftest", "-d"], ["stop"], ["chat", "hello"]):
        assert world.run(*arguments).text == (
            "exit 1\n--- stdout\n--- stderr\n"
            "error: the state folder `[FOLDER]/state` may be written to by everyone\n"
            "hint: `chmod go-w [FOLDER]/state` if nobody else has used it, or "
            "name another: `LLMDEPLOY_STATE_DIR=/tmp/llmdeploy-$USER llmdeploy serve`\n"
        )
    assert "fail  state" in world.run("doctor").stdout
    world.state.chmod(0o700)


def test_no_command(world: World) -> None:
    result = world.run()
    assert result.status == 2
    assert "Usage: llmdeploy" in result.stdout
