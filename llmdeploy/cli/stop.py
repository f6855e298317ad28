"""`llmdeploy stop`."""

from __future__ import annotations

import typer

from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.service import state

EPILOG = """Examples:

llmdeploy stop

llmdeploy stop --json"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("stop", help=summary, epilog=EPILOG)(stop)


def stop(json: options.Json = False) -> None:
    from llmdeploy.service import client

    situation = state.observe()
    record = situation.record
    runs = record is not None and situation.state in {"starting", "ready"}
    if record is not None and runs:
        out.note(f"stopping `{record.served_name}` (process {record.service.pid})")
    client.stop(situation)
    if json:
        out.document({"stopped": runs, "model": record.served_name if record and runs else None})
    elif record is None:
        out.note("nothing is served")
    elif runs:
        out.note("stopped")
    elif situation.leftover:
        out.note(f"the service of `{record.served_name}` had already ended; its server is stopped now")
    else:
        out.note(f"`{record.served_name}` had already ended; its record is cleared")
