"""`llmdeploy serve [MODEL]`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.cli.status import document
from llmdeploy.config import Flags, Settings, api_key, keys
from llmdeploy.errors import LlmdeployError, UsageError
from llmdeploy.service import state
from llmdeploy.service.order import Order
from llmdeploy.service.state import Record, Situation

EPILOG = """Examples:

llmdeploy serve selftest

llmdeploy serve ./model.gguf --context 16384 --detach

llmdeploy serve qwen3:8b --engine ollama"""


REMOTE_CODE = "remote_code"


def register(app: typer.Typer, summary: str) -> None:
    app.command("serve", help=summary, epilog=EPILOG)(serve)


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A name, a file, a folder, a place at the Hub or a tag of Ollama's."),
    ] = None,
    engine: options.Engine = None,
    host: options.Host = None,
    port: options.Port = None,
    context: options.Context = None,
    parallel: options.Parallel = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    mmproj: options.Mmproj = None,
    allow_cloud: options.AllowCloud = False,
    trust_remote_code: options.TrustRemoteCode = False,
    repair: options.Repair = True,
    timeout: options.Timeout = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Serve in the background.")] = False,
    json: options.Json = False,
) -> None:
    if state.TICKET in os.environ:
        _serve_here(_received(), as_json=True)
        return
    flags = {
        "host": host,
        "port": port,
        **options.deployment_flags(engine, context, parallel, threads, gpu_layers, timeout),
    }
    own = Flags(mmproj and mmproj.absolute(), allow_cloud, trust_remote_code)
    settings = replace(config.load(flags), flags=own)
    refuse_foreign(flags, settings.engine)
    _check_key(settings)
    reference = options.resolve_model(settings.model if model is None else model)

    def run(settings: Settings) -> None:
        order = Order(reference, settings, repair)
        if detach:
            announce(start(order), as_json=json)
        else:
            _serve_here(order, as_json=json)

    try:
        run(settings)
    except LlmdeployError as error:
        if error.code != REMOTE_CODE or not _agrees(error):
            raise
        run(replace(settings, flags=replace(own, trust_remote_code=True)))


def _check_key(settings: Settings) -> None:
    """Raise ConfigError if an API key is needed and not set, and warn of one that may be guessed."""
    key = api_key.read(settings)
    api_key.require(settings.host, key, settings.gateway.origins)
    if key is not None and api_key.is_short(key):
        words = f"the API key has only {len(key)} characters, and may be guessed"
        out.warn(f"{words}; use {api_key.SHORTEST} or more: {api_key.MAKE}")


def _received() -> Order:
    """Return the order of the command that started this service in the background."""
    return Order.from_json(sys.stdin.buffer.read())


def _agrees(error: LlmdeployError) -> bool:
    """Ask a user at a terminal for consent; without a terminal the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    out.warn(error.message)
    return out.ask("run this code on this machine?")


def refuse_foreign(flags: dict[str, Any], engine: str, instead: str = "add `--engine {}`") -> None:
    """Raise UsageError for a flag of another engine, which would have no effect; `instead`: how to use that engine."""
    for key in keys():
        words = key.words
        if words[0] == "engines" and words[1] != engine and flags.get(key.name) is not None:
            raise UsageError(
                f"`{key.flag}` is an option of {words[1]}, and the engine is {engine}",
                f"leave it out, or {instead.format(words[1])}",
            )


def start(order: Order) -> Record:
    """Serve in the background and wait until it is ready, saying each phase."""
    from llmdeploy.cli.phases import INDENT, say_phase
    from llmdeploy.service import client

    record = client.start_in_background(order).wait(say_phase)
    for note in record.notes:
        out.note(f"{INDENT}{note}")
    return record


def _serve_here(order: Order, *, as_json: bool) -> None:
    from llmdeploy.cli.events import AsJson, AsText
    from llmdeploy.service.service import serve as run
    from llmdeploy.service.signals import Terminated

    # In the background the record tells what happens, and the command that started it wants one answer.
    streams = as_json and state.TICKET not in os.environ
    with ExitStack() as stack:
        notices = stack.enter_context((AsJson if streams else AsText)(lambda record: announce(record, as_json=as_json)))
        try:
            run(order, notices)
        except Terminated:
            out.note("stopped")
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is stopped: another one may cut the rest short
            out.note("stopped")
            raise


def announce(record: Record, *, as_json: bool) -> None:
    if as_json:
        out.document(document(Situation(record.state, record)))
        return
    out.note(f"serving `{record.served_name}` on {record.engine}", "green")
    out.data(f"{record.url}/v1")
