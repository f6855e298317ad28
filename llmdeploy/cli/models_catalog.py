"""`llmdeploy models catalog`."""

from __future__ import annotations

from llmdeploy.cli import options
from llmdeploy.cli.output import out


def catalog(json: options.Json = False) -> None:
    from llmdeploy.models import catalog

    entries = catalog.load().values()
    if json:
        out.document({"models": [{"name": it.name, "capabilities": list(it.capabilities)} for it in entries]})
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        out.line(f"{entry.name:<{width}}  {', '.join(entry.capabilities)}{'  (yours)' if entry.own else ''}")
    out.hint("`llmdeploy models show NAME` tells what each engine would get of one, from where, how large")
