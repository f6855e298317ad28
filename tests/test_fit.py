"""A model that cannot fit is refused before the download, by the headers at its source."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmdeploy import hardware
from llmdeploy.config import Settings
from llmdeploy.engines.base import EngineStatus, plan_before_download
from llmdeploy.errors import DoesNotFit, DownloadFailed, ModelInvalid
from llmdeploy.hardware import Hardware
from llmdeploy.models import remote_file
from llmdeploy.models.reference import CatalogName
from llmdeploy.models.requirements import RequiredFile, Requirements
from llmdeploy.plan import Plan, Setting, Wishes
from llmdeploy.service.events import Fetching, Internal, Public
from llmdeploy.service.launch import Launch
from llmdeploy.service.order import Order
from llmdeploy.service.placement import HeldMemory
from tests.conftest import SELFTEST, World
from tests.hub_server import Hub, serve

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
HUGE = "hf://owner/huge/x.gguf"


def huge() -> bytes:
    """Return the self-test model with a header that claims a matrix of 8 TB."""
    content = bytearray(WEIGHTS.read_bytes())
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 8
    content[at : at + 8] = (2**34).to_bytes(8, "little")
    return bytes(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub()) as hub:
        yield hub


@pytest.fixture
def asking(world: World, hub: Hub) -> World:
    """Return a world that uses this Hub."""
    world.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(world.folder / "hf")}
    return world


def log(world: World) -> str:
    return (world.state / "service.log").read_text()


def cached(world: World) -> list[Path]:
    return [file for file in (world.folder / "hf").rglob("*") if file.is_file()]


# --- The decision


ENGINE = cast("Any", SimpleNamespace(plan=lambda facts, machine, wishes: (facts, machine, wishes)))


def weights(facts: Any) -> Any:
    def read() -> object:
        if isinstance(facts, Exception):
            raise facts
        return facts

    return SimpleNamespace(facts=read)


def test_the_plan_of_what_is_known() -> None:
    machine = cast("Any", "a machine")
    assert cast("Any", plan_before_download(ENGINE, weights("facts"), machine, Wishes(context=5))) == (
        "facts",
        machine,
        Wishes(context=5),
    )


def test_source_without_headers_gives_no_plan() -> None:
    assert plan_before_download(ENGINE, weights(DownloadFailed("x")), cast("Any", None), Wishes()) is None


@pytest.mark.parametrize("kind", [ModelInvalid, DoesNotFit])
def test_unusable_model_is_an_error(kind: type[Exception]) -> None:
    with pytest.raises(kind):
        plan_before_download(ENGINE, weights(kind("x")), cast("Any", None), Wishes())


# --- The candidate


class Elsewhere:
    """An engine whose model is not here."""

    name = "played"

    def __init__(self, need: Requirements) -> None:
        self.machines: list[Hardware] = []
        self.did: list[str] = []
        self.status = lambda: EngineStatus(True, "1", "")
        self.daemon = None
        self.log_reader = lambda: None
        self.resolve = lambda model: SimpleNamespace(
            reused_from="",
            references=tuple,
            is_present=lambda: False,
            requirements=lambda: need,
            facts=lambda: "facts",
            download=lambda on_progress: self.did.append("download"),
        )

    def plan(self, facts: object, machine: Hardware, wishes: Wishes) -> Plan:
        self.machines.append(machine)
        return Plan(Setting(1, ""), Setting(1, ""), (), None)


def looked(folder: Path, need: Requirements, spare: HeldMemory | None = None) -> tuple[Elsewhere, list[Fetching]]:
    """Return what a launch did and told on its way to weights that are not on this machine."""
    played = Elsewhere(need)
    told: list[Public | Internal] = []
    order = Order(CatalogName("x"), Settings())
    Launch(order, cast("Any", played), told.append, folder / "log").prepare(spare)
    return played, [event for event in told if isinstance(event, Fetching)]


def test_memory_of_the_old_server_counts_before_the_weights_are_downloaded(tmp_path: Path) -> None:
    """A switch is accepted if the model fits once the old server has stopped."""
    need = Requirements("hf://o/r", tmp_path, (RequiredFile("x", 1000, here=400),))
    machine = hardware.detect()
    played, told = looked(tmp_path, need, HeldMemory(memory=2**60))
    assert played.machines[0].memory_available == machine.memory_total
    assert played.did == ["download"]
    assert told == [Fetching("hf://o/r", 600, "")]


def test_a_size_that_nobody_knows_is_told_and_keeps_nothing_back(tmp_path: Path) -> None:
    need = Requirements("ollama://x", tmp_path, (), unknown="the registry does not answer")
    played, told = looked(tmp_path, need)
    assert played.did == ["download"]
    assert (told[0].bytes, told[0].reason) == (0, "the registry does not answer")


def test_a_disk_without_room_keeps_it_from_the_first_byte(tmp_path: Path) -> None:
    need = Requirements("hf://o/r", tmp_path, (RequiredFile("x", 2**60),))
    with pytest.raises(DownloadFailed) as caught:
        looked(tmp_path, need)
    assert caught.value.code == "disk_full"


# --- Through the front


def test_a_model_that_memory_cannot_hold_is_not_fetched(asking: World, hub: Hub) -> None:
    hub.files["owner/huge"] = {"x.gguf": huge()}
    hub.claimed_size = 2**43
    result = asking.run("serve", HUGE)
    assert result.status == 1
    error = result.stderr.splitlines()[-2]
    assert error.startswith(f"error: `{HUGE}` needs 4096.")
    assert error.endswith(" is free")
    assert "fetching" not in result.stderr
    assert hub.sent_bytes() <= remote_file.FIRST
    assert cached(asking) == []


def test_a_model_that_the_disk_cannot_hold_is_not_fetched(asking: World, hub: Hub) -> None:
    hub.files["owner/huge"] = {"x.gguf": WEIGHTS}
    hub.claimed_size = 2**43
    result = asking.run("serve", HUGE, "--json")
    assert result.status == 1, result.text
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "disk_full"
    assert hub.sent_bytes() <= remote_file.FIRST
    assert cached(asking) == []


def test_a_context_that_the_model_cannot_have_is_told_before_it_is_fetched(asking: World, hub: Hub) -> None:
    hub.files["owner/model"] = {"x.gguf": WEIGHTS.read_bytes() + os.urandom(3_000_000)}
    result = asking.run("serve", "hf://owner/model/x.gguf", "--context", "8193")
    assert "error: a context of 8193 tokens is longer than the model's own, 8192" in result.stderr
    assert hub.sent_bytes() <= remote_file.FIRST


def test_a_model_of_hugging_face_form_is_weighed_where_it_is(hub: Hub, asking: World) -> None:
    config = (SELFTEST / "hf" / "config.json").read_bytes()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2**42], "data_offsets": [0, 2**43]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(300_000)
    hub.files["owner/huge"] = {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": weights}
    hub.claimed_size = 2**44
    script = """
import sys
from llmdeploy import hardware
from llmdeploy.config import Settings
from llmdeploy.engines.base import plan_before_download
from llmdeploy.engines.vllm.engine import Vllm
from llmdeploy.models.reference import parse
from llmdeploy.plan import Wishes

vllm = Vllm(Settings())
plan = plan_before_download(vllm, vllm.resolve(parse("owner/huge")), hardware.detect(), Wishes())
print(plan.needed_bytes)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=asking.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert 2**43 < int(done.stdout) < 2**44
    assert hub.sent_bytes("model.safetensors") <= remote_file.FIRST


def test_what_fits_says_how_much_is_fetched_from_where(asking: World, hub: Hub) -> None:
    hub.files["owner/model"] = {"x.gguf": WEIGHTS}
    command = asking.start("serve", "hf://owner/model/x.gguf", "--json")
    assert command.stdout is not None
    events = (json.loads(line) for line in command.stdout)
    fetching = next(one for one in events if one["event"] == "fetching")
    assert (fetching["source"], fetching["bytes"]) == ("hf://owner/model", WEIGHTS.stat().st_size)
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=15)


def test_model_of_a_source_without_ranges_is_downloaded(asking: World, hub: Hub) -> None:
    """Some mirrors send whole files only."""
    hub.files["owner/model"] = {"x.gguf": WEIGHTS}
    hub.ignores_range = True
    result = asking.run("serve", "hf://owner/model/x.gguf", "--detach")
    assert result.status == 0, result.text
    assert "fetching the weights\n          2 MiB from hf://owner/model\n" in log(asking)


def test_a_switch_to_what_cannot_fit_fetches_nothing(asking: World, hub: Hub) -> None:
    hub.files["owner/huge"] = {"x.gguf": huge()}
    hub.claimed_size = 2**43
    assert asking.run("serve", "selftest", "--detach").status == 0
    result = asking.run("switch", "llamacpp", "--model", HUGE)
    assert result.status == 1
    assert "the switch failed at the step `check`: " in result.stderr
    assert " is free" in result.stderr
    assert hub.sent_bytes() <= remote_file.FIRST
    assert cached(asking) == []
