"""The installed engines, each with one server for all requests."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import World, copy_selftest
from tests.engines.conformance import matrix

ALIGNMENT = 32
"""Bytes to which the tensors in a GGUF file are aligned by default."""


@dataclass
class Served:
    """The self-test model on one engine, and two variants of it: `blind` and `handy`."""

    engine: str
    folder: Path
    environment: dict[str, str]
    worlds: dict[str, World] = field(default_factory=dict)

    def world(self, model: str = "selftest") -> World:
        """Return the world that serves this model; it starts at the first call."""
        if model not in self.worlds:
            world = self.worlds[model] = World(self.folder / model)
            world.environment |= self.environment
            named = model if model == "selftest" else str(self._file(model))
            result = world.run("serve", named, "--engine", self.engine, "--detach", timeout=250)
            assert result.status == 0, result.text
        return self.worlds[model]

    def _file(self, model: str) -> Path:
        """Return a copy without the projector. Its name is the model's, because Ollama holds all models at once."""
        file = copy_selftest(self.folder / "files", mmproj=False).rename(self.folder / "files" / f"{model}.gguf")
        if model == "handy":
            file.write_bytes(with_tools(file.read_bytes()))
        return file


def with_tools(content: bytes) -> bytes:
    """Return the GGUF file with a template that names tools, longer by one alignment so that tensors stay aligned."""
    key = b"tokenizer.chat_template"
    at = content.index(key) + len(key) + struct.calcsize("<I")  # the type stands between the key and the value
    (length,) = struct.unpack_from("<Q", content, at)
    begins = at + struct.calcsize("<Q")
    named = b"{%- if tools -%}{%- endif -%}".ljust(ALIGNMENT)
    return content[:at] + struct.pack("<Q", length + len(named)) + named + content[begins:]


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
            vllm = request.getfixturevalue("vllm_of_the_run")
            vllm.ensure_served()
            yield Served(engine, vllm.folder, {}, {"selftest": vllm})
            return
    except pytest.skip.Exception as why:
        matrix.ABSENT[engine] = str(why)
        raise
    served = Served(engine, tmp_path_factory.mktemp(engine), environment)
    yield served
    for world in served.worlds.values():
        world.close()
