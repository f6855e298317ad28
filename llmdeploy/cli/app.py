"""The Typer app. Each command is a file, loaded only when it is run: the table holds what `--help` says of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from shutil import get_terminal_size
from typing import Annotated

import typer

from llmdeploy.cli.output import out

PROGRAM = "llmdeploy"

COMMANDS = {
    "doctor": "Check this machine: Python, memory, GPUs, the engines, the port.",
    "pull": "Get the weights of a model, for one engine or all.",
    "serve": "Serve a model at one address.",
    "switch": "Move to another engine or model, at the same address.",
    "status": "Tell what is served, by which process, since when.",
    "stop": "Stop what is served.",
    "logs": "Show the log of the server.",
    "chat": "Ask the model that is served; images too.",
    "env": "Print what an application needs as variables of your shell.",
    "models": "List the models that are here, show what each engine would get of one, remove them.",
    "engines": "List the engines; install and remove vLLM.",
    "config": "Show and change the configuration.",
}


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; errors come out as they are."""
    status = build(arguments)(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    return status if isinstance(status, int) else 0


def build(arguments: Sequence[str]) -> typer.Typer:
    """The app in which the command that `arguments` name is whole, and the others are lines of help."""
    app = typer.Typer(
        help="Put a language model on this machine behind one OpenAI-compatible address.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        # In a narrow terminal Rich's frames would cut the names of options off.
        rich_markup_mode="rich" if get_terminal_size().columns >= 60 else None,
    )
    app.callback()(_options)
    wanted = command_of(arguments)
    for name, summary in COMMANDS.items():
        if name == wanted:
            import_module(f"llmdeploy.cli.{name}").register(app, summary)
        else:
            app.command(name, help=summary)(_not_loaded)
    return app


def command_of(arguments: Sequence[str]) -> str:
    """The first word; the options before it take no values."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _not_loaded() -> None: ...


def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    # `version` is here for its line of help: main.py answers it before Typer is loaded.
    out.quiet, out.verbose = quiet, verbose
