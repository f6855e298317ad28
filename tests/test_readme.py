"""The README is correct: its commands are run in order, and their output is compared."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import hub_server
from tests.conftest import ROOT, SELFTEST, OwnOllama, World
from tests.transcripts import CHINESE, README, Ada, VllmUser, alike, blocks, transcripts


def test_transcripts(tmp_path: Path) -> None:
    ada = Ada(tmp_path)
    del ada.environment["LLMDEPLOY_PORT"]
    (ada.home / ".config" / "llmdeploy").mkdir(parents=True)
    # Unlike on a fresh machine, the port is one that no other test uses.
    shown = transcripts()
    assert len(shown) >= 15
    try:
        for command, output in shown:
            port = {} if command.startswith("llmdeploy config") else {"LLMDEPLOY_PORT": str(ada.port)}
            ada.environment |= port
            seen = ada.type(command)
            for name in port:
                del ada.environment[name]
            assert alike(seen) == alike(output), command
    finally:
        ada.type("llmdeploy stop")


@pytest.mark.ollama
def test_transcript_of_ollama(tmp_path: Path, daemon: OwnOllama) -> None:
    follow(Ada(tmp_path), "console ollama", {"OLLAMA_HOST": daemon.url}, {daemon.port: "11434"})


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_transcript_of_vllm(on_vllm: VllmUser) -> None:
    serve, chat, stop = transcripts("console vllm")
    assert alike(on_vllm.said) == alike(serve[1])
    assert on_vllm.type(chat[0]) == chat[1]
    # Other tests use the server, so it goes on; what `stop` says is compared after the switch.
    shown = transcripts("console switch")[-1]
    assert (stop[0], alike(stop[1])) == (shown[0], alike(shown[1]))


def test_transcript_of_pull(tmp_path: Path) -> None:
    files = {name: (SELFTEST / name).read_bytes() for name in ("selftest-f16.gguf", "mmproj-selftest-f16.gguf")}
    with hub_server.serve(hub_server.Hub(files={"ada/selftest-GGUF": files})) as hub:
        follow(Ada(tmp_path), "console hub", {"HF_ENDPOINT": hub.url}, many=4)


def follow(
    ada: Ada, kind: str, variables: dict[str, str], shown_as: dict[int, str] | None = None, many: int = 3
) -> None:
    """Run the commands of a block and compare their output."""
    ada.environment |= variables
    commands = transcripts(kind)
    assert len(commands) == many
    try:
        for command, output in commands:
            seen = ada.type(command)
            for port, name in (shown_as or {}).items():
                seen = seen.replace(str(port), name)
            assert alike(seen) == alike(output), command
    finally:
        ada.type("llmdeploy stop")


def test_the_demo(tmp_path: Path) -> None:
    """Run the first command. Skipped if it would have to install, which CI does as its first step."""
    if not list((ROOT / ".venv").glob("installed*")):
        pytest.skip("no .venv made by the scripts here")
    shown = next(block for block in blocks(README, "console") if block.startswith("$ sh scripts/demo\n"))
    done = subprocess.run(["sh", "scripts/demo"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "The image is red."
    said = [line for line in shown.splitlines()[1:] if line.startswith("$ ")]
    assert said == [line for line in done.stderr.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("at", range(3))
def test_a_python_example(at: int, served: World) -> None:
    """Run the examples in a shell with the variables of `llmdeploy env`, as a reader would."""
    examples = blocks(README, "python")
    assert len(examples) == 3
    code = examples[at].replace("11435", str(served.port))
    line = f'eval "$({shlex.join(served.command("env"))})" && exec {shlex.quote(served.command()[0])} -c "$1"'
    done = subprocess.run(["sh", "-c", line, "sh", code], capture_output=True, text=True, env=served.environment)
    assert done.stdout == "1 2 3 4 5\n", done.stderr


def test_shown_application_equals_the_file() -> None:
    assert (ROOT / "examples" / "app.py").read_text() in blocks(README, "python")


@pytest.mark.parametrize(("shell", "part"), [("fish", "| source"), ("pwsh", "Invoke-Expression"), ("sh", "--dotenv")])
def test_other_ways_to_use_env(shell: str, part: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    ada = Ada(tmp_path)
    [line] = [it for block in blocks(README, "sh") for it in block.splitlines() if "llmdeploy env" in it and part in it]
    ask = "python -c 'import os; print(os.environ.get(\"OPENAI_MODEL\"))'"
    done = subprocess.run(
        [shell, "-c", f"{line}\n{ask}"], cwd=ada.work, env=ada.environment, capture_output=True, text=True
    )
    if part == "--dotenv":
        assert (ada.work / ".env").read_text().endswith("OPENAI_MODEL=selftest\n"), done.stderr
    else:
        assert done.stdout == "selftest\n", done.stderr


def test_chinese_readme_matches_the_english_one() -> None:
    for kind in ("console", "console hub", "console ollama", "console vllm", "console switch", "sh", "python"):
        assert blocks(CHINESE, kind) == blocks(README, kind)
    heads = [[line.count("#") for line in text.splitlines() if re.match("#+ ", line)] for text in (README, CHINESE)]
    assert heads[0] == heads[1]
    literals = [set(re.findall(r"`[A-Za-z_.]+`", text)) for text in (README, CHINESE)]
    assert literals[0] == literals[1]


def test_every_command_and_key_is_mentioned() -> None:
    from llmdeploy.cli.app import COMMANDS
    from llmdeploy.config import keys

    for command in COMMANDS:
        assert f"llmdeploy {command}" in README
    for key in keys():
        assert re.search(rf"^{re.escape(key.name)} ", README, re.MULTILINE), key.name


def test_links_exist() -> None:
    for text in (README, CHINESE):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), target
