"""`llmdeploy models catalog`."""

from __future__ import annotations

from typing import Any

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import columns, out


def catalog(json: options.Json = False) -> None:
    if json:
        out.document({"models": rows()})
        return
    from rich.table import Table

    from llmdeploy.units import in_gib

    width = columns()
    narrow = width < 70
    table = Table(box=None, pad_edge=False, padding=(0, 2 if width >= 50 else 1, 0, 0), header_style="")
    for heading in ("NAME", "SIZE", "HERE") if narrow else ("NAME", "TAKES", "CONTEXT", "SIZE", "HERE"):
        # Words may be wrapped on a narrow terminal; a broken name or number would mislead.
        table.add_column(heading, no_wrap=heading != "TAKES", overflow="fold")
    shown = []
    for row in rows():
        here = "yes" if any(engine["here"] for engine in row["engines"].values()) else "no"
        size = next((in_gib(it["bytes"]) for it in row["engines"].values() if it["bytes"]), "-")
        takes = [] if narrow else [", ".join(row["capabilities"]), str(row["context"] or "-")]
        shown.append((row["name"], *takes, size, here))
    out.table(table, shown)
    out.hint("`llmdeploy models show NAME` shows what each engine would load, from where, and how large it is")


def rows() -> list[dict[str, Any]]:
    """Return one JSON document for each model."""
    from llmdeploy.cli.models_show import document
    from llmdeploy.engines import registry
    from llmdeploy.models.catalog import lookup

    engines = registry.every(config.load())
    return [document(name, engines) for name in lookup.names()]
