"""`llmdeploy models`."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from llmdeploy.cli.output import out

if TYPE_CHECKING:
    from llmdeploy.models.catalog_entry import CatalogEntry


def list_(json: bool) -> None:
    from llmdeploy import config
    from llmdeploy.models import catalog

    config.load()
    rows = [_row(entry) for entry in catalog.load().values()]
    if json:
        out.document({"models": rows})
    else:
        _show(rows)


def _row(entry: CatalogEntry) -> dict[str, Any]:
    from llmdeploy.cli.models_show import document

    return document(entry.name)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from llmdeploy.plan import in_gib

    gap = 2 if get_terminal_size().columns >= 50 else 1
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="")
    for heading in ("NAME", "TAKES", "CONTEXT", "SIZE", "HERE"):
        # Words may be folded on a narrow terminal; a name or a number that is broken misleads.
        table.add_column(heading, no_wrap=heading != "TAKES", overflow="fold")
    for row in rows:
        here = any(engine["here"] for engine in row["engines"].values())
        size = row["engines"]["llamacpp"]["bytes"] or row["engines"]["vllm"]["bytes"]
        takes = ", ".join(row["capabilities"])
        table.add_row(row["name"], takes, str(row["context"]), in_gib(size), "yes" if here else "no")
    out.table(table)
    out.hint(
        "`llmdeploy serve NAME` serves one, and fetches it first where it is not here; a path of a GGUF file works too"
    )
