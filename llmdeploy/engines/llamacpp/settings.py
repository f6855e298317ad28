"""The settings of llama.cpp: the table `engines.llamacpp` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from llmdeploy.config_types import Program, Whole, setting


@dataclass(frozen=True)
class LlamaCppSettings:
    threads: int | None = setting(Whole(1, 1024), None, "the CPU threads of llama.cpp (none: the plan chooses)")
    gpu_layers: int | None = setting(
        Whole(-1, 9999), None, "the layers on the GPU, -1 for all that fit (none: the plan chooses)"
    )
    server: str | None = setting(
        Program(), None, "the path of a `llama-server` program (none: one on PATH, or the embedded one)"
    )
