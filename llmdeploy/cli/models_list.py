"""`llmdeploy models`: the models on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmdeploy import config
from llmdeploy.cli.output import columns, one_line, out
from llmdeploy.engines import registry
from llmdeploy.models.stores.installed import PLACE_OLLAMA
from llmdeploy.models.weights import GGUF, HF
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from llmdeploy.models.store import Store
    from llmdeploy.models.stores.installed import InstalledModel

HEADINGS = ("NAME", "SIZE", "ENGINES", "PLACE", "LAST USED")
PLACES = {"hub": "Hub", "modelscope": "ModelScope", PLACE_OLLAMA: "Ollama", "folder": "folder", "lmstudio": "LM Studio"}
OURS = ".llmdeploy.incomplete"
"""Suffix of the partial files that `pull` continues; other partial files were left by other programs."""


def show() -> None:
    """Print the models as a table, or with a few lines for each if the terminal is too narrow."""
    from llmdeploy.models import store

    found = store.scan(config.load().ollama.models)
    rows = [_row(model) for model in _sorted(found)]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > columns():
        for name, size, engines, place, used in rows:
            for line in (name, f"  {size}, {place}, {used}", f"  {engines}"):
                out.line(line)
    else:
        for row in (HEADINGS, *rows):
            out.line("  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip())
    _tell(found)


def stored() -> dict[str, Any]:
    """Return the models on this machine for `--json`. Fields are only ever added."""
    from llmdeploy.models import store
    from llmdeploy.models.stores.installed import total_bytes

    found = store.scan(config.load().ollama.models)
    return {
        "stored": [document(found, model) for model in _sorted(found)],
        "stored_bytes": total_bytes(found.models),
        "notes": list(found.notes),
    }


def document(found: Store, model: InstalledModel) -> dict[str, Any]:
    """Return the JSON document of one model."""
    used = datetime.fromtimestamp(model.last_used, UTC).isoformat(timespec="seconds") if model.last_used else None
    return {
        "name": str(model.reference),
        "place": model.place,
        "root": str(model.root),
        "files": [str(file) for file in model.files],
        "bytes": model.size,
        "frees_bytes": found.freed(model),
        "engines": list(registry.running(*model.formats)),
        "last_used": used,
        "revisions": list(model.revisions),
        "unfinished_bytes": model.unfinished,
        "detail": model.detail,
    }


def _sorted(found: Store) -> list[InstalledModel]:
    """Sort by place and name; models that have only partial files come last."""
    places = list(PLACES)
    return sorted(found.models, key=lambda it: (not it.files, places.index(it.place), str(it.reference)))


def _row(model: InstalledModel) -> tuple[str, ...]:
    engines = ", ".join(registry.running(*model.formats)) or ("none" if model.files else "unfinished")
    size = in_gib(model.size if model.files else model.unfinished)
    return (one_line(str(model.reference)), size, engines, PLACES[model.place], _ago(model.last_used))


def _ago(seconds: float) -> str:
    days = (datetime.now(UTC) - datetime.fromtimestamp(seconds, UTC)).days
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"


def _pull(model: InstalledModel) -> str:
    """Return the command that continues a download, for an engine that runs the model's format.

    Without a complete file, a GGUF repository is recognised by its name.
    """
    gguf = GGUF in model.formats or "gguf" in str(model.reference).lower()
    return f"llmdeploy pull {model.reference}{'' if gguf else f' --engine {registry.running(HF)[0]}'}"


def _tell(found: Store) -> None:
    from llmdeploy.models.stores.installed import total_bytes

    out.note(f"{in_gib(total_bytes(found.models))} in all")
    for model in found.models:
        if not model.parts:
            continue
        ours = any(part.name.endswith(OURS) for part in model.parts) or model.place == "folder"
        way = f"`{_pull(model)}` continues it, " if ours and model.place != "folder" else ""
        left = replace(model, files=())
        out.note(
            f"`{model.reference}` has {in_gib(left.unfinished)} of an unfinished download: "
            f"{way}`llmdeploy models rm {model.reference}` frees it"
        )
    for note in found.notes:
        out.note(note)
    out.hint("`llmdeploy serve NAME` serves one of them; `llmdeploy models catalog` lists models to download")
