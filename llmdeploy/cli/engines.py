"""`llmdeploy engines list|install|remove`."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import harmless, out
from llmdeploy.config import ENGINE_NAMES
from llmdeploy.errors import InstallFailed, UsageError
from llmdeploy.text import plain

if TYPE_CHECKING:
    from llmdeploy.engines.base import EngineStatus
    from llmdeploy.engines.vllm.environment import Environment
    from llmdeploy.engines.vllm.install import Installation

EPILOG = """Examples:

llmdeploy engines list

llmdeploy engines install vllm

llmdeploy engines install vllm --cpu --dry-run"""

EngineName = Annotated[str, typer.Argument(metavar="ENGINE", help="The engine: `vllm`.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def register(app: typer.Typer, summary: str) -> None:
    group = typer.Typer(help=summary, epilog=EPILOG)
    group.command("list", help="Show each engine: whether it can be used, its version, where it is.")(list_)
    group.command("install", help="Install vLLM into an environment of its own.", epilog=EPILOG)(install)
    group.command("remove", help="Remove what `install` made.")(remove)
    app.add_typer(group, name="engines", no_args_is_help=True)


def list_(json: options.Json = False) -> None:
    from llmdeploy.engines import registry

    found = {engine.name: engine.status() for engine in registry.every(config.load())}
    if json:
        out.document({"engines": [{"name": name, **asdict(it)} for name, it in found.items()]})
    else:
        _show(found)


def install(
    engine: EngineName,
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The version; left out, one that is tested.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="The build for CPUs, which needs no GPU.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    yes: Yes = False,
    json: options.Json = False,
) -> None:
    _require_vllm(engine, "install")
    from llmdeploy.engines.vllm import install as vllm

    plan = vllm.plan(version, cpu=cpu)
    if dry_run:
        _dry_run(plan, as_json=json)
        return
    if found := vllm.here(plan):
        out.note(f"vLLM {plan.version} is installed already")
        _tell(found, as_json=json)
        return
    vllm.require_space(plan)
    for line in _described(plan):
        out.note(line)
    _warn(plan)
    if not yes and not out.ask("install it?"):
        out.note("nothing was installed")
        raise typer.Exit(1)
    _tell(_carry_out(plan), as_json=json)


def remove(engine: EngineName, yes: Yes = False, json: options.Json = False) -> None:
    _require_vllm(engine, "remove")
    from llmdeploy.engines.vllm import install as vllm
    from llmdeploy.units import in_gib

    folders = vllm.every()
    freed = 0
    if folders:
        _require_idle()
        for folder in folders:
            out.note(f"`{folder}`, {in_gib(vllm.size(folder))}")
        if not yes and not out.ask("remove it?"):
            out.note("nothing was removed")
            raise typer.Exit(1)
        freed = vllm.remove()
    if json:
        out.document({"removed": [str(folder) for folder in folders], "bytes": freed})
    else:
        out.note(f"removed, {in_gib(freed)} freed" if folders else "llmdeploy has installed no vLLM")


def _require_vllm(engine: str, verb: str) -> None:
    """Raises UsageError and InstallFailed: the other engines are not installed by llmdeploy."""
    if engine == "vllm":
        return
    if engine not in ENGINE_NAMES:
        raise UsageError(f"no engine is called `{plain(engine)}`", "`llmdeploy engines list` shows them")
    if engine == "ollama":
        from llmdeploy.engines.ollama.hints import hints

        how = f"get it: {hints(sys.platform)['get']}"
    else:
        how = "it comes with llmdeploy: `pip install xllamacpp`, or put a `llama-server` on PATH"
    raise InstallFailed(f"llmdeploy does not {verb} {engine}", how if verb == "install" else "remove it as you got it")


def _require_idle() -> None:
    """What serves now must keep its files. Raises InstallFailed."""
    from llmdeploy.service import state

    situation = state.observe()
    if situation.record and situation.record.engine == "vllm" and situation.state in {"starting", "ready"}:
        raise InstallFailed(f"vLLM serves `{situation.record.served_name}` now", "`llmdeploy stop` ends it")


# On screen


def _show(found: dict[str, EngineStatus]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading in ("NAME", "STATUS", "VERSION"):
        table.add_column(heading, no_wrap=True)
    table.add_column("WHERE", overflow="fold")
    for name, it in found.items():
        words = "usable" if it.usable else "not usable" if it.installed else "not installed"
        table.add_row(name, words, it.version or "-", harmless(it.detail))
    out.table(table)
    for name, it in found.items():
        if it.hint:
            out.hint(f"{name}: {it.hint}")


def _described(plan: Installation) -> list[str]:
    from llmdeploy.units import in_gib

    return [
        f"vLLM {plan.version}, its build for {'CPUs' if plan.cpu else 'NVIDIA GPUs'}, with {plan.tool}",
        f"  into      `{plan.folder}`",
        f"  python    `{plan.python}`",
        f"  download  {in_gib(plan.size.download)}",
        f"  on disk   {in_gib(plan.size.disk)}, as of {plan.size.source}",
        *(f"  {step.name}: `{shlex.join(step.argv)}`" for step in plan.steps),
    ]


def _dry_run(plan: Installation, *, as_json: bool) -> None:
    _warn(plan)
    if as_json:
        out.document({**asdict(plan), "folder": str(plan.folder)})
        return
    for line in _described(plan):
        out.line(line)


def _warn(plan: Installation) -> None:
    from llmdeploy import hardware
    from llmdeploy.engines.vllm import install as vllm

    if not plan.cpu and (warning := vllm.warning(plan, hardware.detect())):
        out.warn(warning)


def _carry_out(plan: Installation) -> Environment:
    from llmdeploy.engines.vllm import install as vllm
    from llmdeploy.service.signals import interrupting

    began, last = time.monotonic(), ""

    def on_progress(step: str, news: str) -> None:
        nonlocal last
        still = "still " if step == last and not news else ""
        last = step
        at = " " * 9 if news else f"[{time.monotonic() - began:5.1f} s]"
        out.note(f"{at} {news or still + step}")

    with interrupting():
        try:
            made = vllm.carry_out(plan, on_progress)
        except KeyboardInterrupt:
            out.note("interrupted: nothing of it is left")
            raise
    out.note(f"[{time.monotonic() - began:5.1f} s] vLLM {made.version} is installed", "green")
    return made


def _tell(made: Environment, *, as_json: bool) -> None:
    """The answer is the Python that has vLLM; what comes before it is told."""
    if as_json:
        out.document({"version": made.version, "python": made.python})
    else:
        out.line(made.python)
    from llmdeploy.engines.vllm import environment

    first = environment.look(config.load()).environment
    if first and first.python != made.python:
        out.warn(f"`{first.python}` ({first.origin}) comes first")
