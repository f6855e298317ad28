"""`llmdeploy switch [ENGINE] [MODEL]`."""

from __future__ import annotations

import shlex
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.cli.serve import announce, refuse_foreign
from llmdeploy.config import ENGINE_NAMES, Flags, Settings
from llmdeploy.errors import ConfigError, UsageError
from llmdeploy.models.reference import ModelRef, parse, served_name
from llmdeploy.service import state
from llmdeploy.service.order import Order, SwitchOrder

if TYPE_CHECKING:
    from llmdeploy.service.dry_run import DryRun
    from llmdeploy.service.state import Record

EPILOG = """Examples:

llmdeploy switch vllm

llmdeploy switch ollama qwen3:8b --dry-run

llmdeploy switch --back"""

KEPT = ("context", "parallel", "engines.llamacpp.threads", "engines.llamacpp.gpu_layers")
"""Settings that `serve` was given by flags, and that a switch keeps unless it is given others."""
DONE = ("commit", "finish")
"""Steps after which nothing is undone: `commit` is told when it is done, or `undo` follows."""


def register(app: typer.Typer, summary: str) -> None:
    app.command("switch", help=f"{summary} No request fails; what fails is undone.", epilog=EPILOG)(switch)


@dataclass(frozen=True)
class Target:
    """The deployment to switch to, and the changes of the configuration file."""

    reference: ModelRef
    settings: Settings
    file: Path
    changes: dict[str, str | None]
    repair: bool

    @property
    def model(self) -> str:
        """The model as the configuration names it."""
        return str(self.reference)

    @property
    def order(self) -> Order:
        return Order(self.reference, self.settings, self.repair)

    @property
    def words(self) -> str:
        return f"`{served_name(self.reference)}` on {self.settings.engine}"


def switch(
    engine: Annotated[
        str | None, typer.Argument(metavar="[ENGINE]", help="The engine to go to; the one of now where it is left out.")
    ] = None,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model; the one of now where it is left out.")
    ] = None,
    model_option: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model, without an engine before it.")
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Return to the deployment before the last switch.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; touch nothing.")] = False,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold/--no-hold", help="Have requests wait where both servers do not fit at once, or refuse them."
        ),
    ] = True,
    beside: Annotated[
        bool,
        typer.Option(
            "--beside/--no-beside", help="Start the new server beside the old one where both fit, or after it."
        ),
    ] = True,
    context: options.Context = None,
    parallel: options.Parallel = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    mmproj: options.Mmproj = None,
    allow_cloud: options.AllowCloud = False,
    trust_remote_code: options.TrustRemoteCode = False,
    repair: options.Repair = True,
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    situation = state.observe()
    record = situation.record if situation.state in {"starting", "ready"} else None
    flags = options.deployment_flags(engine, context, parallel, threads, gpu_layers, timeout)
    own = Flags(mmproj and mmproj.absolute(), allow_cloud, trust_remote_code)
    _check_words(engine, model, model_option, {**flags, "own": own != Flags()}, back=back)
    named = model if model is not None else model_option
    target = _back(timeout) if back else _target(named, flags, own, record, repair=repair)
    if dry_run or record is None:
        _foresee(target, record, dry_run=dry_run, hold=hold, beside=beside, as_json=json)
    elif _is_served(target, record):
        _write(target)
        out.note(f"{target.words} is served already", "green")
        announce(record, as_json=json)
    else:
        _switch(target, record, hold=hold, beside=beside, as_json=json)


def _check_words(
    engine: str | None, model: str | None, model_option: str | None, flags: dict[str, Any], *, back: bool
) -> None:
    """Raise UsageError for words that make no sense together."""
    named = [it for it in (engine, model, model_option, *flags.values()) if it is not None and it is not False]
    if back and [it for it in named if it is not flags["timeout"]]:
        raise UsageError("`--back` returns to what was served before, as it was", "`llmdeploy switch --back`")
    if not back and not named:
        raise UsageError(
            "nothing is named to switch to", "`llmdeploy switch vllm`; `llmdeploy switch --model qwen3:8b`"
        )
    if model is not None and model_option is not None:
        raise UsageError(f"two models are named: `{model}` and `{model_option}`", "name one")
    if engine is not None and engine not in ENGINE_NAMES:
        raise UsageError(f"no engine is called `{engine}`: there are {', '.join(ENGINE_NAMES)}", _meant(engine))


def _meant(engine: str) -> str:
    """Return the command that was probably meant: an engine in other letters, or a model."""
    from difflib import get_close_matches

    if near := get_close_matches(engine.lower(), ENGINE_NAMES, n=1):
        return f"`llmdeploy switch {near[0]}`"
    if not engine.strip():
        return "`llmdeploy switch vllm`"
    return f"`llmdeploy switch --model {shlex.quote(engine)}` switches to a model of that name"


def _target(model: str | None, flags: dict[str, Any], own: Flags, record: Record | None, *, repair: bool) -> Target:
    """Return the deployment that the words name; the rest is as it is served now, or as the configuration has it."""
    given = {name: value for name, value in flags.items() if value is not None}
    engine = given.get("engine") or (record and record.engine)
    settings = replace(config.load({**flags, "engine": engine}), flags=own)
    refuse_foreign(flags, settings.engine, "name its engine: `llmdeploy switch {}`")
    reference = parse(record.model if record else settings.model) if model is None else options.resolve_model(model)
    if record and record.settings:
        served = config.from_document(record.settings)
        settings = _as_served(settings, served, same_model=str(reference) == record.model)
    target = Target(reference, settings, _file(), {}, repair)
    written = {name: str(value) for name, value in given.items() if name != "timeout"}
    return replace(target, changes={"engine": settings.engine, "model": target.model, **written})


def _as_served(settings: Settings, served: Settings, *, same_model: bool) -> Settings:
    """Return the settings with those that `serve` was given by flags, unless others are given now.

    Consent to a model's own code is not taken over: it was given for one revision, and is remembered for that one.
    """
    kept = {name: value for name in KEPT if (value := served.value(name).value) is not None}
    settings = config.with_values(
        settings, {name: value for name, value in kept.items() if settings.source(name) == "default"}
    )
    own, old = settings.flags, served.flags
    if not same_model:
        return settings
    return replace(
        settings, flags=replace(own, mmproj=own.mmproj or old.mmproj, allow_cloud=own.allow_cloud or old.allow_cloud)
    )


def _file() -> Path:
    """Return the configuration file to change: the folder's own if it names the engine or the model, or the user's."""
    from llmdeploy import paths

    project = f"./{paths.PROJECT_CONFIG}"
    now = config.load()
    decides = project in {now.source("engine"), now.source("model")}
    return paths.PROJECT_CONFIG.absolute() if decides else paths.user_config_file()


def _back(timeout: float | None) -> Target:
    from llmdeploy.service import history

    found = history.load_previous()
    if found is None:
        raise UsageError("there was no switch to return from", "`llmdeploy switch ENGINE` makes one")
    settings = config.from_document(found.settings)
    if timeout is not None:
        settings = replace(settings, timeout=timeout)
    return Target(parse(found.model), settings, Path(found.file), found.changes, repair=True)


def _is_served(target: Target, record: Record) -> bool:
    same = (record.engine, record.model) == (target.settings.engine, target.model)
    return same and _served_settings(record.settings) == _served_settings(config.document(target.settings))


def _served_settings(document: dict[str, Any] | None) -> dict[str, Any]:
    """Return the settings that need another server when they change."""
    apart = {"engine", "model", "port", "host", "timeout", "api_key_file"}
    return {name: it for name, it in (document or {}).items() if name not in apart and not name.startswith("gateway.")}


def _foresee(target: Target, record: Record | None, *, dry_run: bool, hold: bool, beside: bool, as_json: bool) -> None:
    """Check what can be checked, and write the configuration unless it is a dry run: nothing serves, or nothing may be
    touched.
    """
    from llmdeploy.config import edit as config_edit
    from llmdeploy.service import dry_run as dry_runs

    planned = dry_runs.dry_run(target.order, record, beside=beside)
    diff = config_edit.diff(config_edit.edited(target.file, target.changes))
    if not dry_run:
        _write(target)
    if as_json:
        changed = {"file": str(target.file), "diff": diff, "written": bool(diff) and not dry_run}
        named = {"engine": target.settings.engine, "model": served_name(target.reference)}
        out.document({"switched": False, **named, **planned.document(), "config": changed})
        return
    _show(target, planned, diff, hold=hold)
    if not dry_run:
        written = f"written to `{target.file}`: " if diff else ""
        out.note(f"{written}the next `llmdeploy serve` serves {target.words}", "green")
        _warn_of_variables()
    elif record is not None and _is_served(target, record):
        out.note(f"{target.words} is served already: nothing would be started")


def _show(target: Target, planned: DryRun, diff: str, *, hold: bool) -> None:
    from llmdeploy.units import in_gib

    version = f" {planned.engine_version}" if planned.engine_version else ""
    out.line(f"{target.words}{version}")
    for note in planned.notes:
        out.line(f"  {note}")
    if plan := planned.plan:
        settings = {"context": plan.context, "parallel": plan.parallel, **plan.settings}
        for name, setting in settings.items():
            out.line(f"  {name:<24}{setting.value}  ({setting.reason})")
        for part in plan.memory:
            out.line(f"  {part.name:<24}{in_gib(part.bytes)}  ({part.reason})")
    if planned.beside is not None:
        meanwhile = f"requests {'wait' if hold else 'are refused'} while it is exchanged"
        out.line(f"  {planned.room}: {'no request waits' if planned.beside else meanwhile}")
    for file in planned.files:
        out.line(f"  writes `{file}`")
    out.data(diff or f"`{target.file}` stays as it is\n", end="")


def _write(target: Target) -> None:
    """Write the configuration: no service carries out the switch."""
    from llmdeploy.config import edit as config_edit
    from llmdeploy.service import history

    before = config.load()
    old = config_edit.texts(target.file, target.changes)
    if old == target.changes:
        return
    config_edit.write(config_edit.edited(target.file, target.changes))
    served = config.document(before)
    history.save_previous(history.PreviousDeployment(before.model, before.engine, served, str(target.file), old))


def _warn_of_variables() -> None:
    now = config.load()
    for name in ("engine", "model"):
        if now.source(name).startswith("LLMDEPLOY_"):
            out.warn(f"`{now.source(name)}` beats the file: `unset {now.source(name)}`")


def _switch(target: Target, record: Record, *, hold: bool, beside: bool, as_json: bool) -> None:
    from llmdeploy.cli.events import AsJson, AsText
    from llmdeploy.service import client, signals
    from llmdeploy.service.events import Step

    order = SwitchOrder(target.order, target.file, target.changes, hold, beside).to_json()
    began = time.monotonic()
    step = ""
    style = AsJson if as_json else AsText
    try:
        with (
            style(lambda record: announce(record, as_json=as_json)) as listener,
            signals.interrupting(),
            closing(client.switch(record, order)) as events,  # to leave is to call it off
        ):
            for event in events:
                if isinstance(event, Step):
                    step = event.step
                listener.on_event(event, time.monotonic() - began)
    except KeyboardInterrupt:
        _interrupted(step)
        raise
    serves = state.observe().record
    if serves is None:
        raise ConfigError("it was switched, and stopped since", "`llmdeploy serve`")
    announce(serves, as_json=as_json)
    _warn_of_variables()


def _interrupted(step: str) -> None:
    """Say how the interrupted switch ends, and wait until something serves again."""
    from llmdeploy.service import client

    out.note("interrupted: it is switched already" if step in DONE else "interrupted: the switch is undone")
    if record := client.wait_switched():
        out.note(f"`{record.served_name}` on {record.engine} serves")
