"""What earlier starts have taught: how long one takes, and with which settings it came up."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmdeploy.errors import Remedy
from llmdeploy.paths import state_dir
from llmdeploy.service.state import open_private

KEPT = 50
"""Starts; the oldest goes."""


@dataclass(frozen=True)
class Start:
    """One start that succeeded."""

    seconds: float
    remedies: tuple[Remedy, ...] = ()
    """The settings that had to be changed for it, in order."""


def load(key: str) -> Start | None:
    """The last start of that kind."""
    try:
        found = _read()[key]
        return Start(float(found["seconds"]), tuple(Remedy(**remedy) for remedy in found["remedies"]))
    except (KeyError, TypeError, ValueError):
        return None


def save(key: str, start: Start) -> None:
    """To lose it costs an estimate, or the failed tries of a start: what goes wrong here is not told."""
    starts = {**{name: it for name, it in _read().items() if name != key}, key: asdict(start)}
    newest = dict(list(starts.items())[-KEPT:])
    temporary = _file().with_suffix(".new")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        with open_private(temporary, 0) as stream:
            json.dump(newest, stream, indent=1)
        temporary.replace(_file())


def _file() -> Path:
    return state_dir() / "starts.json"


def _read() -> dict[str, Any]:
    try:
        content = json.loads(_file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
