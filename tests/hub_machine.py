"""A machine that downloads. Each command is a process, because huggingface_hub reads its variables when imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from llmdeploy.errors import LlmdeployError
from llmdeploy.models import gguf, hf_model
from llmdeploy.models.reference import parse

what, form, address, *folder = sys.argv[1:]
folder = Path(*folder) if folder else None
progress = []

def show(*now):
    progress.append(now)
    print(now[1], file=sys.stderr, flush=True)  # so that a test sees how far it is

try:
    model = {"gguf": gguf, "hf": hf_model}[form].find(parse(address))
    if what == "need":
        print(json.dumps(asdict(model.requirements(folder)), default=str))
    else:
        if what == "pull":
            model.download(show, folder)
        files = [str(path) for path in model.local_files()] if model.is_present() else []
        print(json.dumps({"files": files, "progress": progress}))
except LlmdeployError as error:
    print(json.dumps(error.as_document() | {"progress": progress}))
"""


class Machine:
    """Machine with an empty home folder and one Hub."""

    def __init__(self, home: Path, endpoint: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "SYSTEMROOT", "TMPDIR", "TEMP"}}
        self.home = home
        self.cache = home / "hf" / "hub"
        self.prefix: list[str] = []
        self.env = {
            **inherited,
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": endpoint,
            "LLMDEPLOY_STATE_DIR": str(home / "state"),
        }

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-W", "error", "-c", SCRIPT, *map(str, arguments)],
            env=self.env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str, address: str, folder: Path | None = None, **variables: str) -> dict[str, Any]:
        """Run code on a model and return its output. An address with a file or a quantization is a GGUF model."""
        form = "gguf" if "gguf" in address.lower() else "hf"
        return self.said(self.start(what, form, address, *([folder] if folder else []), **variables))

    def said(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert [line for line in err.splitlines() if not line.isdecimal()] == []
        document: dict[str, Any] = json.loads(out)
        return document

    def here(self, address: str, **variables: str) -> list[Path]:
        """Return the model's files if all are present."""
        return [Path(file) for file in self.run("look", address, **variables)["files"]]

    def pull(self, address: str, folder: Path | None = None, **variables: str) -> list[Path]:
        done = self.run("pull", address, folder, **variables)
        assert "error" not in done, done
        return [Path(file) for file in done["files"]]

    def fail(self, address: str, folder: Path | None = None, **variables: str) -> tuple[str, str]:
        """Return message and hint of a download that must fail."""
        error = self.run("pull", address, folder, **variables)["error"]
        return error["message"], error["hint"]

    def parts(self) -> list[Path]:
        return [path for path in self.home.rglob("*incomplete*") if path.is_file()]

    def blobs(self) -> list[Path]:
        """List the blobs that count as complete."""
        return [path for path in self.cache.glob("*/blobs/*") if "incomplete" not in path.name]
