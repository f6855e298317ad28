"""`llmdeploy serve [MODEL]`."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.cli.status import document
from llmdeploy.config import Settings, keys
from llmdeploy.models.reference import ModelRef, parse
from llmdeploy.service.state import Record, Situation

EPILOG = """Examples:

llmdeploy serve selftest

llmdeploy serve ./model.gguf --context 16384 --detach"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("serve", help=summary, epilog=EPILOG)(serve)


def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name, a GGUF file or `hf://owner/repo/file.gguf`.")
    ] = None,
    engine: options.Engine = None,
    port: options.Port = None,
    context: options.Context = None,
    parallel: options.Parallel = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    mmproj: options.Mmproj = None,
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
    settings = config.load(flags)
    reference = parse(settings.model if model is None else model)
    if detach:
        arguments = [f"{key.flag}={flags[key.name]}" for key in keys() if flags.get(key.name) is not None]
        arguments += [f"--mmproj={mmproj.absolute()}"] if mmproj else []
        _announce(start([str(reference), *arguments]), as_json=json)
    else:
        _serve_here(reference, mmproj, settings, as_json=json)


def start(arguments: list[str]) -> Record:
    """Serve in the background and wait until it is ready, saying each phase."""
    from llmdeploy.service import control

    return control.start_in_background(arguments).wait(say_phase)


def say_phase(name: str, elapsed: float) -> None:
    out.note(f"[{elapsed:5.1f} s] {name}")


def _serve_here(reference: ModelRef, mmproj: Path | None, settings: Settings, *, as_json: bool) -> None:
    from llmdeploy import engines
    from llmdeploy.cli.progress import Downloads
    from llmdeploy.plan import Plan, Wishes, in_gib
    from llmdeploy.service.candidate import Order
    from llmdeploy.service.deployment import Notices
    from llmdeploy.service.deployment import serve as run
    from llmdeploy.service.signals import Terminated

    def on_plan(plan: Plan) -> None:
        out.note(
            f"          {plan.context.value} tokens a request, {plan.parallel.value} at a time, "
            f"{plan.threads.value} threads; {in_gib(plan.needed_bytes)} of {in_gib(plan.available.bytes)} free memory"
        )

    def on_ready(record: Record, elapsed: float) -> None:
        out.note(f"[{elapsed:5.1f} s] ready; Ctrl-C stops it")
        _announce(record, as_json=as_json)

    wishes = Wishes(settings.context, settings.parallel, settings.threads, settings.gpu_layers)
    order = Order(reference, settings.port, wishes, mmproj and mmproj.absolute(), settings.timeout)
    with ExitStack() as stack:
        downloads = stack.enter_context(Downloads())
        notices = Notices(
            on_phase=say_phase,
            on_wait=lambda name, elapsed, line: say_phase(f"still {name}: {line}", elapsed),
            on_download=downloads.show,
            on_plan=on_plan,
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
