"""The engines that are here, each with one server for all requests; and the matrix at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import World, copy_selftest
from tests.engines.conformance import matrix


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(matrix.CAME.values()):
        terminalreporter.section("one behaviour: what came, by request and engine")
        for line in matrix.lines():
            terminalreporter.line(line)


@dataclass
class Served:
    """The self-test model on one engine, and beside it the same model without its projector."""

    engine: str
    folder: Path
    environment: dict[str, str]
    worlds: dict[str, World] = field(default_factory=dict)

    def world(self, *, blind: bool = False) -> World:
        """Served when it is first asked for. What is blind has a name of its own: Ollama has both."""
        name = "blind" if blind else "selftest"
        if name not in self.worlds:
            world = self.worlds[name] = World(self.folder / name)
            world.environment |= self.environment
            model = str(self._blind()) if blind else name
            result = world.run("serve", model, "--engine", self.engine, "--detach", timeout=250)
            assert result.status == 0, result.text
        return self.worlds[name]

    def _blind(self) -> Path:
        return copy_selftest(self.folder / "files", mmproj=False).rename(self.folder / "files" / "blind.gguf")


ENGINES = [
    "llamacpp",
    pytest.param("ollama", marks=pytest.mark.ollama),
    pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(300)]),
]


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine: str = request.param
    environment = {}
    try:
        if engine == "ollama":
            environment["OLLAMA_HOST"] = request.getfixturevalue("real_ollama").url
        if engine == "vllm":
            environment["LLMDEPLOY_ENGINES_VLLM_PYTHON"] = request.getfixturevalue("vllm_python")
            environment["PYTHONWARNINGS"] = ""  # vLLM's own are no failure of ours
    except pytest.skip.Exception as why:
        matrix.ABSENT[engine] = str(why)
        raise
    served = Served(engine, tmp_path_factory.mktemp(engine), environment)
    yield served
    for world in served.worlds.values():
        world.close()
