"""Options that several commands share, with the same help and the same meaning, and the MODEL argument."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdeploy.cli.output import out

if TYPE_CHECKING:
    from llmdeploy.models.reference import ModelRef

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

Engine = Annotated[
    str | None,
    typer.Option("--engine", "-e", metavar="ENGINE", help="The engine to run the model on.", show_default=False),
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="The address to listen on; any but a loopback address needs an API key.",
        show_default=False,
    ),
]
Port = Annotated[
    int | None, typer.Option(min=1, max=65535, metavar="PORT", help="The port of the address.", show_default=False)
]
Context = Annotated[
    int | None,
    typer.Option(
        min=256,
        max=100_000_000,
        metavar="TOKENS",
        help="Tokens that one request may use, prompt and answer together.",
        show_default=False,
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(min=1, max=256, metavar="N", help="Requests answered at the same time.", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="CPU threads (llama.cpp).", show_default=False)
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        min=-1, max=9999, metavar="N", help="Layers on the GPU (llama.cpp); -1: as many as fit.", show_default=False
    ),
]
Mmproj = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The vision projector of a GGUF file, if it is in another folder.", show_default=False
    ),
]
AllowCloud = Annotated[
    bool, typer.Option("--allow-cloud", help="Allow models that run in Ollama's cloud: prompts leave this machine.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Let vLLM run Python files that come with the model."),
]
Repair = Annotated[
    bool, typer.Option("--repair/--no-repair", help="Retry a failed start with the value that the engine asks for.")
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.001, metavar="SECONDS", help="How long to wait before giving up.", show_default=False),
]


def resolve_model(text: str) -> ModelRef:
    """Parse a model name as typed; say so when the catalog knows it by another name. Raises UsageError, ConfigError."""
    from llmdeploy.models.reference import CatalogName, parse

    reference = parse(text)
    if isinstance(reference, CatalogName):
        from llmdeploy.models.catalog import lookup

        entry = lookup.get(reference.name)
        if entry is not None and str(entry) != reference.name:
            out.note(f"`{reference.name}` is `{entry}`")
    return reference


def deployment_flags(
    engine: str | None,
    context: int | None,
    parallel: int | None,
    threads: int | None,
    gpu_layers: int | None,
    timeout: float | None,
) -> dict[str, Any]:
    """Return the options of a deployment by the names of their keys in the configuration."""
    return {
        "engine": engine,
        "context": context,
        "parallel": parallel,
        "timeout": timeout,
        "engines.llamacpp.threads": threads,
        "engines.llamacpp.gpu_layers": gpu_layers,
    }
