"""`llmdeploy env` and `llmdeploy.connect()`, used by real shells and real programs."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import llmdeploy
from llmdeploy import endpoint, errors
from llmdeploy.cli import shells
from llmdeploy.endpoint import Connection, connect
from llmdeploy.service import state
from llmdeploy.service.process import identify
from llmdeploy.service.state import Record
from tests.conftest import ROOT, World

HINT = "hint: nothing is served there yet: `llmdeploy serve` starts it\n"
NAMES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL")

# The programs of each shell, and the option that runs a command.
REAL = {
    "bash": ["bash", "-c"],
    "zsh": ["zsh", "-c"],
    "sh": ["sh", "-c"],
    "dash": ["dash", "-c"],
    "ksh": ["ksh", "-c"],
    "fish": ["fish", "-c"],
    "pwsh": ["pwsh", "-NoProfile", "-Command"],
}


def tell(*names: str) -> str:
    """Return a command for any shell that prints the values of variables as a list."""
    program = "import json, os, sys; print(json.dumps([os.environ.get(name) for name in sys.argv[1:]]))"
    return " ".join([shlex.quote(sys.executable), "-c", f"'{program}'", *names])


def exports(url: str, key: str, model: str) -> str:
    return f"export OPENAI_BASE_URL='{url}'\nexport OPENAI_API_KEY='{key}'\nexport OPENAI_MODEL='{model}'\n"


def real(name: str) -> list[str]:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    return REAL[name]


def own(world: World) -> World:
    """Return the world with `llmdeploy` on its PATH."""
    program = world.folder / "bin" / "llmdeploy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m llmdeploy "$@"\n')
    program.chmod(0o755)
    world.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    return world


# Output


def test_configured_service_is_described_if_nothing_is_served(world: World) -> None:
    result = world.run("env", "--shell", "bash")
    expected = exports("http://127.0.0.1:[PORT]/v1", "none", "selftest")
    assert result.text == f"exit 0\n--- stdout\n{expected}--- stderr\n{HINT}"
    assert world.run("--quiet", "env", "--shell", "bash").stderr == ""
    assert not world.state.exists()


def test_configuration_is_used(world: World) -> None:
    variables = {
        "LLMDEPLOY_HOST": "::",
        "LLMDEPLOY_MODEL": "./models/my model.gguf",
        "LLMDEPLOY_API_KEY": "sesame",
    }
    result = world.run("env", "--shell", "sh", **variables)
    assert result.stdout == exports("http://[::1]:[PORT]/v1", "sesame", "my-model")


def test_the_document(world: World) -> None:
    result = world.run("env", "--json")
    document = {"state": "stopped", "base_url": "http://127.0.0.1:[PORT]/v1", "api_key": "none", "model": "selftest"}
    assert (result.status, json.loads(result.stdout)) == (0, {**document, "dotenv": None})


def test_running_service_takes_precedence(served: World) -> None:
    result = served.run("env", "--shell", "bash", LLMDEPLOY_PORT="1", LLMDEPLOY_MODEL="qwen3:8b")
    expected = exports("http://127.0.0.1:[PORT]/v1", "none", "selftest")
    assert result.text == f"exit 0\n--- stdout\n{expected}--- stderr\n"


@pytest.mark.parametrize(
    ("arguments", "status", "error", "hint"),
    [
        (
            ["--shell", "tcsh"],
            2,
            "`--shell` must be `bash` or `zsh` or `sh` or `fish` or `powershell`, not `tcsh`",
            "`llmdeploy env --help`",
        ),
        (
            ["--shell", "sh", "--json"],
            2,
            "`--shell` has no effect with `--dotenv` or `--json`",
            "leave it out",
        ),
        (["--dotenv", "."], 2, "`.` is not a file", "name one, such as `.env`"),
    ],
)
def test_refused_arguments(world: World, arguments: list[str], status: int, error: str, hint: str) -> None:
    result = world.run("env", *arguments)
    if "--json" in arguments:
        document = json.loads(result.stdout)["error"]
        assert (result.status, document["message"], document["hint"]) == (status, error, hint)
    else:
        assert result.text == f"exit {status}\n--- stdout\n--- stderr\nerror: {error}\nhint: {hint}\n"


def test_a_key_that_cannot_be_read_prints_nothing(world: World) -> None:
    result = world.run("env", LLMDEPLOY_API_KEY_FILE=str(world.folder / "gone"))
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("error: `api_key_file` names `[FOLDER]/gone`, which does not exist\nhint: ")


def test_hint_on_a_terminal(world: World) -> None:
    shown, terminal = pty.openpty()
    process = world.start("env", "--shell", "fish", stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert process.wait(60) == 0
    text = os.read(shown, 10_000).decode()
    os.close(shown)
    assert "hint: `llmdeploy env --shell fish | source` sets them\r\n" in text


# The shells

ODD = [
    "plain",
    "it's",
    '$HOME `id` $(id) \\n \\ "x"',
    "''",
    "\\'",
    "a  b!! #c ~ *",
    "'",
    "\\",
    "ends in \\",
    "schön ‘so’",
]


@pytest.mark.parametrize("name", REAL)
def test_real_shell_reads_each_value_unchanged(name: str) -> None:
    command = real(name)
    speaks = shells.PROGRAMS[name]
    names = [f"V{number}" for number in range(len(ODD))]
    lines = [shells.ASSIGNMENTS[speaks](variable, value) for variable, value in zip(names, ODD, strict=True)]
    done = subprocess.run([*command, "\n".join([*lines, tell(*names)])], capture_output=True, text=True)
    assert (done.stderr, json.loads(done.stdout)) == ("", ODD)


@pytest.mark.parametrize("name", REAL)
def test_examples_of_the_help_work_in_a_real_shell(name: str, world: World) -> None:
    """Run the examples without `--shell` while SHELL names another shell."""
    command = real(name)
    environment = own(world).environment
    environment |= {"LLMDEPLOY_API_KEY": 'it\'s $x "y"', "SHELL": "/bin/bash" if name == "fish" else "/usr/bin/fish"}
    line = shells.applied(shells.PROGRAMS[name], "llmdeploy env")
    done = subprocess.run(
        [*command, f"{line}\n{tell(*NAMES)}"], env=environment, cwd=world.work, capture_output=True, text=True
    )
    assert done.stderr == HINT
    assert json.loads(done.stdout) == [f"http://127.0.0.1:{world.port}/v1", 'it\'s $x "y"', "selftest"]


def test_fish_reads_all_variables_on_one_line(world: World) -> None:
    command = real("fish")
    done = subprocess.run(
        [*command, f"eval (llmdeploy env)\n{tell(*NAMES)}"], env=own(world).environment, capture_output=True, text=True
    )
    assert json.loads(done.stdout)[2] == "selftest"


def test_curly_quotes_are_doubled_for_powershell() -> None:
    """Check against PowerShell's rules: any of five quotes ends a string, and a doubled quote stands for itself."""
    assert shells.ASSIGNMENTS["powershell"]("A", "it's ‘$x’") == "$Env:A = 'it''s ‘‘$x’’'"


def test_shell_of_a_script_is_detected(world: World) -> None:
    """Run in a script, whose process has the script's name."""
    fish = real("fish")
    script = own(world).work / "deploy"
    script.write_text(f"#!{shutil.which('bash')}\nllmdeploy env\n")
    script.chmod(0o755)
    done = subprocess.run(
        [*fish, "./deploy; true"], env=world.environment, cwd=world.work, capture_output=True, text=True
    )
    assert done.stdout.startswith("export "), done.stderr


@pytest.mark.parametrize(
    ("program", "shell"),
    [("/bin/bash", "bash"), ("-zsh", "zsh"), ("/usr/bin/dash", "sh"), ("PWSH.EXE", "powershell"), ("nu", None)],
)
def test_a_shell_by_its_program(program: str, shell: str | None) -> None:
    assert shells._shell(program) == shell


# Files


def test_a_dotenv_file_is_written_and_updated(world: World) -> None:
    file = world.work / ".env"
    result = world.run("env", "--dotenv", ".env")
    assert result.text == (f"exit 0\n--- stdout\n--- stderr\nwrote {', '.join(NAMES)} to `.env`\n{HINT}")
    assert (
        file.read_text()
        == f"OPENAI_BASE_URL=http://127.0.0.1:{world.port}/v1\nOPENAI_API_KEY=none\nOPENAI_MODEL=selftest\n"
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("# mine\nOPENAI_MODEL=old\nDEBUG=1")
    file.chmod(0o644)
    result = world.run("env", "--dotenv", ".env", LLMDEPLOY_API_KEY="sesame")
    assert "error: others can read `.env`, so the API key is not written to it\n" in result.stderr
    assert "sesame" not in file.read_text()
    file.chmod(0o600)
    result = world.run("env", "--dotenv", ".env", "--json", LLMDEPLOY_MODEL="qwen3:8b", LLMDEPLOY_API_KEY="sesame")
    assert json.loads(result.stdout)["dotenv"] == "[FOLDER]/work/.env"
    assert file.read_text() == (
        "# mine\nOPENAI_MODEL=qwen3:8b\nDEBUG=1\n"
        f"OPENAI_BASE_URL=http://127.0.0.1:{world.port}/v1\nOPENAI_API_KEY=sesame\n"
    )


# From Python


def record(claim: state.Claim) -> Record:
    itself = identify(os.getpid())
    assert itself is not None
    return Record(claim, "loading", "qwen3:8b", "qwen3:8b", "vllm", "http://10.0.0.1:7", "2026-11-22", itself)


def test_connect_returns_the_running_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    state.write(record("ready"))
    assert connect() == Connection("http://10.0.0.1:7/v1", "none", "qwen3:8b")
    monkeypatch.setenv("LLMDEPLOY_API_KEY", "sesame")
    found = llmdeploy.connect()
    assert found == Connection("http://10.0.0.1:7/v1", "sesame", "qwen3:8b")
    assert repr(found) == "Connection(base_url='http://10.0.0.1:7/v1', model='qwen3:8b')"
    with pytest.raises(AttributeError):
        found.model = "x"  # type: ignore[misc]


def test_connect_raises_if_nothing_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.NotServing) as caught:
        connect()
    assert (caught.value.message, caught.value.hint) == (
        "nothing is served",
        "`llmdeploy serve` serves the configured model",
    )
    state.write(record("starting"))
    with pytest.raises(errors.NotServing, match=r"^`qwen3:8b` is still starting\n") as caught:
        connect()
    state.write(record("failed"))
    with pytest.raises(errors.NotServing, match=r"^`qwen3:8b` is no longer served\n") as caught:
        connect()
    assert caught.value.hint == "`llmdeploy status` tells why"
    assert endpoint.NO_KEY == "none"


def python(code: str, world: World) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env=world.environment, cwd=world.work, capture_output=True, text=True, timeout=60)


def test_connect_works_with_openais_client(served: World) -> None:
    done = python(
        "import llmdeploy\n"
        "from openai import OpenAI\n"
        "it = llmdeploy.connect()\n"
        "assert llmdeploy.connect() == it, 'the module of that name must not take its place'\n"
        "client = OpenAI(base_url=it.base_url, api_key=it.api_key)\n"
        "messages = [{'role': 'user', 'content': 'Count to 5'}]\n"
        "print(client.chat.completions.create(model=it.model, messages=messages).choices[0].message.content)\n",
        served,
    )
    assert done.stdout == "1 2 3 4 5\n", done.stderr


def test_a_traceback_shows_the_hint(world: World) -> None:
    done = python("from llmdeploy import connect; connect()", world)
    assert done.stderr.endswith(
        "llmdeploy.errors.NotServing: nothing is served\nhint: `llmdeploy serve` serves the configured model\n"
    )


def test_lazy_attributes(world: World) -> None:
    done = python(
        "import sys, llmdeploy\n"
        "print([it for it in sys.modules if it.startswith('llmdeploy.')])\n"
        "from llmdeploy import *\n"
        "print(connect.__name__, Connection.__name__, 'llmdeploy.endpoint' in sys.modules)\n"
        "print(hasattr(llmdeploy, 'conect'))\n",
        world,
    )
    assert done.stdout == "[]\nconnect Connection True\nFalse\n", done.stderr


def test_type_checker_knows_the_lazy_attributes(tmp_path: Path) -> None:
    """Run mypy on a program that uses the lazy attributes."""
    file = tmp_path / "app.py"
    file.write_text("import llmdeploy\n\nreveal_type(llmdeploy.connect())\nllmdeploy.connect().base_ulr\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'Revealed type is "llmdeploy.endpoint.Connection"' in done.stdout
    assert '"Connection" has no attribute "base_ulr"' in done.stdout
    assert done.stdout.count("error:") == 1, done.stdout
