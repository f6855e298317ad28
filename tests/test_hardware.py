from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pynvml
import pytest

from llmdeploy import hardware
from llmdeploy.hardware import ControlGroup, Device, Gpu
from tests import machines

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30


# This machine


def test_detect_describes_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    began = time.monotonic()
    found = hardware.detect()
    # A sleeping NVIDIA driver takes longer to wake.
    assert time.monotonic() - began < (hardware.NVML_SECONDS if found.driver else 1)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert len(found.platform.split()) == 3
    assert found.cpu
    assert 1 <= found.usable_cores <= found.physical_cores <= (psutil.cpu_count() or 1)
    assert 0 < found.memory_available <= found.memory_total <= psutil.virtual_memory().total


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_limits_the_cores() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.detect().usable_cores == 1
    finally:
        os.sched_setaffinity(0, before)


def test_disk_free_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    expected = psutil.disk_usage(str(tmp_path)).free
    for path in (tmp_path, tmp_path / "not" / "there", file, file / "below"):
        assert hardware.disk_free(path) == pytest.approx(expected, rel=0.05)


def test_disk_free_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hardware.disk_free(Path("not/there")) > 0


# Cores and memory


@pytest.mark.parametrize(
    ("physical", "affinity", "quotas", "expected"),
    [
        (8, None, [], 8),
        (8, 16, [], 8),
        (8, 3, [None], 3),
        (8, 8, [2.5], 2),
        (8, 8, [None, 6.0, 4.0], 4),
        (8, 8, [0.5], 1),
        (64, 32, [16.0], 16),
    ],
)
def test_usable_cores(physical: int, affinity: int | None, quotas: list[float | None], expected: int) -> None:
    assert hardware.usable_cores(physical, affinity, quotas) == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], (32 * GIB, 20 * GIB)),
        ([ControlGroup()], (32 * GIB, 20 * GIB)),
        ([ControlGroup(memory_limit=8 * GIB, memory_held=GIB)], (8 * GIB, 7 * GIB)),
        # The machine has less free memory than the group may use.
        ([ControlGroup(memory_limit=30 * GIB, memory_held=GIB)], (30 * GIB, 20 * GIB)),
        # Version 1 writes "no limit" as a huge number.
        ([ControlGroup(memory_limit=9223372036854771712, memory_held=GIB)], (32 * GIB, 20 * GIB)),
        # The parent has a smaller limit, and its other children use most of it.
        ([ControlGroup(8 * GIB, GIB), ControlGroup(6 * GIB, 5 * GIB), ControlGroup()], (6 * GIB, GIB)),
        ([ControlGroup(memory_limit=GIB, memory_held=2 * GIB)], (GIB, 0)),
    ],
)
def test_limited_memory(groups: list[ControlGroup], expected: tuple[int, int]) -> None:
    assert hardware.limited_memory(32 * GIB, 20 * GIB, groups) == expected


V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = """\
23 19 0:21 / /sys rw,nosuid - sysfs sysfs rw
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct ro,relatime master:11 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory ro,relatime master:14 - cgroup cgroup rw,memory"""


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "expected"),
    [
        ("", "", []),
        ("0::/\n", V2_MOUNT, ["."]),
        ("0::/user.slice/app.scope\n", V2_MOUNT, ["user.slice/app.scope", "user.slice", "."]),
        ("0::/../other\n", V2_MOUNT, ["."]),
        (
            "4:memory:/batch/job\n3:cpu,cpuacct:/batch\n",
            V1_MOUNTS.format(root="/"),
            ["cpu,cpuacct/batch", "cpu,cpuacct", "memory/batch/job", "memory/batch", "memory"],
        ),
        # Docker with version 1: the path is the host's, and the group itself is mounted as the root.
        (
            "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            V1_MOUNTS.format(root="/docker/abc"),
            ["cpu,cpuacct", "memory"],
        ),
        ("4:memory:/docker/abc\n", V1_MOUNTS.format(root="/elsewhere"), ["memory"]),
        ("not a cgroup file", "nor - this", []),
    ],
)
def test_group_folders(cgroup: str, mountinfo: str, expected: list[str]) -> None:
    folders = hardware.group_folders(cgroup, mountinfo)
    assert folders == tuple(PurePosixPath("/sys/fs/cgroup") / name for name in expected)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ControlGroup()),
        ({"memory.max": "max\n", "memory.current": "500\n", "cpu.max": "max 100000\n"}, ControlGroup(None, 500, None)),
        (
            {
                "memory.max": "1000\n",
                "memory.current": "700\n",
                "memory.stat": "anon 300\nfile 390\ninactive_file 250\nactive_file 50\n",
                "cpu.max": "250000 100000\n",
            },
            ControlGroup(1000, 400, 2.5),
        ),
        (
            {
                "memory.limit_in_bytes": "1000\n",
                "memory.usage_in_bytes": "700\n",
                "memory.stat": "inactive_file 1\nactive_file 2\ntotal_inactive_file 250\ntotal_active_file 50\n",
                "cpu.cfs_quota_us": "400000\n",
                "cpu.cfs_period_us": "100000\n",
            },
            ControlGroup(1000, 400, 4.0),
        ),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, ControlGroup()),
        # The counters are read one after another and may be inconsistent.
        ({"memory.current": "100\n", "memory.stat": "active_file 200\n"}, ControlGroup()),
    ],
)
def test_parse_group(files: dict[str, str], expected: ControlGroup) -> None:
    assert hardware.parse_group(files) == expected


def test_cpu_model() -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 97\nmodel name\t: AMD Ryzen 9 7950X \nstepping\t: 2\n"
    assert hardware.cpu_model(text) == "AMD Ryzen 9 7950X"
    assert hardware.cpu_model("processor\t: 0\nCPU part\t: 0xd85\n") is None


# CUDA_VISIBLE_DEVICES


def gpu(index: int) -> Gpu:
    return Gpu(index, "NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB)


WHOLE = [Device("GPU-aa11-0", gpu(0)), Device("GPU-aa22-1", gpu(1)), Device("GPU-bb33-2", gpu(2))]
SPLIT = [Device("MIG-cc-0", gpu(0)), Device("MIG-dd-1", gpu(0)), Device("GPU-bb33-2", gpu(1))]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 0 , 2 ", [0, 2]),
        ("0,7,1", [0]),
        ("0,-1,1", [0]),
        ("0,0", []),
        ("GPU-bb33-2,0", [2, 0]),
        ("GPU-b", [2]),
        ("GPU-aa", []),  # two GPUs have this prefix
        ("GPU-", []),
        ("MIG-cc-0", []),
        ("NoDevFiles", []),
        ("1;2", []),
    ],
)
def test_visible(variable: str | None, expected: list[int]) -> None:
    assert [gpu.index for gpu in hardware.visible(WHOLE, variable)] == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, SPLIT[:1]), ("0", SPLIT[:1]), ("1", SPLIT[2:]), ("MIG-dd-1", SPLIT[1:2]), ("MIG-dd,MIG-cc", SPLIT[1:2])],
)
def test_a_process_sees_one_mig_instance(variable: str | None, expected: list[Device]) -> None:
    assert hardware.visible(SPLIT, variable) == tuple(device.gpu for device in expected)


# NVML


class Driver(ModuleType):
    """Fake `pynvml` of a machine with GPUs, with NVML's documented values and its real errors for each `Failure`.

    `calls` counts the calls of nvmlInit and nvmlShutdown, which must match.
    """

    def __init__(self, gpus: list[dict[str, Any]], **system: Any) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        self.system = {"init": None, "driver": "580.95.05", "cuda": 13000, **system}
        self.calls = {"init": 0, "shutdown": 0}

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)  # constants and error classes

    @staticmethod
    def answer(value: Any) -> Any:
        if isinstance(value, Failure):
            raise pynvml.NVMLError(value.code)
        return value

    def nvmlInit(self) -> None:
        self.answer(self.system["init"])
        self.calls["init"] += 1

    def nvmlShutdown(self) -> None:
        self.calls["shutdown"] += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.answer(self.system["driver"])

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.answer(self.system["cuda"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.answer(self.gpus[index].get("handle", self.gpus[index]))

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return handle["name"]

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return handle["uuid"]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> SimpleNamespace:
        return SimpleNamespace(**self.answer(handle["memory"]))

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        return self.answer(handle["capability"])

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        return self.answer(handle.get("mig_mode", Failure(pynvml.NVML_ERROR_NOT_SUPPORTED)))

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, slot: int) -> Any:
        instances = handle["instances"]
        return self.answer(instances[slot] if slot < len(instances) else Failure(pynvml.NVML_ERROR_NOT_FOUND))


@dataclasses.dataclass(frozen=True)
class Failure:
    code: int


RTX_4090 = {
    "name": "NVIDIA GeForce RTX 4090",
    "uuid": "GPU-4f3c",
    "memory": {"total": 24564 * 2**20, "free": 24082 * 2**20, "used": 482 * 2**20},
    "capability": (8, 9),
}


@pytest.fixture(autouse=True)
def no_cuda_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    drivers: list[Driver] = []

    def put(driver: Driver) -> Driver:
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        drivers.append(driver)
        return driver

    yield put
    for driver in drivers:
        assert driver.calls["init"] == driver.calls["shutdown"]


def test_one_gpu(install: Any) -> None:
    install(Driver([RTX_4090]))
    found = hardware.detect()
    expected = Gpu(0, "NVIDIA GeForce RTX 4090", 24564 * 2**20, 24082 * 2**20, "8.9")
    assert (found.gpus, found.driver, found.cuda, found.gpu_problem) == ((expected,), "580.95.05", "13.0", None)


@pytest.mark.parametrize(("number", "expected"), [(12080, "12.8"), (13000, "13.0"), (11040, "11.4"), (0, None)])
def test_cuda_version(install: Any, number: int, expected: str | None) -> None:
    install(Driver([RTX_4090], cuda=number))
    assert hardware.detect().cuda == expected


def test_unified_memory_is_not_reported(install: Any) -> None:
    not_supported = Failure(pynvml.NVML_ERROR_NOT_SUPPORTED)
    install(Driver([{"name": "NVIDIA GB10", "uuid": "GPU-b10", "memory": not_supported, "capability": (12, 1)}]))
    found = hardware.detect()
    assert found.gpus == (Gpu(0, "NVIDIA GB10", None, None, "12.1"),)
    assert found.gpu_problem is None


def test_the_variable_hides_gpus(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Driver([RTX_4090, {**RTX_4090, "uuid": "GPU-77aa"}]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-77")
    assert [gpu.index for gpu in hardware.detect().gpus] == [1]


def test_mig_instances_replace_their_gpu(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    instances = [
        {"name": f"NVIDIA H100 MIG {kind}", "uuid": f"MIG-{kind}", "memory": {"total": size, "free": size - GIB}}
        for kind, size in (("3g.40gb", 40 * GIB), ("1g.10gb", 10 * GIB))
    ]
    whole = {"name": "NVIDIA H100", "uuid": "GPU-h", "capability": (9, 0), "mig_mode": [1, 1], "instances": instances}
    install(Driver([whole]))
    assert hardware.detect().gpus == (Gpu(0, "NVIDIA H100 MIG 3g.40gb", 40 * GIB, 39 * GIB, "9.0"),)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1g.10gb")
    assert hardware.detect().gpus == (Gpu(0, "NVIDIA H100 MIG 1g.10gb", 10 * GIB, 9 * GIB, "9.0"),)


def test_a_lost_gpu_does_not_hide_the_others(install: Any) -> None:
    lost = {**RTX_4090, "uuid": "GPU-lost", "memory": Failure(pynvml.NVML_ERROR_GPU_IS_LOST)}
    install(Driver([lost, RTX_4090]))
    found = hardware.detect()
    assert [gpu.index for gpu in found.gpus] == [1]
    assert found.gpu_problem == "GPU 0: the GPU has fallen off the bus; reboot the machine"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "the NVIDIA driver was updated while it ran; reboot the machine"),
        (
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            "the NVIDIA driver is installed but not loaded; `sudo modprobe nvidia` says why, or reboot the machine",
        ),
        (pynvml.NVML_ERROR_NO_PERMISSION, "this user may not use the NVIDIA driver; see `ls -l /dev/nvidia*`"),
        (pynvml.NVML_ERROR_UNKNOWN, "the NVIDIA driver does not answer: Unknown Error"),
    ],
)
def test_driver_failure_is_described(install: Any, code: int, sentence: str) -> None:
    install(Driver([], init=Failure(code)))
    found = hardware.detect()
    assert (found.gpus, found.driver, found.gpu_problem) == ((), None, sentence)


def test_missing_library_is_a_problem_only_with_a_running_driver() -> None:
    code = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert hardware.nvml_problem(code, "", driver_loaded=False) is None
    assert "--gpus all" in (hardware.nvml_problem(code, "", driver_loaded=True) or "")


def test_machine_without_nvidia_driver_reports_nothing() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        found = hardware.detect()
        assert (found.gpus, found.driver, found.cuda, found.gpu_problem) == ((), None, None, None)
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has an NVIDIA driver")


def test_hung_driver_times_out(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "NVML_SECONDS", 0.2)
    released = threading.Event()
    driver = install(Driver([RTX_4090]))
    monkeypatch.setattr(driver, "nvmlDeviceGetCount", lambda: released.wait(60) and 0, raising=False)
    before = set(threading.enumerate())
    try:
        found = hardware.detect()
        assert found.gpus == ()
        assert found.gpu_problem == "the NVIDIA driver did not answer within 0.2 s; reboot the machine"
    finally:
        ours = set(threading.enumerate()) - before
        released.set()
        for thread in ours:
            thread.join(5)


# Machines


def test_recorded_machines() -> None:
    assert set(machines.NAMES) == {
        *("1x4090", "2x4090", "t4", "a100-80gb", "h200", "gb10", "cpu-only", "apple-m3-max"),
    }


@pytest.mark.parametrize("name", machines.NAMES)
def test_a_machine_round_trips(name: str) -> None:
    machine = machines.load(name)
    text = (machines.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(json.dumps(dataclasses.asdict(machine))) == json.loads(text)


@pytest.mark.parametrize("name", machines.NAMES)
def test_recorded_machine_is_plausible(name: str) -> None:
    machine = machines.load(name)
    assert 1 <= machine.usable_cores <= machine.physical_cores
    assert 0 < machine.memory_available <= machine.memory_total
    assert (machine.driver is None) == (not machine.gpus)
    for gpu in machine.gpus:
        assert (gpu.memory_total is None) == (gpu.memory_free is None)
        assert (gpu.memory_free or 0) <= (gpu.memory_total or 0)
