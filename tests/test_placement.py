"""The decision whether a new server starts beside the old one, on invented machines; the memory of a real process."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from llmdeploy.hardware import Gpu, Hardware
from llmdeploy.models.facts import ModelFacts
from llmdeploy.plan import MemoryPart, Plan, Wishes, make_plan
from llmdeploy.service import placement
from llmdeploy.service.placement import HeldMemory
from llmdeploy.service.process import identify
from llmdeploy.units import GIB

MACHINE = Hardware(
    platform="Linux 6.8 x86_64",
    python="3.12.1",
    cpu="a CPU",
    physical_cores=8,
    usable_cores=8,
    memory_total=64 * GIB,
    memory_available=40 * GIB,
    gpus=(Gpu(0, "A", 24 * GIB, 4 * GIB), Gpu(1, "B", 24 * GIB, 20 * GIB), Gpu(2, "C", None, None)),
)
FACTS = ModelFacts(
    architecture="qwen3",
    weights_bytes=8 * GIB,
    kv_heads=(8,) * 36,
    key_length=128,
    value_length=128,
    embedding_length=4096,
    vocabulary_size=151_936,
    context_length=40_960,
    capabilities=("text",),
    source="a test",
)


def plan_with(free: int, **wishes: Any) -> Plan:
    return make_plan(FACTS, Wishes(**wishes), MemoryPart("available", free, "a test"))


def test_beside_if_it_costs_the_new_server_nothing() -> None:
    found = placement.decide(plan_with(40 * GIB), plan_with(60 * GIB), shares=False)
    assert found.beside
    assert found.reason == "both fit side by side: 12.5 GiB needed, 40.0 GiB free"


def test_after_the_old_server_if_both_do_not_fit() -> None:
    found = placement.decide(plan_with(6 * GIB), plan_with(14 * GIB), shares=False)
    assert not found.beside
    assert found.plan == plan_with(14 * GIB)
    assert found.reason == "8.3 GiB needed and 6.0 GiB free beside it"


def test_context_is_not_lowered_to_fit_beside() -> None:
    found = placement.decide(plan_with(9 * GIB), plan_with(20 * GIB), shares=False)
    assert not found.beside
    assert found.reason == "beside it 4096 tokens x 1 would fit, alone 8192 x 4"


def test_two_servers_of_one_daemon_are_never_beside() -> None:
    assert not placement.decide(plan_with(40 * GIB), plan_with(60 * GIB), shares=True).beside


def test_memory_of_the_old_server_is_added_to_the_free_memory() -> None:
    found = placement.without(MACHINE, HeldMemory(3 * GIB, ((0, 18 * GIB), (2, GIB))))
    assert found.memory_available == 43 * GIB
    assert [gpu.memory_free for gpu in found.gpus] == [22 * GIB, 20 * GIB, None]
    assert placement.without(MACHINE, HeldMemory(100 * GIB)).memory_available == MACHINE.memory_total


def test_gpu_memory_is_the_difference_to_before_the_start() -> None:
    before = replace(MACHINE, gpus=(Gpu(0, "A", 24 * GIB, 23 * GIB), *MACHINE.gpus[1:]))
    assert placement.taken(before, MACHINE) == ((0, 19 * GIB),)


def test_server_that_takes_a_part_of_the_gpu_needs_that_part_free() -> None:
    """vLLM told to take 0.9 of a GPU does not start where less is free, however little its model needs."""
    found = placement.decide(replace(plan_with(40 * GIB), takes=72 * GIB), plan_with(78 * GIB), shares=False)
    assert not found.beside
    assert found.reason == "72.0 GiB needed and 40.0 GiB free beside it"


def test_memory_of_a_process_is_what_it_has_written() -> None:
    itself = identify(os.getpid())
    assert itself is not None
    before = placement.held_memory(itself, ()).memory
    written = bytearray(os.urandom(1)) * (200 * 2**20)
    after = placement.held_memory(itself, ()).memory
    assert len(written) * 0.9 < after - before < len(written) * 1.5


@pytest.mark.parametrize(("free", "enough"), [(20 * GIB, False), (22 * GIB, True), (23 * GIB, True)])
def test_memory_is_free_when_nearly_all_of_it_is(free: int, enough: bool) -> None:
    wanted = replace(MACHINE, gpus=(Gpu(0, "A", 24 * GIB, 22 * GIB), *MACHINE.gpus[1:]))
    now = replace(MACHINE, gpus=(Gpu(0, "A", 24 * GIB, free), *MACHINE.gpus[1:]))
    assert placement.is_free(now, wanted) is enough
