"""`llmdeploy env`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmdeploy import config, endpoint
from llmdeploy.cli import options, shells
from llmdeploy.cli.output import out
from llmdeploy.config_types import Text
from llmdeploy.endpoint import Connection
from llmdeploy.errors import UsageError
from llmdeploy.service import state
from llmdeploy.service.state import Situation
from llmdeploy.text import must_be, plain

EPILOG = """Examples:

eval "$(llmdeploy env)"

llmdeploy env --shell fish | source

llmdeploy env --dotenv .env"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("env", help=f"{summary} Works before anything is served, too.", epilog=EPILOG)(env)


def env(
    shell: Annotated[
        str | None,
        typer.Option(
            metavar="SHELL", help="bash, zsh, sh, fish or powershell; default: your shell.", show_default=False
        ),
    ] = None,
    dotenv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the variables into this file instead, such as `.env`.", show_default=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    _check(shell, prints=dotenv is None and not json)
    situation = state.observe()
    settings = config.load()
    record = situation.record if situation.state in {"starting", "ready"} else None
    found = endpoint.to_record(record, settings) if record else endpoint.to_configured(settings)
    if dotenv is not None:
        _write(dotenv, found)
    if json:
        out.document(_document(situation, found, dotenv))
    elif dotenv is None:
        _print(shell, found)
    _remark(situation)


def _check(shell: str | None, *, prints: bool) -> None:
    """Raise UsageError if `--shell` is unknown or has no effect."""
    if shell is None:
        return
    rule = Text(*shells.ASSIGNMENTS)
    if not rule.accepts(shell):
        raise UsageError(must_be("`--shell`", rule, f"`{plain(shell)}`"), "`llmdeploy env --help`")
    if not prints:
        raise UsageError("`--shell` has no effect with `--dotenv` or `--json`", "leave it out")


def _variables(found: Connection) -> dict[str, str]:
    """Return the variables: two that OpenAI's clients read, and OPENAI_MODEL, which applications use by custom."""
    return {"OPENAI_BASE_URL": found.base_url, "OPENAI_API_KEY": found.api_key, "OPENAI_MODEL": found.model}


def _document(situation: Situation, found: Connection, dotenv: Path | None) -> dict[str, str | None]:
    return {
        "state": situation.state,
        "base_url": found.base_url,
        "api_key": found.api_key,
        "model": found.model,
        "dotenv": str(dotenv.absolute()) if dotenv else None,
    }


def _print(shell: str | None, found: Connection) -> None:
    speaks = shell or shells.guess()
    for name, value in _variables(found).items():
        out.data(shells.ASSIGNMENTS[speaks](name, value))
    if sys.stdout.isatty():
        command = f"llmdeploy env --shell {shell}" if shell else "llmdeploy env"
        out.hint(f"`{shells.applied(speaks, command)}` sets them")


def _write(file: Path, found: Connection) -> None:
    from llmdeploy import dotenv

    dotenv.write(file, _variables(found), secret=found.api_key != endpoint.NO_KEY)
    out.note(f"wrote {', '.join(_variables(found))} to `{file}`")


def _remark(situation: Situation) -> None:
    """Say if the service is not ready. The address and the model's name are valid all the same."""
    if situation.state == "stopped":
        out.hint("nothing is served there yet: `llmdeploy serve` starts it")
    elif situation.state != "ready":
        out.hint(f"the service is {situation.state}: `llmdeploy status` tells more")
