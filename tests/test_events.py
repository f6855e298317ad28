"""Events: their form as JSON, and their tables in the READMEs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from llmdeploy.service import events
from llmdeploy.service.events import (
    Download,
    Fetching,
    Loaded,
    Note,
    Percent,
    Phase,
    Planned,
    Public,
    Room,
    Step,
    Stopping,
    Switched,
    Wait,
)

ROOT = Path(__file__).parents[1]

FORMS: list[tuple[Public, str]] = [
    (Phase("checking"), '{"event": "phase", "phase": "checking"}'),
    (Percent("loading", 5), '{"event": "percent", "phase": "loading", "percent": 5}'),
    (Wait("loading", ""), '{"event": "wait", "phase": "loading", "line": ""}'),
    (Note("so"), '{"event": "note", "text": "so"}'),
    (Fetching("hf://o/r", 5, ""), '{"event": "fetching", "source": "hf://o/r", "bytes": 5, "reason": ""}'),
    (Download("x", 1, 2), '{"event": "download", "file": "x", "done": 1, "total": 2}'),
    (
        Planned(4096, 2, 5, None, {"threads": 2}),
        '{"event": "plan", "context": 4096, "parallel": 2, "needed_bytes": 5, "available_bytes": null, '
        '"settings": {"threads": 2}}',
    ),
    (Loaded("1 GiB", None), '{"event": "loaded", "detail": "1 GiB", "context": null}'),
    (Room(True, "both fit"), '{"event": "room", "beside": true, "reason": "both fit"}'),
    (Step("check"), '{"event": "step", "step": "check"}'),
    (Switched("vllm", "m"), '{"event": "switched", "engine": "vllm", "model": "m"}'),
    (Stopping(), '{"event": "stopping"}'),
]


@pytest.mark.parametrize(("event", "form"), FORMS)
def test_form_as_json(event: Public, form: str) -> None:
    assert json.dumps(events.document(event)) == form
    timed: dict[str, Any] = events.document(event, 1.26)
    assert json.dumps(timed) == f'{form[:-1]}, "elapsed": 1.3}}'
    assert events.parse(timed) == event


def test_each_event_has_its_form_tested() -> None:
    assert {type(event) for event, _ in FORMS} == set(get_args(Public))


def test_an_event_of_a_newer_service_is_not_an_error() -> None:
    assert events.parse({"event": "unheard", "of": 1}) is None
    assert events.parse({"event": "note", "text": "so", "more": 1}) == Note("so")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_tables_in_the_readmes_are_up_to_date(name: str) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import event_tables
    finally:
        sys.path.pop(0)
    text = (ROOT / name).read_text(encoding="utf-8")
    assert event_tables.with_table(text, event_tables.tables()[name]) == text, "run `python scripts/event_tables.py`"
    assert "| `switched` |" in text


def test_help_and_status_do_not_load_the_events() -> None:
    script = "import sys, llmdeploy.cli.serve, llmdeploy.cli.status; sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
