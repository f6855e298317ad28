"""Switches between llama.cpp and the real vLLM, while applications stream without pause."""

from __future__ import annotations

import pytest

from tests.conftest import World, until
from tests.load import Load

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture
def world(world: World, vllm_python: str) -> World:
    world.environment["LLMDEPLOY_ENGINES_VLLM_PYTHON"] = vllm_python
    del world.environment["PYTHONWARNINGS"]  # warnings of vLLM itself are not failures here
    return world


@pytest.mark.parametrize("way", ["--beside", "--no-beside"])
def test_no_request_fails_on_the_way_to_vllm_and_back(world: World, way: str) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    # Four clients: sixteen, as in the switches between other engines, would take both cores from a vLLM that starts.
    with Load(world.port, clients=4) as load:
        until(lambda: load.total > 20)
        there = world.run("switch", "vllm", way, timeout=400)
        assert there.status == 0, there.text
        until(lambda: load.answers["vllm"] > 20 or load.failures, 60)
        back = world.run("switch", "llamacpp", way, timeout=400)
        assert back.status == 0, back.text
        before = load.answers["llamacpp"]
        until(lambda: load.answers["llamacpp"] > before + 20 or load.failures, 60)
    print(f"{way}: {dict(load.answers)} answers, failures {load.failures}")
    assert load.failures == []
    assert set(load.answers) == {"llamacpp", "vllm"}
    assert world.record()["engine"] == "llamacpp"


def test_old_engine_stays_if_vllm_cannot_start(world: World) -> None:
    # vLLM refuses the context itself, and nothing is repaired: it has started, and ends with its own message.
    assert world.run("serve", "selftest", "--detach").status == 0
    with Load(world.port, clients=4) as load:
        until(lambda: load.total > 4)
        result = world.run(
            "switch", "vllm", "--no-repair", timeout=400, LLMDEPLOY_ENGINES_VLLM_KV_CACHE_MEMORY_BYTES="1M"
        )
        asked = load.total
        until(lambda: load.total > asked + 4 or load.failures, 60)
    assert result.status == 1, result.text
    assert "error: the switch failed at the step `prepare`: the server ended before it was ready: " in result.stderr
    assert ": a context of 8192 tokens needs " in result.stderr
    assert "\nhint: `--context 384` fits" in result.stderr
    assert "; `selftest` on llamacpp serves as before\n" in result.stderr
    assert load.failures == []
    assert not world.config.exists()
