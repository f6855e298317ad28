"""Switches between llama.cpp and a real Ollama, while applications stream without pause."""

from __future__ import annotations

import pytest

from tests.conftest import OwnOllama, World, until
from tests.load import Load

pytestmark = [pytest.mark.ollama, pytest.mark.timeout(300)]


@pytest.fixture
def world(world: World, daemon: OwnOllama) -> World:
    world.environment["OLLAMA_HOST"] = daemon.url
    return world


def test_no_request_fails_on_the_way_to_ollama_and_back(world: World, daemon: OwnOllama) -> None:
    assert world.run("serve", "selftest", "--detach").status == 0
    with Load(world.port) as load:
        until(lambda: load.total > 20)
        there = world.run("switch", "ollama")
        assert there.status == 0, there.text
        until(lambda: load.answers["ollama"] > 20 or load.failures, 60)
        assert "selftest:latest" in daemon.aliases()
        back = world.run("switch", "llamacpp")
        assert back.status == 0, back.text
        before = load.answers["llamacpp"]
        until(lambda: load.answers["llamacpp"] > before + 20 or load.failures, 60)
    assert load.failures == []
    assert set(load.answers) == {"llamacpp", "ollama"}
    assert daemon.aliases() == set()
    assert daemon.running() == []
    assert daemon.answers()


def test_deployments_of_one_daemon_follow_each_other(world: World, daemon: OwnOllama) -> None:
    # Both would share a name and a runner, so requests wait.
    assert world.run("serve", "selftest", "--engine", "ollama", "--detach").status == 0
    with Load(world.port, clients=4) as load:
        until(lambda: load.total > 4)
        result = world.run("switch", "ollama", "--context", "2048")
        asked = load.total
        until(lambda: load.total > asked + 4 or load.failures, 60)
    assert result.status == 0, result.text
    assert "one engine of this kind runs at a time, so the old server goes first\n" in result.stderr
    assert load.failures == []
    assert world.record()["plan"]["context"]["value"] == 2048
    assert [model["context_length"] for model in daemon.running()] == [2048]


def test_old_engine_stays_if_ollama_refuses(world: World, daemon: OwnOllama) -> None:
    daemon.stop()
    assert world.run("serve", "selftest", "--detach").status == 0
    result = world.run("switch", "ollama", LLMDEPLOY_ENGINES_OLLAMA_PROGRAM="/bin/false")
    assert result.status == 1, result.text
    assert "; `selftest` on llamacpp serves as before\n" in result.stderr
    assert world.record()["engine"] == "llamacpp"


def test_killed_service_leaves_no_alias_behind(world: World, daemon: OwnOllama) -> None:
    # The next start releases the model that the switch had loaded into an external daemon.
    assert world.run("serve", "selftest", "--detach").status == 0
    assert world.run("switch", "ollama").status == 0
    [service] = [it for it in world.processes() if "serve" in it.cmdline()]
    service.kill()
    until(lambda: world.run("status").stdout.startswith("crashed"))
    assert daemon.running() != []
    assert world.run("stop").status == 0
    assert daemon.running() == []
    assert daemon.aliases() == set()
