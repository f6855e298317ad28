"""The README's console blocks as commands with their output, and the user who types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from tests.conftest import ROOT, World

README = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def transcripts(kind: str = "console") -> list[tuple[str, str]]:
    """List the commands of the README's console blocks, each with the output shown below it."""
    found = []
    for block in blocks(README, kind):
        if block.startswith("$ sh scripts/demo"):
            continue  # a script that prints its commands
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def alike(text: str) -> str:
    """Replace everything that differs between machines and runs."""
    text = re.sub(r"^\[.*\] .*\n", "", text, flags=re.MULTILINE)  # phases, because a short one may be missed
    text = re.sub(r"^ {10}.*\n", "", text, flags=re.MULTILINE)  # details of a phase
    text = re.sub(r"^(ok|warn|fail) +(\w+) .*", r"\1 \2", text, flags=re.MULTILINE)
    text = re.sub(r"^  (disk|memory)  .*", r"  \1", text, flags=re.MULTILINE)
    text = re.sub(r"(today|yesterday|\d+ days ago)$", "[USED]", text, flags=re.MULTILINE)
    text = re.sub(r"process \d+", "process [PID]", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", "[WHEN]", text)
    # A line of llama.cpp's log begins with the time since its start.
    return re.sub(r"^\d+\.\d\d\.\d{3}\.\d{3} .*", lambda line: re.sub(r"\d+", "N", line[0]), text, flags=re.MULTILINE)


class Ada(World):
    """The user of the README, with the default folders, in the checkout."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        del self.environment["LLMDEPLOY_STATE_DIR"]
        self.home = folder / "home"
        self.state = self.home / ".local" / "state" / "llmdeploy"
        programs = folder / "bin"
        programs.mkdir()
        for name, command in {"llmdeploy": self.command(), "python": self.command()[:1]}.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "XDG_STATE_HOME": str(self.state.parent)}

    def type(self, command: str) -> str:
        """Run a line in a shell; return stdout and stderr as they appear on the screen."""
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=400,
        )  # fmt: skip
        return done.stdout.decode().replace(str(self.home), "/home/ada").replace(str(self.port), "11435")


class VllmUser(Ada):
    """The user of the README's part about vLLM."""

    def __init__(self, folder: Path, python: str) -> None:
        super().__init__(folder)
        self.said = ""
        """The output of the README's `llmdeploy serve`."""
        self.environment |= {
            "LLMDEPLOY_STATE_DIR": str(self.state),
            "LLMDEPLOY_ENGINES_VLLM_PYTHON": python,
            "PYTHONWARNINGS": "",  # warnings of vLLM itself are not failures here
        }

    def ensure_served(self) -> None:
        """Start the server with the README's command, unless it runs. A test may have stopped it."""
        if not self.record():
            command, _ = transcripts("console vllm")[0]
            self.said = self.type(command)
            assert self.record().get("state") == "ready", self.said
