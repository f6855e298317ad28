"""Switches between llama.cpp and the real vLLM, while applications stream without pause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import World, until
from tests.load import Load
from tests.test_vllm_serve import changed
from tests.transcripts import Ada, alike, transcripts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def load_of(world: World) -> Load:
    """Return a light load: one without pauses leaves no core to a vLLM that starts."""
    return Load(world.port, clients=4, pause=0.2)


@pytest.fixture
def world(world: World, vllm_python: str) -> World:
    world.environment["LLMDEPLOY_ENGINES_VLLM_PYTHON"] = vllm_python
    del world.environment["PYTHONWARNINGS"]  # warnings of vLLM itself are not failures here
    return world


def test_transcript_of_switch_under_load(tmp_path: Path, vllm_python: str) -> None:
    """Switch with the commands of the README, both servers side by side, and back."""
    ada = Ada(tmp_path)
    ada.environment |= {"LLMDEPLOY_ENGINES_VLLM_PYTHON": vllm_python, "PYTHONWARNINGS": ""}
    serve, to_vllm, chat, back, stop = transcripts("console switch")

    def same(shown: tuple[str, str]) -> None:
        command, output = shown
        assert alike(ada.type(command)) == alike(output), command

    try:
        same(serve)
        with load_of(ada) as load:
            until(lambda: load.total > 20)
            same(to_vllm)
            until(lambda: load.answers["vllm"] > 20 or load.failures, 60)
            same(chat)
            same(back)
            before = load.answers["llamacpp"]
            until(lambda: load.answers["llamacpp"] > before + 20 or load.failures, 60)
        assert load.failures == []
        assert set(load.answers) == {"llamacpp", "vllm"}
        same(stop)
    finally:
        ada.type("llmdeploy stop")


def test_switch_one_after_the_other_with_a_context_that_is_repaired(world: World) -> None:
    world.environment["LLMDEPLOY_ENGINES_VLLM_KV_CACHE_MEMORY_BYTES"] = "1M"
    assert world.run("serve", "selftest", "--detach").status == 0
    with load_of(world) as load:
        until(lambda: load.total > 20)
        there = world.run("switch", "vllm", "--no-beside", timeout=400)
        assert there.status == 0, there.text
        assert (
            "`max_model_len` 384: the server ended before it was ready: a context of 8192 tokens needs " in there.text
        )
        until(lambda: load.answers["vllm"] > 20 or load.failures, 60)
        assert json.loads(world.run("status", "--json").stdout)["context"] == 384
        back = world.run("switch", "llamacpp", "--no-beside", timeout=400)
        assert back.status == 0, back.text
        again = world.run("switch", "vllm", "--no-beside", "--timeout", "1", timeout=400)
        before = load.answers["llamacpp"]
        until(lambda: load.answers["llamacpp"] > before + 20 or load.failures, 60)
    assert "`max_model_len` 384: as the last start like this one needed\n" in again.text
    assert again.status == 1
    assert load.failures == []
    assert set(load.answers) == {"llamacpp", "vllm"}
    assert world.record()["engine"] == "llamacpp"


def test_old_engine_stays_if_vllm_cannot_start(world: World) -> None:
    # vLLM itself does not know the architecture: it has started, and ends with its own message.
    model = changed(world.folder / "model", Qwen2_5_VLForConditionalGeneration="FooForCausalLM")
    assert world.run("serve", "selftest", "--detach").status == 0
    with load_of(world) as load:
        until(lambda: load.total > 4)
        result = world.run("switch", "vllm", "--model", model, timeout=400)
        asked = load.total
        until(lambda: load.total > asked + 4 or load.failures, 60)
    assert result.status == 1, result.text
    assert (
        "error: the switch failed at the step `prepare`: the server ended before it was ready: "
        "this vLLM does not know the architecture `FooForCausalLM`" in result.stderr
    )
    assert "\nhint: take a newer one: `pip install --upgrade vllm`" in result.stderr
    assert "; `selftest` on llamacpp serves as before\n" in result.stderr
    assert load.failures == []
    assert not world.config.exists()
