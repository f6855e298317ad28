"""`llmdeploy models`; the subcommands are in `models_*.py`."""

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
    group.command("catalog", help="List the models of the catalog.")(models_catalog.catalog)
    group.command("show", help="Show what each engine would load for a model, from where, and how large it is.")(
        models_show.show
    )
    group.command("rm", help=models_rm.SUMMARY, epilog=models_rm.EPILOG)(models_rm.rm)
    app.add_typer(group, name="models")


def models(context: typer.Context, json: options.Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    if json:
        out.document({"models": models_catalog.rows(), **models_list.stored()})
    else:
        models_list.show()
