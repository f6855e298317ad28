"""`llmdeploy serve [MODEL]`."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.cli.status import document
from llmdeploy.config import Settings, keys
from llmdeploy.errors import UsageError
from llmdeploy.models.reference import ModelRef, parse
from llmdeploy.service.state import Record, Situation

if TYPE_CHECKING:
    from llmdeploy.engines.base import Loaded

EPILOG = """Examples:

llmdeploy serve selftest

llmdeploy serve ./model.gguf --context 16384 --detach

llmdeploy serve qwen3:8b --engine ollama"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("serve", help=summary, epilog=EPILOG)(serve)


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A name, a GGUF file, `hf://owner/repo/file.gguf` or a model of Ollama's."
        ),
    ] = None,
    engine: options.Engine = None,
    port: options.Port = None,
    context: options.Context = None,
    parallel: options.Parallel = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    mmproj: options.Mmproj = None,
    allow_cloud: options.AllowCloud = False,
    timeout: options.Timeout = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Serve in the background.")] = False,
    json: options.Json = False,
) -> None:
    flags = {
        "engine": engine,
        "port": port,
        "context": context,
        "parallel": parallel,
        "timeout": timeout,
        "engines.llamacpp.threads": threads,
        "engines.llamacpp.gpu_layers": gpu_layers,
    }
    settings = replace(config.load(flags), mmproj=mmproj and mmproj.absolute(), allow_cloud=allow_cloud)
    _refuse_foreign(flags, settings.engine)
    reference = parse(settings.model if model is None else model)
    if detach:
        arguments = [f"{key.flag}={flags[key.name]}" for key in keys() if flags.get(key.name) is not None]
        arguments += [f"--mmproj={settings.mmproj}"] if settings.mmproj else []
        arguments += ["--allow-cloud"] if allow_cloud else []
        _announce(start([str(reference), *arguments]), as_json=json)
    else:
        _serve_here(reference, settings, as_json=json)


def _refuse_foreign(flags: dict[str, Any], engine: str) -> None:
    """A flag of another engine would have no effect. Raises UsageError."""
    for key in keys():
        words = key.words
        if words[0] == "engines" and words[1] != engine and flags.get(key.name) is not None:
            raise UsageError(
                f"`{key.flag}` is an option of {words[1]}, and the engine is {engine}",
                f"leave it out, or add `--engine {words[1]}`",
            )


def start(arguments: list[str]) -> Record:
    """Serve in the background and wait until it is ready, saying each phase."""
    from llmdeploy.service import control

    return control.start_in_background(arguments).wait(say_phase)


def say_phase(name: str, elapsed: float) -> None:
    out.note(f"[{elapsed:5.1f} s] {name}")


def _serve_here(reference: ModelRef, settings: Settings, *, as_json: bool) -> None:
    from llmdeploy import engines
    from llmdeploy.cli.progress import Downloads
    from llmdeploy.plan import Plan, Wishes, in_gib
    from llmdeploy.service.candidate import Order
    from llmdeploy.service.deployment import Notices
    from llmdeploy.service.deployment import serve as run
    from llmdeploy.service.signals import Terminated

    def on_plan(plan: Plan) -> None:
        own = [f"{plan.settings['threads'].value} threads"] if "threads" in plan.settings else []
        sizes = ", ".join([f"{plan.context.value} tokens a request", f"{plan.parallel.value} at a time", *own])
        free = f" of {in_gib(plan.available.bytes)} free memory" if plan.available else ""
        out.note(f"          {sizes}; {in_gib(plan.needed_bytes)}{free}")

    def on_loaded(loaded: Loaded) -> None:
        context = f", {loaded.context} tokens a request" if loaded.context else ""
        out.note(f"          {loaded.detail}{context}")
        if loaded.warning:
            out.warn(loaded.warning)

    def on_ready(record: Record, elapsed: float) -> None:
        out.note(f"[{elapsed:5.1f} s] ready; Ctrl-C stops it")
        _announce(record, as_json=as_json)

    order = Order(reference, settings.port, Wishes(settings.context, settings.parallel), settings.timeout)
    with ExitStack() as stack:
        downloads = stack.enter_context(Downloads())
        notices = Notices(
            on_phase=say_phase,
            on_wait=lambda name, elapsed, line: say_phase(f"still {name}: {line}", elapsed),
            on_download=downloads.show,
            on_plan=on_plan,
            on_loaded=on_loaded,
            on_ready=on_ready,
            on_stop=lambda: out.note("stopping"),
        )
        try:
            run(order, engines.get(settings.engine, settings), notices)
        except Terminated:
            out.note("stopped")
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is stopped: another one may cut the rest short
            out.note("stopped")
            raise


def _announce(record: Record, *, as_json: bool) -> None:
    if as_json:
        out.document(document(Situation(record.state, record)))
        return
    out.note(f"serving `{record.served_name}` on {record.engine}", "green")
    out.data(f"{record.url}/v1")
