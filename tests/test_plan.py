"""Plans that fit recorded machines, compared with the memory that the real engine allocates."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.config import Settings
from llmdeploy.engines.llamacpp.engine import LlamaCpp, Program
from llmdeploy.engines.llamacpp.settings import LlamaCppSettings
from llmdeploy.errors import DoesNotFit
from llmdeploy.hardware import Gpu, Hardware
from llmdeploy.models.facts import ModelFacts, read_gguf
from llmdeploy.plan import RESERVE_BYTES, MemoryPart, Plan, Setting, Wishes
from llmdeploy.units import GIB, MIB, in_gib
from tests import machines
from tests.conftest import SELFTEST, free_port


def make_plan(facts: ModelFacts, machine: Hardware, wishes: Wishes, *, on_gpu: bool = False, **settings: int) -> Plan:
    """Make llama.cpp's plan, for a build with or without GPU support."""
    engine = LlamaCpp(Settings(llamacpp=LlamaCppSettings(**settings)))
    vars(engine)["_program"] = Program(("llama-server",), "1", "a build", on_gpu)
    return engine.plan(facts, machine, wishes)


WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
SELFTEST_FACTS = read_gguf(WEIGHTS, MMPROJ)


QWEN_VL = ModelFacts(
    architecture="",
    weights_bytes=4_683_072_032,
    kv_heads=(4,) * 28,
    key_length=128,
    value_length=128,
    embedding_length=3584,
    vocabulary_size=152_064,
    context_length=128_000,
    mmproj_bytes=853_119_712,
    capabilities=("text", "image"),
    source="the headers",
)
"""qwen2.5-vl:7b in Q4_K_M."""
QWEN3 = ModelFacts(
    architecture="",
    weights_bytes=5_027_783_488,
    kv_heads=(8,) * 36,
    key_length=128,
    value_length=128,
    embedding_length=4096,
    vocabulary_size=151_936,
    context_length=40_960,
)
"""qwen3:8b in Q4_K_M."""


def with_free(memory: int) -> Hardware:
    """Return a machine without GPUs on which a plan may use this many bytes."""
    return replace(machines.load("cpu-only"), memory_available=memory + RESERVE_BYTES)


def sizes(plan: Plan) -> tuple[int, int]:
    return plan.context.value, plan.parallel.value


@pytest.mark.parametrize("name", machines.NAMES)
@pytest.mark.parametrize(("facts", "needed"), [(SELFTEST_FACTS, "548 MiB"), (QWEN_VL, "7.7 GiB")])
def test_the_defaults_fit_every_machine(name: str, facts: ModelFacts, needed: str) -> None:
    machine = machines.load(name)
    plan = make_plan(facts, machine, Wishes())
    assert plan.context == Setting(8192, "the default")
    assert plan.parallel == Setting(4, "the default")
    assert plan.settings["threads"] == Setting(machine.usable_cores, "physical cores that this process may use")
    assert plan.settings["gpu_layers"] == Setting(-1, "the engine offloads what fits")
    assert plan.fits
    plan.require_fit("x")
    assert in_gib(plan.needed_bytes) == needed


def test_the_memory_of_qwen_vl_part_by_part() -> None:
    plan = make_plan(QWEN_VL, machines.load("t4"), Wishes())
    assert plan.memory == (
        MemoryPart("weights", 4_683_072_032, "the headers"),
        MemoryPart("vision", 853_119_712, "size of the mmproj file"),
        # 28 layers x 4 heads x (128 + 128) x 2 bytes, for 4 x 8192 tokens: 1.75 GiB
        MemoryPart("KV cache", 1_792 * MIB, "57344 bytes a token (f16) x 32768 tokens"),
        # 512 x (152,064 + 2 x 3584) x 4
        MemoryPart("compute", 326_107_136, "512 x (vocabulary + 2 x embedding) x 4 bytes"),
        MemoryPart("prompt cache", 512 * MIB, "its limit"),
    )


def test_model_without_vision_has_no_vision_part() -> None:
    names = [part.name for part in make_plan(QWEN3, machines.load("h200"), Wishes()).memory]
    assert names == ["weights", "KV cache", "compute", "prompt cache"]


LOWERED = "lowered to fit the memory that is free"

# Qwen3-8B: 5.5 GiB before its KV cache, which takes 1.125 GiB for 8192 tokens.
SHORT_OF_MEMORY = [
    (10.1, (8192, 4), "the default", "the default"),
    (9.0, (8192, 2), "the default", LOWERED),
    (7.0, (8192, 1), "the default", LOWERED),
    (6.2, (4096, 1), LOWERED, LOWERED),
    (5.9, (2048, 1), LOWERED, LOWERED),
]


@pytest.mark.parametrize(("gib", "expected", "context_reason", "parallel_reason"), SHORT_OF_MEMORY)
def test_parallel_is_lowered_before_context(
    gib: float, expected: tuple[int, int], context_reason: str, parallel_reason: str
) -> None:
    plan = make_plan(QWEN3, with_free(int(gib * GIB)), Wishes())
    assert sizes(plan) == expected
    assert (plan.context.reason, plan.parallel.reason) == (context_reason, parallel_reason)
    assert plan.fits


def test_recorded_machine_without_gpu_answers_two_requests_at_once() -> None:
    assert sizes(make_plan(QWEN3, machines.load("cpu-only"), Wishes())) == (8192, 2)


NOTHING_FITS = [
    (
        4,
        Wishes(),
        "`my model.gguf` needs 5.8 GiB (weights 4.7 GiB, KV cache 288 MiB, compute 313 MiB, prompt cache 512 MiB) "
        "and 4.0 GiB is free",
        "free memory, or take a smaller model",
    ),
    (
        4,
        Wishes(context=4096, parallel=1),
        "`my model.gguf` needs 6.1 GiB (weights 4.7 GiB, KV cache 576 MiB, compute 313 MiB, prompt cache 512 MiB) "
        "and 4.0 GiB is free",
        "free memory, or take a smaller model",
    ),
    (
        6,
        Wishes(context=16384, parallel=8),
        "`my model.gguf` needs 23.5 GiB (weights 4.7 GiB, KV cache 18.0 GiB, compute 313 MiB, prompt cache 512 MiB) "
        "and 6.0 GiB is free",
        "free memory, or take a smaller model, or ask for less: "
        "`llmdeploy serve 'my model.gguf' --context 2048 --parallel 1`",
    ),
    (
        6,
        Wishes(context=1024, parallel=8),
        "`my model.gguf` needs 6.6 GiB (weights 4.7 GiB, KV cache 1.1 GiB, compute 313 MiB, prompt cache 512 MiB) "
        "and 6.0 GiB is free",
        "free memory, or take a smaller model, or ask for less: "
        "`llmdeploy serve 'my model.gguf' --context 1024 --parallel 1`",
    ),
]


@pytest.mark.parametrize(("gib", "wishes", "message", "hint"), NOTHING_FITS)
def test_nothing_fits(gib: int, wishes: Wishes, message: str, hint: str) -> None:
    plan = make_plan(QWEN3, with_free(gib * GIB), wishes)
    assert not plan.fits
    with pytest.raises(DoesNotFit) as caught:
        plan.require_fit("my model.gguf")
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_the_smallest_plan_is_returned_when_nothing_fits() -> None:
    assert sizes(make_plan(QWEN3, with_free(0), Wishes())) == (2048, 1)


def test_free_memory_below_the_reserve_counts_as_none() -> None:
    plan = make_plan(SELFTEST_FACTS, replace(machines.load("t4"), memory_available=1), Wishes())
    assert plan.available is not None
    assert plan.available.bytes == 0
    assert not plan.fits


def test_a_context_beyond_the_models_own_is_refused_with_both_numbers() -> None:
    with pytest.raises(DoesNotFit) as caught:
        make_plan(QWEN3, machines.load("h200"), Wishes(context=40_961))
    assert caught.value.message == "a context of 40961 tokens is longer than the model's own, 40960"
    assert caught.value.hint == "ask for at most that: `--context 40960`"
    assert make_plan(QWEN3, machines.load("h200"), Wishes(context=40_960)).context.value == 40_960


def test_model_with_a_short_context_keeps_it() -> None:
    short = replace(QWEN3, context_length=512)
    plan = make_plan(short, machines.load("h200"), Wishes())
    assert plan.context == Setting(512, "the model's own")


def test_wishes_are_kept_when_they_do_not_fit() -> None:
    plan = make_plan(QWEN3, with_free(GIB), Wishes(context=40_960, parallel=3), threads=7, gpu_layers=5)
    assert plan.context == Setting(40_960, "as asked for")
    assert plan.parallel == Setting(3, "as asked for")
    assert plan.settings["threads"] == Setting(7, "as asked for")
    assert plan.settings["gpu_layers"] == Setting(5, "as asked for")


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (Wishes(context=16_384), (16_384, 1)),
        (Wishes(parallel=4), (4096, 4)),
        (Wishes(parallel=3), (4096, 3)),
    ],
)
def test_other_number_is_lowered_for_a_wish(wishes: Wishes, expected: tuple[int, int]) -> None:
    plan = make_plan(QWEN3, with_free(8 * GIB), wishes)
    assert sizes(plan) == expected
    assert plan.fits


RAM = "free memory less 512 MiB for the rest of the machine"


@pytest.mark.parametrize(
    ("name", "on_gpu", "gpu_bytes", "reason"),
    [
        ("2x4090", False, 0, RAM),
        ("2x4090", True, 25_252_855_808 + 25_257_050_112, f"{RAM}, and 47.0 GiB free on GPUs"),
        ("t4", True, 15_641_608_192, f"{RAM}, and 14.6 GiB free on GPUs"),
        # Unified memory: NVML reports none; the GPU uses the machine's memory.
        ("gb10", True, 0, f"{RAM}, and 0 B free on GPUs"),
        ("cpu-only", True, 0, f"{RAM}, and 0 B free on GPUs"),
    ],
)
def test_gpu_memory_counts_for_engines_that_use_it(name: str, on_gpu: bool, gpu_bytes: int, reason: str) -> None:
    machine = machines.load(name)
    plan = make_plan(QWEN3, machine, Wishes(), on_gpu=on_gpu)
    assert plan.available == MemoryPart("available", machine.memory_available - RESERVE_BYTES + gpu_bytes, reason)


@dataclass(frozen=True)
class Logged:
    """KV cache size from llama.cpp's log of a real model, with the source of the log."""

    layers: int
    kv_heads: int
    head: int
    tokens: int
    mib: float
    url: str


KV_LOGS = [
    Logged(32, 8, 128, 16_384, 2048.0, "https://github.com/ikawrakow/ik_llama.cpp/discussions/562"),  # Llama 3.1 8B
    Logged(48, 4, 128, 32_768, 3072.0, "https://github.com/ikawrakow/ik_llama.cpp/issues/398"),  # Qwen3-30B-A3B
    Logged(64, 8, 128, 8192, 2048.0, "https://github.com/ikawrakow/ik_llama.cpp/discussions/397"),  # Qwen3-32B
    Logged(61, 8, 128, 8192, 1952.0, "https://github.com/ikawrakow/ik_llama.cpp/pull/333"),  # GLM Z1 32B
]


@pytest.mark.parametrize("logged", KV_LOGS, ids=lambda logged: logged.url.rpartition("/")[2])
def test_kv_cache_equals_llama_cpps_logs(logged: Logged) -> None:
    facts = replace(
        QWEN3, kv_heads=(logged.kv_heads,) * logged.layers, key_length=logged.head, value_length=logged.head
    )
    plan = make_plan(facts, machines.load("h200"), Wishes(context=logged.tokens, parallel=1))
    assert kv_cache(plan) == logged.mib * MIB


def kv_cache(plan: Plan) -> int:
    return next(part.bytes for part in plan.memory if part.name == "KV cache")


VERBOSE_SERVER = """
import sys, xllamacpp
class Verbose(xllamacpp.CommonParams):
    def __init__(self):
        super().__init__()
        self.verbosity = 4
xllamacpp.CommonParams = Verbose
from llmdeploy.engines.llamacpp.server_program import main
main(sys.argv[1:])
"""
"""The server as it is, only with a log that names its buffers: no flag and no variable of it does that."""


@pytest.mark.parametrize(("context", "parallel"), [(2048, 2), (8192, 4), (512, 1)])
def test_kv_cache_equals_what_the_engine_allocates(context: int, parallel: int) -> None:
    plan = make_plan(SELFTEST_FACTS, machines.load("cpu-only"), Wishes(context=context, parallel=parallel))
    flags = {
        "--model": WEIGHTS, "--ctx-size": context * parallel, "--parallel": parallel, "--threads": 1,
        "--host": "127.0.0.1", "--port": free_port(), "--alias": "x",
    }  # fmt: skip
    argv = [sys.executable, "-c", VERBOSE_SERVER, *(str(word) for pair in flags.items() for word in pair)]
    allocated = ""
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            allocated = allocated or "".join(re.findall(r"KV buffer size = +([\d.]+) MiB", line))
            if "listening on" in line:
                break
        server.kill()
    assert float(allocated) * MIB == kv_cache(plan)


@st.composite
def facts(draw: st.DrawFn) -> ModelFacts:
    """Generate models from a toy to one that fits no machine."""
    layers = draw(st.integers(1, 200))
    head = st.integers(0, 1024)
    return ModelFacts(
        architecture="any",
        weights_bytes=draw(st.integers(1, 2 * 1024 * GIB)),
        kv_heads=tuple(draw(st.lists(st.integers(0, 256), min_size=layers, max_size=layers))),
        key_length=draw(head),
        value_length=draw(head),
        embedding_length=draw(st.integers(1, 65_536)),
        vocabulary_size=draw(st.integers(1, 1_000_000)),
        context_length=draw(st.integers(1, 10_000_000)),
        mmproj_bytes=draw(st.integers(0, 20 * GIB)),
    )


memories = st.integers(0, 4 * 1024 * GIB)
wishes = st.builds(
    Wishes,
    context=st.none() | st.integers(1, 200_000),
    parallel=st.none() | st.integers(1, 256),
)


@given(facts(), memories, st.none() | memories, wishes, st.booleans())
def test_any_plan_fits_or_says_so(model: ModelFacts, ram: int, gpu: int | None, wished: Wishes, on_gpu: bool) -> None:
    machine = replace(machines.load("t4"), memory_available=ram, gpus=(Gpu(0, "any", gpu, gpu),))
    if wished.context is not None and wished.context > model.context_length:
        with pytest.raises(DoesNotFit, match=f"{wished.context} .* {model.context_length}$"):
            make_plan(model, machine, wished, on_gpu=on_gpu)
        return
    plan = make_plan(model, machine, wished, on_gpu=on_gpu)
    context, parallel = sizes(plan)
    assert 0 < context <= model.context_length
    needed = model.weights_bytes + model.mmproj_bytes + model.kv_bytes_per_token() * context * parallel
    there = ram + (gpu or 0 if on_gpu else 0)
    if plan.fits:
        plan.require_fit("any")
        assert needed < there
    else:
        with pytest.raises(DoesNotFit):
            plan.require_fit("any")


@given(facts(), memories, memories)
def test_more_memory_never_gives_less(model: ModelFacts, one: int, other: int) -> None:
    less, more = (make_plan(model, with_free(memory), Wishes()) for memory in sorted((one, other)))
    assert less.context.value * less.parallel.value <= more.context.value * more.parallel.value
    assert more.fits >= less.fits


def test_memory_of_an_unused_gpu_does_not_count() -> None:
    machine = machines.load("1x4090")
    with_gpu = make_plan(QWEN3, machine, Wishes(), on_gpu=True).available
    without = make_plan(QWEN3, machine, Wishes(), on_gpu=True, gpu_layers=0).available
    assert with_gpu is not None
    assert without is not None
    assert with_gpu.bytes - without.bytes == machine.gpus[0].memory_free
