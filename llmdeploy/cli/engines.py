"""`llmdeploy engines list|install|remove`."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.config import ENGINE_NAMES
from llmdeploy.errors import InstallFailed, UsageError
from llmdeploy.text import plain

if TYPE_CHECKING:
    from llmdeploy.engines.base import EngineStatus
    from llmdeploy.engines.python_environment.contents import Environment
    from llmdeploy.engines.python_environment.install import Installation
    from llmdeploy.engines.python_environment.program import PythonProgram

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
    _require_installable(engine, "install")
    from llmdeploy.engines import registry
    from llmdeploy.engines.python_environment import install as installer

    program = registry.python_program(engine)
    plan = installer.plan(program, version, cpu=cpu)
    if dry_run:
        _dry_run(program, plan, as_json=json)
        return
    if found := installer.here(program, plan):
        out.note(f"{program.label} {plan.version} is installed already")
        _show_result(program, found, as_json=json)
        return
    installer.require_space(program, plan)
    for line in _described(program, plan):
        out.note(line)
    _warn(program, plan)
    if not yes and not out.ask("install it?"):
        out.note("nothing was installed")
        raise typer.Exit(1)
    _show_result(program, _carry_out(program, plan), as_json=json)


def remove(engine: EngineName, yes: Yes = False, json: options.Json = False) -> None:
    _require_installable(engine, "remove")
    from llmdeploy.engines import registry
    from llmdeploy.engines.python_environment import install as installer
    from llmdeploy.units import in_gib

    program = registry.python_program(engine)
    folders = installer.every(program)
    freed = 0
    if folders:
        _require_idle(engine)
        for folder in folders:
            out.note(f"`{folder}`, {in_gib(installer.size(folder))}")
        if not yes and not out.ask("remove it?"):
            out.note("nothing was removed")
            raise typer.Exit(1)
        freed = installer.remove(program)
    if json:
        out.document({"removed": [str(folder) for folder in folders], "bytes": freed})
    else:
        out.note(f"removed, {in_gib(freed)} freed" if folders else f"llmdeploy has installed no {program.label}")


def _require_installable(engine: str, verb: str) -> None:
    """Raise UsageError for an unknown engine, and InstallFailed for one that llmdeploy does not install."""
    from llmdeploy.engines import registry

    if engine not in ENGINE_NAMES:
        raise UsageError(f"no engine is called `{plain(engine)}`", "`llmdeploy engines list` shows them")
    if how := registry.get(engine, config.DEFAULT).install_hint:
        hint = how if verb == "install" else "remove it as you got it"
        raise InstallFailed(f"llmdeploy does not {verb} {engine}", hint)


def _require_idle(engine: str) -> None:
    """Raise InstallFailed if the engine serves now: its files are in use."""
    from llmdeploy.service import state

    situation = state.observe()
    if situation.record and situation.record.engine == engine and situation.state in {"starting", "ready"}:
        raise InstallFailed(f"vLLM serves `{situation.record.served_name}` now", "`llmdeploy stop` ends it")


# On screen


def _show(found: dict[str, EngineStatus]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading in ("NAME", "STATUS", "VERSION"):
        table.add_column(heading, no_wrap=True)
    table.add_column("WHERE", overflow="fold")
    out.table(table, [(name, _words(it), it.version or "-", it.detail) for name, it in found.items()])
    for name, it in found.items():
        if it.hint:
            out.hint(f"{name}: {it.hint}")


def _words(status: EngineStatus) -> str:
    return "usable" if status.usable else "not usable" if status.installed else "not installed"


def _described(program: PythonProgram, plan: Installation) -> list[str]:
    from llmdeploy.units import in_gib

    return [
        f"{program.label} {plan.version}, its build for {'CPUs' if plan.cpu else 'NVIDIA GPUs'}, with {plan.tool}",
        f"  into      `{plan.folder}`",
        f"  python    `{plan.python}`",
        f"  download  {in_gib(plan.size.download)}",
        f"  on disk   {in_gib(plan.size.disk)}, as of {plan.size.source}",
        *(f"  {step.name}: `{shlex.join(step.argv)}`" for step in plan.steps),
    ]


def _dry_run(program: PythonProgram, plan: Installation, *, as_json: bool) -> None:
    _warn(program, plan)
    if as_json:
        out.document({**asdict(plan), "folder": str(plan.folder)})
        return
    for line in _described(program, plan):
        out.line(line)


def _warn(program: PythonProgram, plan: Installation) -> None:
    from llmdeploy import hardware
    from llmdeploy.engines.python_environment import install as installer

    if not plan.cpu and (warning := installer.warning(program, plan, hardware.detect())):
        out.warn(warning)


def _carry_out(program: PythonProgram, plan: Installation) -> Environment:
    from llmdeploy.engines.python_environment import install as installer
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
            made = installer.carry_out(program, plan, on_progress)
        except KeyboardInterrupt:
            out.note("interrupted: nothing of it is left")
            raise
    out.note(f"[{time.monotonic() - began:5.1f} s] {program.label} {made.version} is installed", "green")
    return made


def _show_result(program: PythonProgram, made: Environment, *, as_json: bool) -> None:
    """Print the Python that has the engine, and warn if another one would be used instead."""
    if as_json:
        out.document({"version": made.version, "python": made.python})
    else:
        out.line(made.python)
    from llmdeploy.engines.python_environment import find

    first = find.detect(program, config.load()).environment
    if first and first.python != made.python:
        out.warn(f"`{first.python}` ({first.origin}) comes first")
