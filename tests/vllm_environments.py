"""Python environments for the tests, with fake packages in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEVER = "raise ImportError('it must not be imported')\n"

TORCH_VERSION = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = {version!r}
debug = False
cuda: Optional[str] = {cuda!r}
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = {hip!r}
rocm: Optional[str] = None
xpu: Optional[str] = None
"""


def bare(folder: Path) -> Path:
    """Create an empty environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def packages(python: Path) -> Path:
    """Return the package folder of an environment."""
    return next(python.parents[1].glob("lib/python3.*/site-packages"))


def lay(
    python: Path,
    *,
    name: str = "vllm",
    version: str = "0.32.0",
    requires: str = ">=3.11,<3.15",
    torch: str | None = "2.13.0+cu130",
    cuda: str | None = "13.0",
    hip: str | None = None,
    code: bool = True,
) -> Path:
    """Put a vLLM into an environment, as an installation would. Importing it fails."""
    folder = packages(python)
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
    (information / "METADATA").write_text(metadata + (f"Requires-Python: {requires}\n" if requires else ""))
    if code:
        (folder / "vllm").mkdir()
        (folder / "vllm" / "__init__.py").write_text(NEVER)
    if torch:
        (folder / "torch").mkdir()
        (folder / "torch" / "__init__.py").write_text(NEVER)
        (folder / "torch" / "version.py").write_text(TORCH_VERSION.format(version=torch, cuda=cuda, hip=hip))
    return python


def with_vllm(folder: Path, **what: object) -> Path:
    """Create an environment with a vLLM; return its Python."""
    return lay(bare(folder), **what)  # type: ignore[arg-type]
