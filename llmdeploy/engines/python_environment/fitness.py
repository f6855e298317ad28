"""Whether an environment can serve on a machine: its build, the machine's GPUs and the NVIDIA driver. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmdeploy.engines.base import EngineStatus
from llmdeploy.engines.python_environment.contents import Contents, Environment, numbers
from llmdeploy.engines.python_environment.program import OTHER_ENGINE, PythonProgram

if TYPE_CHECKING:
    from llmdeploy.hardware import Hardware

DRIVERS = {11: "450", 12: "525", 13: "580"}
"""The first NVIDIA driver on Linux for each major version of CUDA. Its minor versions need no newer one."""


def judge(program: PythonProgram, environment: Environment, machine: Hardware | None) -> EngineStatus:
    """Return the status of an environment on a machine; `machine` is None if its driver did not answer in time."""
    at = f"`{environment.python}`, {environment.origin}"
    if environment.problem:
        return EngineStatus(
            False, environment.version, f"{program.label} at {at}: {environment.problem}", program.replace_hint
        )
    contents = environment.contents
    if contents is None:  # a cold disk is slow; the environment may still be usable
        return EngineStatus(True, None, f"{program.label} at {at}, slow to report its version")
    if contents.device == "cuda" and machine and (why := unfit(program, contents.cuda, machine)):
        reason, hint = why
        return EngineStatus(False, contents.version, f"{program.label} {contents.version} at {at}: {reason}", hint)
    hint = ""
    if contents.device == "cpu" and machine and machine.gpus:
        hint = f"it computes on the CPU, and this machine has a GPU: {program.install_command}"
    return EngineStatus(
        True, contents.version, f"{program.label} {contents.version} ({_build(contents)}) at {at}", hint
    )


def unfit(program: PythonProgram, cuda: str | None, machine: Hardware) -> tuple[str, str] | None:
    """Return why a build for this CUDA does not run on a machine, and a hint; None if it runs."""
    build = f"this build is for NVIDIA GPUs{f' (CUDA {cuda})' if cuda else ''}"
    if machine.gpu_problem and not machine.gpus:
        return f"{build}, and {machine.gpu_problem}", "`nvidia-smi` shows what the driver says"
    if machine.driver is None:
        return (
            f"{build}, and no NVIDIA driver is installed",
            f"its build for CPUs: {program.cpu_install_command}; {OTHER_ENGINE}",
        )
    if not machine.gpus:
        return f"{build}, and no GPU is visible", "`nvidia-smi -L` lists them, and CUDA_VISIBLE_DEVICES may hide them"
    if cuda and machine.cuda and numbers(machine.cuda)[:1] < numbers(cuda)[:1]:
        newer = DRIVERS.get(numbers(cuda)[0], "a newer one")
        update = f"update the NVIDIA driver to {newer}" + (" or newer" if newer.isdecimal() else "")
        return f"{build}, and the driver {machine.driver} runs CUDA {machine.cuda} at most", f"{update}; {OTHER_ENGINE}"
    return None


def _build(contents: Contents) -> str:
    build = {"cpu": "CPU build", "cuda": f"CUDA {contents.cuda}", "rocm": f"ROCm {contents.rocm}"}
    return f"{build.get(contents.device, contents.device.upper())}, torch {contents.torch}"
