"""`llmdeploy models`: what is on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmdeploy import config
from llmdeploy.cli.output import columns, harmless, out
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from llmdeploy.models.store import Store
    from llmdeploy.models.stores.installed import InstalledModel

HEADINGS = ("NAME", "SIZE", "ENGINES", "PLACE", "LAST USED")
PLACES = {"hub": "Hub", "modelscope": "ModelScope", "ollama": "Ollama", "folder": "folder", "lmstudio": "LM Studio"}
OURS = ".llmdeploy.incomplete"
"""The end of a part that `pull` goes on with; others are left by other programs."""


def show() -> None:
    """Print what is here as a table, or where that is too wide as a few lines each."""
    from llmdeploy.models import store

    found = store.scan(config.load().ollama.models)
    rows = [_row(model) for model in _sorted(found)]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > columns():
        for name, size, engines, place, used in rows:
            out.line(f"{name}\n  {size}, {place}, {used}\n  {engines}")
    else:
        for row in (HEADINGS, *rows):
            out.line("  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip())
    _tell(found)


def stored() -> dict[str, Any]:
    """The same for `--json`: fields are only ever added."""
    from llmdeploy.models import store
    from llmdeploy.models.stores.installed import total

    found = store.scan(config.load().ollama.models)
    return {
        "stored": [document(found, model) for model in _sorted(found)],
        "stored_bytes": total(found.held),
        "notes": list(found.notes),
    }


def document(found: Store, model: InstalledModel) -> dict[str, Any]:
    """One model of it."""
    used = datetime.fromtimestamp(model.last_used, UTC).isoformat(timespec="seconds") if model.last_used else None
    return {
        "name": str(model.reference),
        "place": model.place,
        "root": str(model.root),
        "files": [str(file) for file in model.files],
        "bytes": model.size,
        "frees_bytes": found.freed(model),
        "engines": list(model.engines),
        "last_used": used,
        "revisions": list(model.revisions),
        "unfinished_bytes": model.unfinished,
        "detail": model.detail,
    }


def _sorted(found: Store) -> list[InstalledModel]:
    """By place, then by name; what has nothing but parts of a download last."""
    places = list(PLACES)
    return sorted(found.held, key=lambda it: (not it.files, places.index(it.place), str(it.reference)))


def _row(model: InstalledModel) -> tuple[str, ...]:
    engines = ", ".join(model.engines) or ("none" if model.files else "unfinished")
    size = in_gib(model.size if model.files else model.unfinished)
    return (harmless(str(model.reference)), size, engines, PLACES[model.place], _ago(model.last_used))


def _ago(seconds: float) -> str:
    days = (datetime.now(UTC) - datetime.fromtimestamp(seconds, UTC)).days
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"


def _pull(model: InstalledModel) -> str:
    """The command that fetches it, for an engine that runs its form: GGUF files tell so in their repository's name."""
    gguf = "llamacpp" in model.engines or "gguf" in str(model.reference).lower()
    return f"llmdeploy pull {model.reference}{'' if gguf else ' --engine vllm'}"


def _tell(found: Store) -> None:
    from llmdeploy.models.stores.installed import total

    out.note(f"{in_gib(total(found.held))} in all")
    for model in found.held:
        if not model.parts:
            continue
        ours = any(part.name.endswith(OURS) for part in model.parts) or model.place == "folder"
        way = f"`{_pull(model)}` goes on with it, " if ours and model.place != "folder" else ""
        left = replace(model, files=())
        out.note(
            f"`{model.reference}` has {in_gib(left.unfinished)} of an unfinished download: "
            f"{way}`llmdeploy models rm {model.reference}` frees it"
        )
    for note in found.notes:
        out.note(note)
    out.hint(
        "`llmdeploy serve NAME` serves one of them; `llmdeploy models catalog` lists the names that can be fetched"
    )
