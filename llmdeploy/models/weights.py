"""Weights: the files of one model in the form that an engine loads, here or still at their source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.source import OnProgress

Format = Literal["gguf", "hf", "ollama", "mlx"]
"""The form of a model's files: GGUF, Hugging Face form (safetensors), a model of Ollama's registry, MLX."""

GGUF: Format = "gguf"
HF: Format = "hf"
OLLAMA: Format = "ollama"
MLX: Format = "mlx"


class Weights(Protocol):
    """One model for one engine. `str()` of it names it for people."""

    @property
    def format(self) -> Format: ...

    @property
    def reused_from(self) -> str:
        """A sentence on the files of another program that spare a download; empty when nothing is reused."""
        ...

    def references(self) -> tuple[str, ...]:
        """Return what can be typed to name it: the weights, then the vision projector."""
        ...

    def is_present(self) -> bool:
        """Return whether all files are where the engine finds them. Asks at most the engine's own daemon."""
        ...

    def requirements(self, folder: Path | None = None) -> Requirements:
        """Return the files, and how much of each is missing. Asks the source unless all files are here.

        `folder`: where the files are to go, instead of the source's cache. Raises DownloadFailed, ModelNotFound.
        """
        ...

    def download(self, on_progress: OnProgress, folder: Path | None = None) -> None:
        """Download the missing files, once the disk has room for all of them. Raises DownloadFailed."""
        ...

    def facts(self) -> ModelFacts:
        """Return sizes and shapes, read from the headers here or at the source. Raises ModelInvalid, DownloadFailed."""
        ...

    def local_files(self) -> tuple[Path, ...]:
        """Return the files on this machine; empty unless all are present and their place is known."""
        ...

    def revision(self) -> str | None:
        """Return the commit of the repository or the digest at Ollama; None for the user's own files."""
        ...
