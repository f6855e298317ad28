"""Description of the machine: the cores, memory and GPUs that this process may use.

The functions that take text and numbers are pure; `detect` and the private functions it calls read the system.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llmdeploy.background import within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# An idle driver takes up to a second per GPU to wake; a broken one never answers.
NVML_SECONDS = 10.0


@dataclass(frozen=True)
class Gpu:
    """One GPU with NVML's index. Memory in bytes; None if NVML does not report it (unified memory, as on GB10)."""

    index: int
    name: str
    memory_total: int | None
    memory_free: int | None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Hardware:
    """Resources that this process may use. Memory in bytes."""

    platform: str
    python: str
    cpu: str
    physical_cores: int  # of the machine
    usable_cores: int  # for work that keeps a core busy
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the highest CUDA version that the driver runs
    gpu_problem: str | None = None  # why an installed NVIDIA driver does not answer


def detect() -> Hardware:
    """Detect the resources of this machine now. Never raises."""
    import psutil

    groups = _groups()
    memory = psutil.virtual_memory()
    total, available = limited_memory(memory.total, memory.available, groups)
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    nvidia = _nvidia()
    return Hardware(
        platform=_platform(),
        python=platform.python_version(),
        cpu=_cpu(),
        physical_cores=physical,
        usable_cores=usable_cores(physical, _affinity_cores(), (group.quota for group in groups)),
        memory_total=total,
        memory_available=available,
        gpus=nvidia.gpus,
        driver=nvidia.driver,
        cuda=nvidia.cuda,
        gpu_problem=nvidia.problem,
    )


def disk_free(path: Path) -> int:
    """Return the bytes free for this user on the file system where `path` is or would be. Raises OSError."""
    path = path.absolute()
    folder = next((folder for folder in (path, *path.parents) if os.path.isdir(folder)), path)
    return shutil.disk_usage(folder).free


# Cores and memory


@dataclass(frozen=True)
class ControlGroup:
    """Limits of a Linux control group: memory in bytes and CPU time in cores. None means no limit."""

    memory_limit: int | None = None
    memory_held: int = 0  # without the file cache, which the kernel frees when memory is short
    quota: float | None = None


def usable_cores(physical: int, affinity: int | None, quotas: Iterable[float | None] = ()) -> int:
    """Return the cores for compute-bound work. A fraction of a core is left out: its thread would delay all others."""
    limits = [affinity, *quotas]
    return max(1, int(min([physical, *(limit for limit in limits if limit is not None)])))


def limited_memory(total: int, available: int, groups: Iterable[ControlGroup]) -> tuple[int, int]:
    """Return total and available bytes under the limits of all `groups`; the smallest limit counts."""
    for group in groups:
        if group.memory_limit is not None:
            total = min(total, group.memory_limit)
            available = min(available, max(0, group.memory_limit - group.memory_held))
    return total, available


def group_folders(cgroup: str, mountinfo: str) -> tuple[PurePosixPath, ...]:
    """List the folders of a process's control groups and their parents.

    The arguments are the text of `/proc/self/cgroup` and `/proc/self/mountinfo`.
    """
    memberships = [line.split(":", 2) for line in cgroup.splitlines() if line.count(":") >= 2]
    folders: dict[PurePosixPath, None] = {}
    for root, mount, controllers in _group_mounts(mountinfo):
        for _, named, path in memberships:
            if named == controllers or set(named.split(",")) & set(controllers.split(",")):
                folder = _folder(PurePosixPath(path), root, mount)
                folders |= dict.fromkeys(f for f in (folder, *folder.parents) if f.is_relative_to(mount))
    return tuple(folders)


def _folder(group: PurePosixPath, root: PurePosixPath, mount: PurePosixPath) -> PurePosixPath:
    """Return the folder of a group's files. A container may see the host's path of its group; then it is the mount."""
    inside = group.is_relative_to(root) and ".." not in group.parts
    return mount / group.relative_to(root) if inside else mount


def _group_mounts(mountinfo: str) -> Iterator[tuple[PurePosixPath, PurePosixPath, str]]:
    """Yield (root, mount point, controllers) of each hierarchy; version 2 has one, without controllers."""
    for line in mountinfo.splitlines():
        place, _, kind = (part.split() for part in line.partition(" - "))
        if len(place) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            yield PurePosixPath(place[3]), PurePosixPath(place[4]), kind[2] if kind[0] == "cgroup" else ""


def parse_group(files: Mapping[str, str]) -> ControlGroup:
    """Parse the limits from a group's files, of version 1 or 2; a missing file is an empty string."""
    limit = (files.get("memory.max") or files.get("memory.limit_in_bytes", "")).strip()
    used = (files.get("memory.current") or files.get("memory.usage_in_bytes", "")).strip()
    # Version 1 first counts the group alone, then with the groups below it (`total_`): the later line counts.
    cache = dict(re.findall(r"^(?:total_)?((?:in)?active_file) (\d+)$", files.get("memory.stat", ""), re.MULTILINE))
    cpu = files.get("cpu.max") or f"{files.get('cpu.cfs_quota_us', '')} {files.get('cpu.cfs_period_us', '')}"
    times = [int(word) for word in cpu.split() if word.isdecimal()]  # only one number if the quota is `max` or -1
    return ControlGroup(
        memory_limit=int(limit) if limit.isdecimal() else None,
        memory_held=max(0, int(used) - sum(map(int, cache.values()))) if used.isdecimal() else 0,
        quota=times[0] / times[1] if len(times) == 2 else None,
    )


_GROUP_FILES = (
    *("memory.max", "memory.current", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
    *("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
)


def _groups() -> list[ControlGroup]:
    """List the control groups of this process; empty on systems without them."""
    folders = group_folders(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))
    return [parse_group({name: _read(f"{folder}/{name}") for name in _GROUP_FILES}) for folder in folders]


def _affinity_cores() -> int | None:
    """Count the physical cores among the processors that this process may run on; None if the system has no limit."""
    import psutil

    processors: list[int] = getattr(psutil.Process(), "cpu_affinity", list)()
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_read(topology.format(number)) or number for number in processors}) or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


# Names


def _platform() -> str:
    system, release = platform.system(), platform.release()
    if system == "Darwin":
        system, release = "macOS", platform.mac_ver()[0]
    version = re.match(r"\d+(\.\d+)?", release)
    return f"{system} {version.group() if version else release} {platform.machine()}"


def _cpu() -> str:
    """Return the CPU's model name; the architecture if the system has no name, as on most ARM machines."""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "win32":
            import winreg

            key = winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0")
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout.strip()
    return cpu_model(_read("/proc/cpuinfo")) or platform.machine()


def cpu_model(cpuinfo: str) -> str | None:
    """Find the model name in the text of `/proc/cpuinfo`."""
    model = re.search(r"^model name\s*:\s*(.*\S)", cpuinfo, re.MULTILINE)
    return model.group(1) if model else None


# GPUs


@dataclass(frozen=True)
class Device:
    """A CUDA device: a whole GPU, or a MIG instance with its GPU's index."""

    uuid: str
    gpu: Gpu


@dataclass(frozen=True)
class Nvidia:
    """NVML's answers about all GPUs, and why it failed."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None


def visible(devices: Sequence[Device], variable: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows under CUDA_VISIBLE_DEVICES (None: not set), in CUDA's order.

    NVML ignores the variable, so CUDA's rules are repeated here. Indexes are NVML's; on a machine with several kinds
    of GPU, CUDA's are the same only with `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    """
    chosen = list(devices) if variable is None else list(_named(devices, variable))
    if len({device.uuid for device in chosen}) < len(chosen):
        return ()  # if a GPU is named twice, CUDA finds no device
    instances = [device for device in chosen if device.uuid.startswith("MIG-")]
    # A process gets at most one MIG instance, and then no whole GPU.
    return tuple(device.gpu for device in instances[:1] or chosen)


def _named(devices: Sequence[Device], variable: str) -> Iterator[Device]:
    """Yield one device for each entry up to the first invalid one: CUDA ignores that and all that follow."""
    for entry in map(str.strip, variable.split(",")):
        if entry.isdecimal():
            found = [device for device in devices if device.gpu.index == int(entry)][:1]
        else:
            whole = entry.startswith(("GPU-", "MIG-"))  # a prefix of a UUID is enough if it is unique
            found = [device for device in devices if whole and device.uuid.startswith(entry)]
        if len(found) != 1:
            return
        yield found[0]


def _nvidia() -> Nvidia:
    """Return NVML's answer. A thread waits for it: a call into a hung driver cannot be interrupted."""
    try:
        return within(NVML_SECONDS, _ask_nvml)
    except TimeoutError:
        return Nvidia(problem=f"the NVIDIA driver did not answer within {NVML_SECONDS:g} s; reboot the machine")


def _ask_nvml() -> Nvidia:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Nvidia(problem=nvml_problem(error.value, str(error), os.path.exists("/proc/driver/nvidia/version")))
    try:
        return _read_nvml(pynvml)
    except pynvml.NVMLError as error:
        return Nvidia(problem=nvml_problem(error.value, str(error), True))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read_nvml(nvml: Any) -> Nvidia:
    devices: list[Device] = []
    problem = None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            devices += _devices(nvml, index)
        except nvml.NVMLError as error:  # the other GPUs still count
            problem = f"GPU {index}: {nvml_problem(error.value, str(error), True)}"
    cuda = _optional(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    return Nvidia(
        gpus=visible(devices, os.environ.get("CUDA_VISIBLE_DEVICES")),
        driver=_optional(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        problem=problem,
    )


def _devices(nvml: Any, index: int) -> list[Device]:
    """List the GPU of that index or, in MIG mode, its instances."""
    whole = nvml.nvmlDeviceGetHandleByIndex(index)
    handles = [whole]
    mig_mode = _optional(nvml, nvml.nvmlDeviceGetMigMode, whole)
    if mig_mode and mig_mode[0] == nvml.NVML_DEVICE_MIG_ENABLE:
        slots = range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole))
        found = (_optional(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, whole, slot) for slot in slots)
        handles = [handle for handle in found if handle is not None]
    major_minor = _optional(nvml, nvml.nvmlDeviceGetCudaComputeCapability, whole)
    return [_device(nvml, index, handle, major_minor) for handle in handles]


def _device(nvml: Any, index: int, handle: object, major_minor: tuple[int, int] | None) -> Device:
    memory = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    reported = memory is not None and memory.total > 0
    gpu = Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        memory_total=memory.total if reported else None,
        memory_free=memory.free if reported else None,
        compute_capability="{}.{}".format(*major_minor) if major_minor else None,
    )
    return Device(uuid=nvml.nvmlDeviceGetUUID(handle), gpu=gpu)


def _optional(nvml: Any, question: Any, *about: object) -> Any:
    """Ask NVML; return None if this GPU or driver does not support the question. Other errors are raised."""
    none = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NOT_FOUND)
    try:
        return question(*about)
    except nvml.NVMLError as error:
        if error.value in none:
            return None
        raise


def nvml_problem(code: int, words: str, driver_loaded: bool) -> str | None:
    """Describe NVML's error and what to do; None if no NVIDIA driver is installed."""
    import pynvml

    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND and not driver_loaded:
        return None
    reboot = "reboot the machine"
    sentences = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "the NVIDIA driver runs but its library `libnvidia-ml.so.1` is missing; "
        "start a container with `--gpus all`",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded; "
        f"`sudo modprobe nvidia` says why, or {reboot}",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: f"the NVIDIA driver was updated while it ran; {reboot}",
        pynvml.NVML_ERROR_NO_PERMISSION: "this user may not use the NVIDIA driver; see `ls -l /dev/nvidia*`",
        pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system keeps the NVIDIA driver from this process; "
        "see `ls -l /dev/nvidia*`",
        pynvml.NVML_ERROR_GPU_IS_LOST: f"the GPU has fallen off the bus; {reboot}",
        pynvml.NVML_ERROR_RESET_REQUIRED: f"the GPU must be reset; {reboot}",
        pynvml.NVML_ERROR_INSUFFICIENT_POWER: "the GPU has no external power; check its power cables",
    }
    return sentences.get(code, f"the NVIDIA driver does not answer: {words.rstrip('.')}")
