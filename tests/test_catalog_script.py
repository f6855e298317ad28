"""The script that checks the catalog and makes entries of it, against a Hub and a registry on loopback."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmdeploy.models.catalog import lookup
from tests import hub_server, ollama_registry
from tests.conftest import ROOT, SELFTEST
from tests.hub_server import Hub
from tests.ollama_registry import Registry

Run = Callable[..., subprocess.CompletedProcess[str]]

ENTRY = """\
[models."house:1b"]
ollama = "house:1b"
ollama_quants = ["q4_K_M"]
parameters = 1_000
hub = { bf16 = "our-org/House-1B", awq = "our-org/House-1B-AWQ" }
[models."house:1b".gguf]
repo = "our-org/House-1B-GGUF"
file = "House-1B-{quant}.gguf"
quants = ["Q4_K_M", "Q8_0"]
bytes = { Q4_K_M = 40, Q8_0 = 80 }
mmproj = "mmproj-House-1B-F16.gguf"
mmproj_bytes = 16
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    weights = {"config.json": b"{}", "model.safetensors": b"x" * 8}
    files = {
        "House-1B-Q4_K_M.gguf": b"x" * 40,
        "House-1B-Q8_0.gguf": b"x" * 80,
        "mmproj-House-1B-F16.gguf": b"x" * 16,
    }
    repositories = {"our-org/House-1B": weights, "our-org/House-1B-AWQ": weights, "our-org/House-1B-GGUF": files}
    with hub_server.serve(Hub({name: dict(it) for name, it in repositories.items()})) as served:
        served.parameters["our-org/House-1B"] = 1_000
        yield served


@pytest.fixture
def registry() -> Iterator[Registry]:
    with ollama_registry.serve(Registry()) as served:
        served.add("library/house:1b", model=b"gguf")
        served.add("library/house:1b-q4_K_M", model=b"gguf")
        yield served


@pytest.fixture
def run(hub: Hub, registry: Registry, tmp_path: Path) -> Run:
    (tmp_path / "catalog.toml").write_text(ENTRY)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "OLLAMA_REGISTRY": registry.url,
        "LLMDEPLOY_CONFIG": str(tmp_path / "config.toml"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "catalog.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    return run


def test_entry_that_agrees_with_its_sources(run: Run) -> None:
    done = run("check", "house:1b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_that_disagrees_is_one_line(run: Run, hub: Hub, registry: Registry) -> None:
    del hub.files["our-org/House-1B-AWQ"]
    hub.parameters["our-org/House-1B"] = 1_001
    hub.files["our-org/House-1B-GGUF"] |= {"House-1B-Q8_0.gguf": b"x", "mmproj-House-1B-F16.gguf": b"x"}
    del hub.files["our-org/House-1B-GGUF"]["House-1B-Q4_K_M.gguf"]
    del registry.manifests["library/house:1b-q4_K_M"]
    host = registry.url.partition("://")[2]
    done = run("check", "house:1b")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "house:1b: hf://our-org/House-1B: it has 1_001 parameters, the catalog says 1_000",
        "house:1b: hf://our-org/House-1B-AWQ: the Hub answers with status 401",
        "house:1b: hf://our-org/House-1B-GGUF: `House-1B-Q4_K_M.gguf` does not exist",
        "house:1b: hf://our-org/House-1B-GGUF: `House-1B-Q8_0.gguf` has 1 bytes, the catalog says 80",
        "house:1b: hf://our-org/House-1B-GGUF: `mmproj-House-1B-F16.gguf` has 1 bytes, the catalog says 16",
        f"house:1b: ollama://house:1b-q4_K_M: `{host}` does not tell of `{host}/library/house:1b-q4_K_M`: "
        "it answers with status 404",
    ]


def test_repository_without_weights(run: Run, hub: Hub) -> None:
    del hub.files["our-org/House-1B-AWQ"]["model.safetensors"]
    assert run("check", "house:1b").stdout == (
        "house:1b: hf://our-org/House-1B-AWQ: it holds no config.json or no weights\n"
    )


def test_entry_of_a_repository(run: Run, hub: Hub) -> None:
    """Serve the self-test model as a Hub repository: the entry has the numbers of its entry in the catalog."""
    hub.files["our-org/Selftest-1M-Instruct"] = {
        it.name: it.read_bytes() for it in (SELFTEST / "hf").iterdir() if it.is_file()
    }
    done = run("add", "our-org/Selftest-1M-Instruct", "--gguf", "our-org/House-1B-GGUF", "--ollama", "house:1b")
    assert (done.returncode, done.stderr) == (0, "")
    table = tomllib.loads(done.stdout)["models"]["selftest:1m"]
    ours = lookup.find("selftest")
    assert table["parameters"] == ours.parameters
    assert 0 < table["vision"] < ours.parameters
    assert (table["context"], table["embedding"], table["vocabulary"]) == (
        ours.context,
        ours.embedding,
        ours.vocabulary,
    )
    assert (table["tied"], table["capabilities"]) == (ours.tied, ["text", "image"])
    assert (table["hub"], table["ollama"]) == ({"bf16": "our-org/Selftest-1M-Instruct"}, "house:1b")
    assert table["gguf"] == {
        "repo": "our-org/House-1B-GGUF",
        "file": "House-1B-{quant}.gguf",
        "quants": ["Q4_K_M", "Q8_0"],
        "bytes": {"Q4_K_M": 40, "Q8_0": 80},
        "mmproj": "mmproj-House-1B-F16.gguf",
        "mmproj_bytes": 16,
    }


def test_entry_of_a_repository_that_does_not_exist(run: Run) -> None:
    done = run("add", "our-org/none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: our-org/none: the Hub answers with status 401\n"


def test_entry_is_appended_to_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "catalog.py"))
    file = tmp_path / "catalog.toml"
    file.write_text("[models.a]\n")
    monkeypatch.setitem(script["main"].__globals__, "SHIPPED", file)
    monkeypatch.setitem(script["main"].__globals__, "entry_of", lambda *_: "[models.b]\n")
    monkeypatch.setattr(sys, "argv", ["catalog.py", "add", "a/b", "--write"])
    assert script["main"]() == 0
    assert file.read_text() == "[models.a]\n\n[models.b]\n"
