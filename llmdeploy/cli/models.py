"""`llmdeploy models`."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import typer

from llmdeploy.cli import options
from llmdeploy.cli.output import out

if TYPE_CHECKING:
    from llmdeploy.engines.base import Engine
    from llmdeploy.models.catalog import CatalogEntry
    from llmdeploy.models.gguf import GgufModel

EPILOG = """Examples:

llmdeploy models

llmdeploy models --json"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("models", help=summary, epilog=EPILOG)(models)


def models(json: options.Json = False) -> None:
    from llmdeploy import config, engines
    from llmdeploy.models import catalog

    settings = config.load()
    llamacpp = engines.get("llamacpp", settings)
    rows = [_row(entry, llamacpp) for entry in catalog.load().values()]
    if json:
        out.document({"models": rows})
    else:
        _show(rows)


def _row(entry: CatalogEntry, llamacpp: Engine[GgufModel]) -> dict[str, Any]:
    from llmdeploy.models.reference import CatalogName
    from llmdeploy.paths import selftest_dir

    artefact = llamacpp.artefact(CatalogName(entry.name))
    return {
        "name": entry.name,
        "capabilities": list(entry.capabilities),
        "context": entry.context,
        "license": entry.license,
        "engines": {
            "llamacpp": {
                "artefact": [str(file) for file in artefact.files],
                "bytes": entry.gguf.bytes + entry.gguf.mmproj_bytes,
                "here": llamacpp.present(artefact),
            },
            "ollama": {"artefact": entry.ollama or [str(file) for file in artefact.files]},
            "vllm": {"artefact": entry.hub or str(selftest_dir() / "hf")},
        },
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from llmdeploy.plan import in_gib

    gap = 2 if get_terminal_size().columns >= 50 else 1
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="")
    for heading in ("NAME", "TAKES", "CONTEXT", "SIZE", "HERE"):
        # Words may be folded on a narrow terminal; a name or a number that is broken misleads.
        table.add_column(heading, no_wrap=heading != "TAKES", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            ", ".join(row["capabilities"]),
            str(row["context"]),
            in_gib(row["engines"]["llamacpp"]["bytes"]),
            "yes" if row["engines"]["llamacpp"]["here"] else "no",
        )
    out.table(table)
    out.hint(
        "`llmdeploy serve NAME` serves one, and fetches it first where it is not here; a path of a GGUF file works too"
    )
