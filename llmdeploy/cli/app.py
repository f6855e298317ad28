"""The Typer app. Only the command that runs is imported; `COMMANDS` holds the others' lines of help."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib import import_module
from shutil import get_terminal_size
from typing import Annotated

import typer

from llmdeploy.cli.output import out
from llmdeploy.ownership import require_own_state

PROGRAM = "llmdeploy"

COMMANDS = {
    "doctor": "Check this machine: Python, memory, GPUs, engines, the port.",
    "pull": "Download the weights of a model, for one engine or all.",
    "serve": "Serve a model at one address.",
    "switch": "Change to another engine or model, at the same address.",
    "status": "Show what is served, by which process and since when.",
    "stop": "Stop the service and its engine.",
    "logs": "Show the log of the engine's server.",
    "chat": "Ask the model that is served a question, with images if you like.",
    "env": "Print the address, key and model for applications, as variables of your shell.",
    "models": "List the models on this machine, show what each engine would load, remove models.",
    "engines": "List the engines; install and remove vLLM.",
    "config": "Show and change the configuration.",
}


STATELESS = {"", "config", "doctor"}
"""The commands that read nothing from the state folder, and the one that reports what is wrong with it."""


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Errors are not caught."""
    if command_of(arguments) in COMMANDS.keys() - STATELESS and not {"-h", "--help"} & set(arguments):
        require_own_state()
    app = build(arguments)
    if not gc.isenabled():
        gc.freeze()  # the modules stay, so no collection need look at them
        gc.enable()
    status = app(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    return status if isinstance(status, int) else 0


def build(arguments: Sequence[str]) -> typer.Typer:
    """Build the app with the command that `arguments` name, and with a line of help for each other command."""
    app = typer.Typer(
        help="Put a language model on this machine behind one OpenAI-compatible address.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        # In a narrow terminal Rich's frames would cut off the names of options.
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
    """Return the first word that is not an option; no option before the command takes a value."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _not_loaded() -> None: ...


def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    # `version` is declared only for `--help`: main.py handles it before Typer is loaded.
    out.quiet, out.verbose = quiet, verbose
