"""`llmdeploy models`."""

from __future__ import annotations

from typing import Any

import typer

from llmdeploy.cli import options
from llmdeploy.cli.output import out

EPILOG = """Examples:

llmdeploy models

llmdeploy models --json"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("models", help=summary, epilog=EPILOG)(models)


def models(json: options.Json = False) -> None:
    from llmdeploy.models import catalog

    rows = [_row(entry) for entry in catalog.load().values()]
    if json:
        out.document({"models": rows})
    else:
        _show(rows)


def _row(entry: Any) -> dict[str, Any]:
    from llmdeploy import config, engines
    from llmdeploy.models.reference import CatalogName

    engine = engines.get("llamacpp", config.load())
    artefact = engine.artefact(CatalogName(entry.name))
    return {
        "name": entry.name,
        "capabilities": list(entry.capabilities),
        "context": entry.context,
        "license": entry.license,
        "bytes": entry.gguf.bytes + entry.gguf.mmproj_bytes,
        "here": engine.present(artefact),
        "llamacpp": [str(file) for file in artefact.files],
        "ollama": entry.ollama,
        "vllm": entry.hub,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from llmdeploy.plan import in_gib

    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("NAME", no_wrap=True)
    for heading in ("TAKES", "CONTEXT", "SIZE", "HERE", "LICENSE"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            ", ".join(row["capabilities"]),
            str(row["context"]),
            in_gib(row["bytes"]),
            "yes" if row["here"] else "no",
            row["license"],
        )
    out.table(table)
    out.hint(
        "`llmdeploy serve NAME` serves one, and fetches it first where it is not here; a path of a GGUF file works too"
    )
