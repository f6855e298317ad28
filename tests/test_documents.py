"""The JSON documents that commands print: the same keys in the same order, types and values as were recorded.

`python -m tests.test_documents` records them again. A key that goes or changes its type breaks users' scripts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import hub_server
from tests.conftest import SELFTEST, World, until

RECORDINGS = Path(__file__).parent / "recordings" / "documents"

COMMANDS: dict[str, list[str]] = {
    "status": ["status"],
    "doctor": ["doctor"],
    "models": ["models"],
    "models-show": ["models", "show", "selftest"],
    "models-show-catalog": ["models", "show", "qwen3:8b"],
    "models-catalog": ["models", "catalog"],
    "pull-dry-run": ["pull", "selftest", "--dry-run"],
    "pull-dry-run-hub": ["pull", "hf://ada/selftest-GGUF", "--dry-run"],
    "pull": ["pull", "hf://ada/selftest-GGUF"],
    "models-pulled": ["models"],
    "rm": ["models", "rm", "hf://ada/selftest-GGUF", "--yes"],
    "chat": ["chat", "Count to 3"],
    "env": ["env"],
    "engines-list": ["engines", "list"],
    "config-show": ["config", "show"],
    "config-get": ["config", "get", "context"],
    "switch-dry-run": ["switch", "--context", "4096", "--dry-run"],
    "switch": ["switch", "--context", "4096"],
    "status-switched": ["status"],
    "switch-back-dry-run": ["switch", "--back", "--dry-run"],
    "error-usage": ["switch", "nope"],
    "error-option": ["status", "--nope"],
    "error-model": ["pull", "nope", "--dry-run"],
    "error-busy": ["serve", "selftest", "--context", "2048"],
    "stop": ["stop"],
    "stop-nothing": ["stop"],
    "status-nothing": ["status"],
    "env-nothing": ["env"],
    "error-start": ["serve", "/no/such.gguf"],
}
"""The command lines, run in this order in one world; each with `--json`. `serve` runs from the first to `stop`."""

WORDS = {"message", "hint", "detail", "engine_detail", "reason", "room", "notes", "progress", "said"}
"""Keys whose values are sentences; other tests hold those."""
MEASURED = {
    "argv",
    "arrived",
    "available",
    "available_bytes",
    "bytes_per_second",
    "cached_tokens",
    "duration_seconds",
    "elapsed",
    "engine_version",
    "free",
    "free_bytes",
    "free_memory_bytes",
    "log",
    "modified",
    "phase",
    "ram_bytes",
    "ready_seconds",
    "server_pid",
    "service_pid",
    "settings",
    "since",
    "ttft_seconds",
    "used",
    "version",
}
"""Keys whose values depend on the machine or the run."""
BY_TYPE = {"models", "models-pulled", "models-catalog", "models-show-catalog", "doctor"}
"""Documents with values that belong to the catalog or the machine."""


def shape(value: Any, by_type: bool = False) -> Any:
    """Return a document with the types in place of values that vary, and each form of a list's items once."""
    if isinstance(value, dict):
        return {key: shape(item, by_type or key in WORDS | MEASURED) for key, item in value.items()}
    if isinstance(value, list):
        forms = [shape(item, by_type) for item in value]
        return [form for at, form in enumerate(forms) if json.dumps(form) not in map(json.dumps, forms[:at])]
    return type(value).__name__ if by_type else value


def documents(output: str, by_type: bool = False) -> list[Any]:
    """Return the shapes of a command's documents: one in several lines, or one a line; an event of a kind once."""
    try:
        read = [json.loads(output)]
    except json.JSONDecodeError:
        read = [json.loads(line) for line in output.splitlines()]
    shapes: dict[str, Any] = {}
    for document in read:
        form = shape(document, by_type)
        shapes.setdefault(str(document.get("event")) + str(document.get("step")), form)
    return list(shapes.values())


def collected(folder: Path) -> dict[str, list[Any]]:
    """Run all commands and return what each printed, as shapes."""
    world = World(folder)
    world.environment["PATH"] = "/usr/bin:/bin"  # no engine of the machine's user
    files = {name: (SELFTEST / name).read_bytes() for name in ("selftest-f16.gguf", "mmproj-selftest-f16.gguf")}
    found: dict[str, list[Any]] = {}
    with hub_server.serve(hub_server.Hub(files={"ada/selftest-GGUF": files})) as hub:
        world.environment["HF_ENDPOINT"] = hub.url
        try:
            said = folder.with_name("serve.out")
            with said.open("wb") as out:
                service = world.start("serve", "selftest", "--json", stdout=out, stderr=subprocess.DEVNULL)
            until(lambda: b'"base_url"' in said.read_bytes(), 30)
            for name, arguments in COMMANDS.items():
                result = world.run(*arguments, "--json")
                output = result.stdout.replace(hub.url, "[HUB]").replace("[PORT]", "12345")
                try:
                    found[name] = [result.status, *documents(output, name in BY_TYPE)]
                except json.JSONDecodeError:
                    found[name] = [result.text]
            status = service.wait(20)
            found["serve"] = [status, *documents(world.plain(said.read_bytes()).replace("[PORT]", "12345"))]
        finally:
            world.close()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    return collected(tmp_path_factory.mktemp("documents") / "world")


@pytest.mark.parametrize("name", ["serve", *COMMANDS])
def test_document_is_as_it_was(found: dict[str, list[Any]], name: str) -> None:
    expected = json.loads((RECORDINGS / f"{name}.json").read_text())
    assert json.dumps(found[name], indent=1) == json.dumps(expected, indent=1)  # the order of keys too


if __name__ == "__main__":
    work = Path(tempfile.mkdtemp())
    for name, shapes in collected(work / "world").items():
        (RECORDINGS / f"{name}.json").write_text(json.dumps(shapes, indent=1, ensure_ascii=False) + os.linesep)
    shutil.rmtree(work)
