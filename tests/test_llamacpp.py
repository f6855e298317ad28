"""llama.cpp as an engine: which program it would run, with which words; and that nothing too large is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from llmdeploy import config, hardware
from llmdeploy.config import Settings
from llmdeploy.engines import registry
from llmdeploy.engines.base import Engine, EngineStatus, ServerSpec
from llmdeploy.engines.llamacpp.engine import LlamaCpp
from llmdeploy.engines.llamacpp.settings import LlamaCppSettings
from llmdeploy.errors import DoesNotFit, EngineMissing
from llmdeploy.models.facts import ModelFacts, read_gguf
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import HubFile, ModelRef, parse, served_name
from llmdeploy.models.source import OnProgress
from llmdeploy.plan import Plan, Wishes
from llmdeploy.service.events import Internal, Planned, Public
from llmdeploy.service.launch import Launch
from llmdeploy.service.order import Order
from tests import machines
from tests.conftest import SELFTEST

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
FACTS = read_gguf(WEIGHTS, MMPROJ)
WHEEL = version("xllamacpp")
TELLS = 'echo "version: 7777 (abcdef0)" >&2'


def llamacpp(server: str | None = None, **settings: int | None) -> LlamaCpp:
    return LlamaCpp(Settings(llamacpp=LlamaCppSettings(server=server, **settings)))


def plan(context: int = 4096, parallel: int = 2, threads: int = 3, gpu_layers: int | None = None) -> Plan:
    engine = llamacpp(threads=threads, gpu_layers=gpu_layers)
    return engine.plan(FACTS, hardware.detect(), Wishes(context, parallel))


def program(folder: Path, script: str = TELLS) -> Path:
    """Write a `llama-server` into its own folder."""
    folder.mkdir()
    file = folder / "llama-server"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the `llama-server` of this machine."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make xllamacpp look as if it were not installed."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)


# The server, as data

EMBEDDED = (sys.executable, "-P", "-m", "llmdeploy.engines.llamacpp.server_program")


@pytest.mark.parametrize(
    ("weights", "mmproj", "wished", "words"),
    [
        ("/m/x.gguf", None, plan(), ()),
        ("/m/x.gguf", "/m/mmproj x.gguf", plan(), ()),
        ("/m/x.gguf", None, plan(gpu_layers=-1), ()),
        ("/m/x.gguf", None, plan(gpu_layers=0), ("--n-gpu-layers", "0")),
        ("/m/my models/a b.gguf", "/m/my models/p.gguf", plan(gpu_layers=10), ("--n-gpu-layers", "10")),
        ("/m/--model.gguf", None, plan(1024, 1, 1), ()),
        ("/m/-.gguf", None, plan(8192, 4, 16), ()),
    ],
    ids=["plain", "mmproj", "all layers", "no layers", "blanks", "dashes", "a dash alone"],
)
def test_the_command_line(weights: str, mmproj: str | None, wished: Plan, words: tuple[str, ...]) -> None:
    reference = parse(weights)
    artefact = GgufModel(Path(weights), Path(mmproj) if mmproj else None)
    spec = llamacpp().server(artefact, wished, served_name=served_name(reference), port=1234)
    alias = {"/m/my models/a b.gguf": "a-b", "/m/--model.gguf": "model", "/m/-.gguf": "model"}.get(weights, "x")
    assert spec.argv == (
        *EMBEDDED,
        *("--model", weights),
        *(("--mmproj", mmproj) if mmproj else ()),
        *("--ctx-size", str(wished.context.value * wished.parallel.value)),
        *("--parallel", str(wished.parallel.value)),
        *("--threads", str(wished.settings["threads"].value)),
        *words,
        *("--host", "127.0.0.1", "--port", "1234", "--alias", alias, "--metrics"),
    )
    assert spec.env == {"LLAMA_ARG_CACHE_RAM": "512", "LLAMA_ARG_CTX_CHECKPOINTS": "8", "GGML_NO_BACKTRACE": "1"}
    assert (spec.base_url, spec.health_path, spec.served_name) == ("http://127.0.0.1:1234", "/health", alias)


def test_key_is_in_no_word_of_the_command_and_in_no_representation() -> None:
    spec = llamacpp().server(GgufModel(WEIGHTS), plan(), served_name="x", port=1234, key="sesame")
    assert not [word for word in spec.argv if "sesame" in word]
    assert "sesame" not in repr(spec)
    assert spec.environment({})["LLAMA_API_KEY"] == "sesame"
    assert spec.headers == {"Authorization": "Bearer sesame"}


@pytest.mark.parametrize(("version", "prefix"), [("6499 (abcdef0)", ""), ("6500 (abcdef0)", "/llmdeploy"), ("b", "")])
def test_routes_move_below_a_prefix_where_the_build_can(tmp_path: Path, version: str, prefix: str) -> None:
    own = program(tmp_path / "bin", f"echo 'version: {version}'")
    spec = llamacpp(str(own)).server(GgufModel(WEIGHTS), plan(), served_name="x", port=1, key="sesame")
    assert spec.base_url == f"http://127.0.0.1:1{prefix}"
    assert spec.environment({}).get("LLAMA_ARG_API_PREFIX", "") == prefix


def test_a_program_of_the_users_own_gets_the_same_words(tmp_path: Path) -> None:
    own = program(tmp_path / "bin")
    argv = [
        engine.server(GgufModel(WEIGHTS), plan(), served_name="x", port=1).argv
        for engine in (llamacpp(), llamacpp(str(own)))
    ]
    assert argv[1] == (str(own), *argv[0][len(EMBEDDED) :])


# Which program


def looked(engine: Engine) -> tuple[bool, str | None, str, bool]:
    """Return whether it can be used, its version, its description, and whether its plans count GPU memory."""
    status = engine.status()
    assert bool(status.hint) == (not status.usable or status.version is None)
    machine = machines.load("t4")
    available = engine.plan(FACTS, machine, Wishes()).available
    assert available is not None
    return status.usable, status.version, status.detail, available.bytes > machine.memory_available


@pytest.mark.usefixtures("no_wheel")
def test_nothing_is_installed() -> None:
    engine = llamacpp()
    assert engine.status() == EngineStatus(
        False,
        None,
        "no llama.cpp on this machine",
        "`pip install xllamacpp`, or put a `llama-server` on PATH",
        installed=False,
    )
    with pytest.raises(EngineMissing, match=r"^no llama\.cpp on this machine$"):
        engine.server(GgufModel(WEIGHTS), plan(), served_name="x", port=1)


def test_the_wheel() -> None:
    assert looked(llamacpp()) == (True, WHEEL, f"xllamacpp {WHEEL}, the embedded build", sys.platform == "darwin")


def test_a_program_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(own.parent))
    detail = f"llama-server 7777 (abcdef0) at `{own}`, found on PATH"
    assert looked(llamacpp()) == (True, "7777 (abcdef0)", detail, True)


def test_a_configured_program_beats_the_one_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin").parent))
    own = program(tmp_path / "own", 'echo "version: 1 (own)" >&2')
    monkeypatch.setenv("LLMDEPLOY_ENGINES_LLAMACPP_SERVER", str(own))
    detail = f"llama-server 1 (own) at `{own}`, set by `engines.llamacpp.server`"
    assert looked(registry.get("llamacpp", config.load())) == (True, "1 (own)", detail, True)


def test_a_configured_program_that_is_gone_is_not_replaced_in_silence(tmp_path: Path) -> None:
    gone = tmp_path / "llama-server"
    detail = f"`{gone}` (set by `engines.llamacpp.server`) cannot be run: No such file or directory"
    assert looked(llamacpp(str(gone))) == (False, None, detail, False)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no libcuda >&2; exit 127", "cannot be run: no libcuda"),
        ("exit 1", "cannot be run: no output"),
        ("echo hello", "is not a `llama-server`: it prints no version"),
    ],
)
def test_a_program_on_the_path_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    """Make sure that the wheel serves instead, and that without it the reason is reported."""
    own = program(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(own.parent))
    told = f"`{own}` (found on PATH) {why}"
    assert looked(llamacpp())[:3] == (True, WHEEL, f"xllamacpp {WHEEL}, the embedded build; {told}")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert looked(llamacpp()) == (False, None, f"no llama.cpp on this machine; {told}", False)


@pytest.mark.parametrize("path", ["bin", "./bin", ".", ""])
def test_a_program_below_the_folder_one_stands_in_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    script = f"{TELLS}; : > '{tmp_path}/ran'"
    own = program(tmp_path / "bin", script)
    monkeypatch.chdir(own.parent if path == "." else tmp_path)
    monkeypatch.setenv("PATH", path)
    assert looked(llamacpp())[2] == f"xllamacpp {WHEEL}, the embedded build"
    assert not (tmp_path / "ran").exists()


# A model that does not fit


class Stub(LlamaCpp):
    """llama.cpp, asked for one model of the size that a test gives it."""

    def __init__(self, facts: ModelFacts) -> None:
        super().__init__(Settings())
        self._facts = facts
        self.asked: list[str] = []

    def resolve(self, model: ModelRef, *, reuse: bool = True, offline: bool = False) -> GgufModel:
        asked, facts = self.asked, self._facts

        class Weights(GgufModel):
            def download(self, on_progress: OnProgress, folder: Path | None = None) -> None:
                asked.append("download")

            def facts(self) -> ModelFacts:
                return facts

        return Weights(WEIGHTS)

    def server(self, weights: GgufModel, plan: Plan, *, served_name: str, port: int, key: str = "") -> ServerSpec:
        self.asked.append("server")
        return super().server(weights, plan, served_name=served_name, port=port, key=key)


def launch(engine: Engine, folder: Path, on_plan: Callable[[Planned], None]) -> Launch:
    def on_event(event: Public | Internal) -> None:
        if isinstance(event, Planned):
            on_plan(event)

    return Launch(Order(HubFile("owner/repo", "x.gguf"), Settings()), engine, on_event, folder / "server.log")


def test_a_model_that_does_not_fit_this_machine_is_not_started(tmp_path: Path) -> None:
    plans: list[Planned] = []
    needs = replace(FACTS, weights_bytes=hardware.detect().memory_available + 2**30)
    engine = Stub(needs)
    before = psutil.Process().children()
    one = launch(engine, tmp_path, plans.append)
    prepared = one.prepare()
    with pytest.raises(DoesNotFit, match=r"^`hf://owner/repo/x.gguf` needs .* GiB .* is free$") as caught:
        one.apply_plan(prepared)
    assert caught.value.hint.startswith("free memory, or take a smaller model")
    assert (engine.asked, plans) == ([], [])
    assert psutil.Process().children() == before
    assert list(tmp_path.iterdir()) == []


def test_the_same_model_of_a_size_that_fits_is_prepared(tmp_path: Path) -> None:
    """This keeps the test above from passing for another reason."""
    plans: list[Planned] = []
    engine = Stub(FACTS)
    one = launch(engine, tmp_path, plans.append)
    settled = one.apply_plan(one.prepare())
    assert (engine.asked, len(plans)) == (["server"], 1)
    assert settled.spec.served_name == "x"
    assert os.fspath(WEIGHTS) in settled.spec.argv
