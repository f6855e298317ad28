"""`llmdeploy status`. It imports little, because scripts call it often."""

from __future__ import annotations

from typing import Any

import typer

from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.service import state
from llmdeploy.service.state import Record, Situation

EPILOG = """Examples:

llmdeploy status

llmdeploy status --json"""


def register(app: typer.Typer, summary: str) -> None:
    app.command("status", help=f"{summary} Exits with 1 if nothing is served.", epilog=EPILOG)(status)


def status(json: options.Json = False) -> None:
    situation = state.observe()
    if json:
        out.document(document(situation))
    else:
        _show(situation)
    if situation.state != "ready":
        raise typer.Exit(1)


def document(situation: Situation) -> dict[str, Any]:
    """Return the JSON document of `status`. Fields are only ever added."""
    record = situation.record
    if record is None:
        return {"state": situation.state}
    return {
        "state": situation.state,
        "phase": record.phase,
        "progress": record.progress,
        "model": record.model,
        "served_name": record.served_name,
        "engine": record.engine,
        "engine_version": record.engine_version,
        "engine_detail": record.detail,
        "capabilities": list(record.capabilities),
        "base_url": f"{record.url}/v1",
        "since": record.since,
        "service_pid": record.service.pid,
        "server_pid": record.server.pid if record.server else None,
        "context": _setting(record, "context"),
        "parallel": _setting(record, "parallel"),
        "log": record.log or str(state.server_log()),
        "switch": record.switch and {name: record.switch.get(name) for name in ("engine", "model", "step")},
        "receipt": record.receipt,
        "down": record.down,
        **(record.error or {"error": None}),
    }


def _setting(record: Record, name: str) -> int | None:
    """Return a value of the plan; None before planning, or if another version wrote the record."""
    found = (record.plan or {}).get(name)
    return found.get("value") if isinstance(found, dict) else None


def _show(situation: Situation) -> None:
    record = situation.record
    if record is None:
        out.line("nothing is served")
        out.hint("`llmdeploy serve` starts the configured model")
        return
    out.line(f"{situation.state}: `{record.served_name}` on {record.engine}")
    for name, value in _lines(situation, record):
        out.line(f"  {name:<9}{value}")
    if situation.leftover:
        out.hint("`llmdeploy stop` ends its server; `llmdeploy serve` does too and then serves again")
    elif situation.state == "crashed":
        out.hint("`llmdeploy serve` serves again; `llmdeploy stop` only clears the record")
    elif record.error and (hint := record.error["error"]["hint"]):
        out.hint(hint)


def _lines(situation: Situation, record: Record) -> list[tuple[str, str]]:
    lines = [("address", f"{record.url}/v1"), ("since", record.since)]
    if situation.state == "starting":
        lines.append(("phase", record.phase + (f": {record.progress}" if record.progress else "")))
    gone = situation.state in {"failed", "crashed"}
    lines.append(("service", f"process {record.service.pid}" + (", gone" if gone else "")))
    if record.server:
        left = gone and not situation.leftover
        lines.append(("server", f"process {record.server.pid}" + (", gone" if left else "")))
    if situation.state == "crashed":
        lines.append(("reason", "the service was killed or crashed, and left no message"))
    if record.down and not gone:
        lines.append(("reason", record.down))
    if record.error:
        lines.append(("reason", record.error["error"]["message"]))
    if record.switch:
        to = f"to `{record.switch.get('model')}` on {record.switch.get('engine')}"
        lines.append(("switch", f"{to}, at the step {record.switch.get('step')}" + (", cut short" if gone else "")))
    if record.detail:
        lines.append(("loaded", record.detail))
    if context := _setting(record, "context"):
        lines.append(("context", f"{context} tokens a request, {_setting(record, 'parallel')} at a time"))
    lines.append(("log", record.log or str(state.server_log())))
    return lines
