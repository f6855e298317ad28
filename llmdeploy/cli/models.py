"""`llmdeploy models`: its parts are the files beside this one."""

from __future__ import annotations

import typer

from llmdeploy.cli import models_catalog, models_list, models_rm, models_show, options
from llmdeploy.cli.output import out

EPILOG = """Examples:

llmdeploy models

llmdeploy models show qwen2.5-vl:7b qwen3:8b-awq

llmdeploy models rm hf://Qwen/Qwen3-8B --dry-run"""


def register(app: typer.Typer, summary: str) -> None:
    group = typer.Typer(help=summary, epilog=EPILOG)
    group.callback(invoke_without_command=True)(models)
    group.command("catalog", help="List the models that have a name here.")(models_catalog.catalog)
    group.command("show", help="Show what each engine would get of a model, from where, how large.")(models_show.show)
    group.command("rm", help=models_rm.SUMMARY, epilog=models_rm.EPILOG)(models_rm.rm)
    app.add_typer(group, name="models")


def models(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    if json:
        out.document({"models": models_catalog.rows(), **models_list.stored()})
    else:
        models_list.show()
