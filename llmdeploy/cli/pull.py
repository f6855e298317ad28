"""`llmdeploy pull [MODEL]`."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.config import ENGINE_NAMES, Flags, Settings
from llmdeploy.errors import LlmdeployError, UsageError
from llmdeploy.models.reference import HubFile, HubRepo, ModelRef, parse, with_quant, with_revision
from llmdeploy.models.source import at
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmdeploy.models.requirements import RequiredFile
    from llmdeploy.service.pull import Pull, PullOrder

ALL = "all"
EPILOG = """Examples:

llmdeploy pull qwen2.5-vl:7b

llmdeploy pull qwen3:8b --engine all --dry-run

llmdeploy pull hf://Qwen/Qwen3-8B-GGUF:Q8_0 --dir ./models"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("pull", help=f"{summary} Continues an interrupted download.", epilog=EPILOG)(pull)


def pull(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A catalog name, a repository or an Ollama tag.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            "-e",
            metavar="ENGINE",
            help="The engine to fetch for; `all`: every engine that works here.",
            show_default=False,
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option("--quant", metavar="Q", help="The quantization, such as `Q8_0` or `awq`.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="The branch, tag or commit of the repository.", show_default=False),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="D", help="A folder for the files, instead of the shared cache.", show_default=False
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="The hub to fetch from: `huggingface` or `modelscope`.", show_default=False
        ),
    ] = None,
    mmproj: options.Mmproj = None,
    fit: Annotated[
        bool, typer.Option("--fit/--no-fit", help="Refuse a model that does not fit this machine's memory.")
    ] = True,
    lock: Annotated[bool, typer.Option("--lock", help="Write what is fetched into `llmdeploy.lock`.")] = False,
    locked: Annotated[bool, typer.Option("--locked", help="Fetch exactly what `llmdeploy.lock` lists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes; fetch nothing.")] = False,
    json: options.Json = False,
) -> None:
    settings = config.load({"engine": None if engine == ALL else engine, "source": source})
    settings = replace(settings, flags=Flags(mmproj and mmproj.absolute(), pinned=not lock))
    folder = directory and Path(os.path.expanduser(directory)).absolute()  # shells leave `~` in `--dir=~/x`
    if folder and folder.is_file():
        raise UsageError(f"`{directory}` is a file", "`--dir` takes a folder, which need not exist")
    if locked:
        _refuse_beside_locked({"--lock": lock, "--quant": quant, "--revision": revision, "--source": source})
        asked = _locked(model, engine, settings, folder)
    else:
        reference = _reference(settings.model if model is None else model, quant, revision, settings)
        asked = _asked(reference, ENGINE_NAMES if engine == ALL else (settings.engine,), settings, folder, lock)
    pulls = _carry_out(asked, _leave_out if engine == ALL else None, fit=fit, dry_run=dry_run)
    if lock and not dry_run:
        _write_lock(pulls)
    if json:
        out.document({"dry_run": dry_run, "pulls": [_document(one) for one in pulls]})
    elif dry_run:
        _show(pulls)
    else:
        for name in dict.fromkeys(one.serves_as for one in pulls):
            out.line(name)


def _reference(text: str, quant: str | None, revision: str | None, settings: Settings) -> ModelRef:
    reference = options.resolve_model(text)
    if quant is not None:
        reference = with_quant(reference, quant)
    if isinstance(reference, HubRepo | HubFile) and settings.source("source") == "--source":
        reference = at(reference, settings.hub)
    return reference if revision is None else with_revision(reference, revision)


def _asked(
    reference: ModelRef, engines: tuple[str, ...], settings: Settings, folder: Path | None, lock: bool
) -> list[PullOrder]:
    from llmdeploy.service.order import Order
    from llmdeploy.service.pull import PullOrder

    return [PullOrder(Order(reference, replace(settings, engine=name)), None, folder, lock) for name in engines]


def _locked(model: str | None, engine: str | None, settings: Settings, folder: Path | None) -> list[PullOrder]:
    from llmdeploy.models import lock
    from llmdeploy.service.order import Order
    from llmdeploy.service.pull import PullOrder

    pins = lock.named(None if model is None else str(parse(model)), () if engine in {None, ALL} else (settings.engine,))
    return [PullOrder(Order(parse(pin.model), replace(settings, engine=pin.engine)), pin, folder) for pin in pins]


def _refuse_beside_locked(options: dict[str, object]) -> None:
    """Raise UsageError for an option that would fetch something other than what is locked."""
    for name, value in options.items():
        if value:
            raise UsageError(f"`{name}` and `--locked` exclude each other", "leave one of them out")


def _carry_out(
    asked: list[PullOrder], left_out: Callable[[str, LlmdeployError], None] | None, *, fit: bool, dry_run: bool
) -> list[Pull]:
    from llmdeploy.cli.progress import Downloads
    from llmdeploy.service.events import Download, Note, Public, Wait
    from llmdeploy.service.pull import Pulls
    from llmdeploy.service.signals import interrupting

    def on_event(event: Public) -> None:
        match event:
            case Download(file=file, done=done, total=total):
                downloads.show(file, done, total)
            case Wait(phase=phase):
                out.note(f"still {phase}")
            case Note(text=text):
                out.note(text)
            case _:
                pass  # the first byte says more than the phases before it

    try:
        with interrupting(), Downloads() as downloads, Pulls(on_event, left_out) as pulls:
            ready = pulls.prepare(asked, start=not dry_run, fit=fit)
            for one in () if dry_run else ready:
                out.note(_words(one))
                one.fetch()
    except KeyboardInterrupt:
        out.note("interrupted: what was fetched is kept, and the same command continues")
        raise
    return ready


def _leave_out(engine: str, error: LlmdeployError) -> None:
    out.note(f"{engine} is left out: {error.message}")


def _words(pull: Pull) -> str:
    need = pull.need
    if need.unknown:
        return f"{pull.engine.name}: `{need.source}`, size unknown: {need.unknown}"
    if not need.missing:
        return f"{pull.engine.name}: `{need.source}` is here, {in_gib(need.size)}"
    part = f" of {in_gib(need.size)}" if need.missing < need.size else ""
    where = f" into `{need.folder}`" if need.folder else ""
    return f"{pull.engine.name}: `{need.source}`, {in_gib(need.missing)}{part} to fetch{where}"


def _write_lock(pulls: list[Pull]) -> None:
    from llmdeploy.models import lock

    lock.write(lock.with_pins(lock.read(), [one.pin for one in pulls]))
    out.note(f"added to `{lock.LOCK}`: `llmdeploy pull --locked` fetches exactly that")


def _document(pull: Pull) -> dict[str, Any]:
    need, plan = pull.need, pull.plan
    return {
        "engine": pull.engine.name,
        "model": str(pull.order.model),
        "serve": pull.serves_as,
        "source": need.source,
        "revision": need.revision,
        "folder": need.folder and str(need.folder),
        "files": [asdict(file) for file in need.files],
        "bytes": need.size,
        "missing_bytes": need.missing,
        "free_bytes": need.free(),
        "needed_memory_bytes": plan and plan.needed_bytes,
        "free_memory_bytes": plan and plan.available and plan.available.bytes,
    }


def _show(pulls: list[Pull]) -> None:
    """Print files and sizes on stdout, and free disk and memory on stderr."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading in ("ENGINE", "SIZE", "HERE"):
        table.add_column(heading, no_wrap=True)
    table.add_column("FILE", overflow="fold")
    files = [(one.engine.name, file) for one in pulls for file in one.need.files]
    out.table(table, [(engine, in_gib(file.size), _here(file), file.name) for engine, file in files])
    for one in pulls:
        out.note(_words(one))
        if (free := one.need.free()) is not None:
            out.note(f"  disk    {in_gib(free)} free")
        if one.plan is not None and one.plan.available is not None:
            out.note(f"  memory  {in_gib(one.plan.needed_bytes)} of {in_gib(one.plan.available.bytes)} free")


def _here(file: RequiredFile) -> str:
    """Return how much of a file is on this machine, in words."""
    return "all" if not file.missing else in_gib(file.here) if file.here else "-"
