"""`llmdeploy models [catalog|show]`: each command is a file of its own."""

from __future__ import annotations

import typer

from llmdeploy.cli import models_catalog, models_list, models_show, options

EPILOG = """Examples:

llmdeploy models

llmdeploy models catalog

llmdeploy models show qwen2.5-vl:7b qwen3:8b-awq"""


def register(app: typer.Typer, summary: str) -> None:
    group = typer.Typer(help=summary, epilog=EPILOG)
    group.callback(invoke_without_command=True)(models)
    group.command("catalog", help="List the models that have a name here.")(models_catalog.catalog)
    group.command("show", help="Show what each engine would get of a model, from where, how large.")(models_show.show)
    app.add_typer(group, name="models")


def models(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        models_list.list_(json)
