"""`llmdeploy config path|show|get|set`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmdeploy import config, paths
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.config import Settings, keys
from llmdeploy.config.edit import set_value
from llmdeploy.errors import ConfigError

Project = Annotated[bool, typer.Option("--project", help="Use `./llmdeploy.toml` instead of your own file.")]
KeyName = Annotated[str, typer.Argument(metavar="KEY", help="A key, such as `port` or `engines.llamacpp.threads`.")]

EPILOG = """Examples:

llmdeploy config show

llmdeploy config set model qwen3:8b"""


def register(app: typer.Typer, summary: str) -> None:
    group = typer.Typer(
        help=f"{summary} A flag beats a variable, which beats `./llmdeploy.toml`, which beats your file.",
        epilog=EPILOG,
    )
    group.command("path", help="Print the path of the configuration file.")(path)
    group.command("show", help="Print every value and where it comes from.")(show)
    group.command("get", help="Print one value.")(get)
    # A value may begin with a dash: `gpu_layers -1`.
    dashes = {"ignore_unknown_options": True}
    group.command("set", help="Change one value in the file; comments are kept.", context_settings=dashes)(set_)
    app.add_typer(group, name="config", no_args_is_help=True)


def path(project: Project = False) -> None:
    out.data(str(_file(project)))


def show(json: options.Json = False) -> None:
    settings = config.load()
    if json:
        out.document({key.name: _fields(settings, key.name) for key in keys()})
        return
    width = max(len(key.name) for key in keys())
    for key in keys():
        found = settings.value(key.name)
        out.line(f"{key.name:<{width}}  {_shown(found.value)}  ({found.source})")


def get(key: KeyName, json: options.Json = False) -> None:
    config.key_named(key)
    settings = config.load()
    if json:
        out.document(_fields(settings, key))
    else:
        out.data(_shown(settings.value(key).value))


def set_(
    key: KeyName,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The new value.")],
    project: Project = False,
) -> None:
    file = _file(project)
    set_value(key, value, file)
    out.note(f"`{key}` is `{value}` in `{file}`")
    try:
        found = config.load().value(key)
    except ConfigError as error:  # the value is written; something else is wrong
        out.warn(f"{error.message}; {error.hint}")
        return
    if found.source not in {str(file), f"./{file.name}"}:
        out.warn(f"{found.source} sets `{key}` to `{_shown(found.value)}` and takes precedence")


def _file(project: bool) -> Path:
    return paths.PROJECT_CONFIG.absolute() if project else paths.user_config_file()


def _fields(settings: Settings, key: str) -> dict[str, object]:
    found = settings.value(key)
    return {"value": found.value, "source": found.source}


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
