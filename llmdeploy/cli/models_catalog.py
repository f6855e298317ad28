"""`llmdeploy models catalog`."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Any

from llmdeploy.cli import options
from llmdeploy.cli.output import out


def catalog(json: options.Json = False) -> None:
    if json:
        out.document({"models": rows()})
        return
    from rich.table import Table

    from llmdeploy.units import in_gib

    table = Table(box=None, pad_edge=False, padding=(0, 2 if get_terminal_size().columns >= 50 else 1, 0, 0))
    for heading in ("NAME", "TAKES", "CONTEXT", "SIZE", "HERE"):
        # Words may be folded on a narrow terminal; a name or a number that is broken misleads.
        table.add_column(heading, no_wrap=heading != "TAKES", overflow="fold", header_style="")
    for row in rows():
        here = any(engine["here"] for engine in row["engines"].values())
        size = row["engines"]["llamacpp"]["bytes"] or row["engines"]["vllm"]["bytes"]
        takes = ", ".join(row["capabilities"])
        table.add_row(row["name"], takes, str(row["context"]), in_gib(size), "yes" if here else "no")
    out.table(table)
    out.hint("`llmdeploy models show NAME` tells what each engine would get of one, from where, how large")


def rows() -> list[dict[str, Any]]:
    """One document for each model."""
    from llmdeploy.cli.models_show import document
    from llmdeploy.models import catalog

    return [document(name) for name in catalog.names()]
