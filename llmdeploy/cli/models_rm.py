"""`llmdeploy models rm`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.errors import LlmdeployError
from llmdeploy.models.reference import OllamaTag
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmdeploy.models.store import Store
    from llmdeploy.models.stores.installed import InstalledModel

EPILOG = """Examples:

llmdeploy models rm hf://Qwen/Qwen3-8B-GGUF:Q4_K_M

llmdeploy models rm ollama://qwen3:8b --dry-run"""
SUMMARY = "Remove models from this machine, after showing what goes."


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models, as `llmdeploy models` lists them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    json: options.Json = False,
) -> None:
    from llmdeploy.models import removal, store

    settings = config.load()
    found = store.scan(settings.ollama.models)
    going = _chosen(found, names)
    removal.require_at_rest(going)
    _require_idle(found, going)
    freed = found.freed(*going)
    if dry_run:
        _tell(found, going, freed, as_json=json, dry_run=True)
        return
    for line in _described(found, going, freed):
        out.note(line)
    if not yes and not out.ask("remove it?"):
        out.note("nothing was removed")
        raise typer.Exit(1)
    _remove(found, going)
    _tell(found, going, freed, as_json=json, dry_run=False)


def _chosen(found: Store, names: Sequence[str]) -> list[InstalledModel]:
    """Find the models of these names, each once. If none of a name can be removed, raise the reason."""
    from llmdeploy.models import removal

    going: dict[int, InstalledModel] = {}
    for name in names:
        models = found.named(name)
        refusals = {id(model): removal.refusal(model) for model in models}
        ours = [model for model in models if not refusals[id(model)]]
        for model in models:
            if error := refusals[id(model)]:
                if not ours:
                    raise error
                out.note(f"left alone: {error.message}")
        going |= {id(model): model for model in ours}
    return list(going.values())


def _require_idle(found: Store, going: Sequence[InstalledModel]) -> None:
    """Raise LlmdeployError if the running service, or one that starts, uses files of these models."""
    from llmdeploy.engines import registry
    from llmdeploy.models import removal
    from llmdeploy.models.stores.installed import PLACE_OLLAMA
    from llmdeploy.models.weights import OLLAMA
    from llmdeploy.service import state

    situation = state.observe()
    record = situation.record
    if record is None or situation.state not in {"starting", "ready"}:
        return
    models = [record.model, *([str(record.switch["model"])] if record.switch and record.switch.get("model") else [])]
    served = {os.path.realpath(str(file.get("path"))) for file in (record.receipt or {}).get("files") or ()}
    gone = {os.path.realpath(file) for file in removal.going_files(found, going)} & served
    for model in going:
        held = {os.path.realpath(file) for file in model.files}
        unknown = record.receipt is None or record.switch is not None
        by_name = unknown or (model.place == PLACE_OLLAMA and record.engine in registry.running(OLLAMA))
        if held & gone or (by_name and any(_means(found, name, model) for name in models)):
            raise LlmdeployError(f"`{model.reference}` is served now", "`llmdeploy stop` ends that", code="not_removed")


def _means(found: Store, name: str, model: InstalledModel) -> bool:
    try:
        return model in found.named(name)
    except LlmdeployError:
        return False


def _remove(found: Store, going: Sequence[InstalledModel]) -> None:
    from llmdeploy.models import removal

    tags = {it.reference.name: it.revisions[0] for it in going if isinstance(it.reference, OllamaTag)}
    if tags:
        from llmdeploy.engines.ollama.removal import daemon_with

        daemon = daemon_with(config.load(), tags)
        for name in tags:
            daemon.delete(name)
    removal.remove(found, going)


def _described(found: Store, going: Sequence[InstalledModel], freed: int) -> list[str]:
    lines = []
    for model in going:
        lines.append(f"`{model.reference}`, {in_gib(model.size + model.unfinished)}, in `{model.root}`")
        lines += [f"  {_within(file, model.root)}" for file in _files(found, going, model)]
    shared = "" if freed else ": other models, or other names on the disk, have these files too"
    return [*lines, f"frees {in_gib(freed)}{shared}"]


def _files(found: Store, going: Sequence[InstalledModel], model: InstalledModel) -> list[Path]:
    """List the files of `model` that would be removed."""
    from llmdeploy.models import removal

    gone = set(removal.going_files(found, going))
    return [file for file in (*model.files, *model.parts) if file in gone or file in model.parts]


def _within(file: Path, root: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def _tell(found: Store, going: Sequence[InstalledModel], freed: int, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        removed = [
            {
                "name": str(model.reference),
                "place": model.place,
                "files": [str(file) for file in _files(found, going, model)],
            }
            for model in going
        ]
        out.document({"dry_run": dry_run, "removed": removed, "freed_bytes": freed})
    elif dry_run:
        for line in _described(found, going, freed):
            out.line(line)
    else:
        out.note(f"removed, {in_gib(freed)} freed")
