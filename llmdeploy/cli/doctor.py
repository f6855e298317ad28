"""`llmdeploy doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from llmdeploy.cli import options
from llmdeploy.cli.output import out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.doctor import Check

EPILOG = """Examples:

llmdeploy doctor

llmdeploy doctor --json"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("doctor", help=f"{summary} Exits with 1 if a check fails.", epilog=EPILOG)(doctor)


def doctor(json: options.Json = False) -> None:
    from llmdeploy import doctor

    report = doctor.examine()
    if json:
        out.document({"ok": report.ok, **asdict(report)})
    else:
        _show(report.checks)
    if not report.ok:
        raise typer.Exit(1)


def _show(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("status", "name", box=None, pad_edge=False, show_header=False)
    table.add_column("detail", overflow="fold")
    out.table(table, [(Text(it.status, colours[it.status]), it.name, it.detail) for it in checks])
    for check in checks:
        if check.hint:
            out.hint(f"{check.name}: {check.hint}")
