"""What happened before: how earlier starts went, and the deployment before the last switch (for `switch --back`)."""

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
"""Number of starts that are kept; the oldest is dropped."""


@dataclass(frozen=True)
class Start:
    """One start that succeeded."""

    seconds: float
    remedies: tuple[Remedy, ...] = ()
    """The settings that had to be changed for it, in order."""


def load_start(key: str) -> Start | None:
    """Return the last start of that kind; None if there was none."""
    try:
        found = _read_starts()[key]
        return Start(float(found["seconds"]), tuple(Remedy(**remedy) for remedy in found["remedies"]))
    except (KeyError, TypeError, ValueError):
        return None


def save_start(key: str, start: Start) -> None:
    """Keep the start as the last one of its kind.

    An error is not reported: a lost entry costs an estimate, or the failed tries of a start.
    """
    starts = {**{name: it for name, it in _read_starts().items() if name != key}, key: asdict(start)}
    newest = dict(list(starts.items())[-KEPT:])
    with suppress(OSError):
        _write(_starts_file(), newest)


def _read_starts() -> dict[str, Any]:
    content = _read(_starts_file())
    return content if isinstance(content, dict) else {}


def _starts_file() -> Path:
    return state_dir() / "starts.json"


@dataclass(frozen=True)
class PreviousDeployment:
    """How the deployment before the last switch was served, and what the switch overwrote."""

    model: str
    engine: str
    settings: dict[str, Any]
    """The settings, as `config.document` returns them."""
    file: str
    """The configuration file that the switch changed."""
    changes: dict[str, str | None]
    """The keys that it changed, with their values before; None for a key that was not set."""


def save_previous(previous: PreviousDeployment) -> None:
    """Keep the deployment for `switch --back`. An error is not reported: the way back can also be typed in full."""
    with suppress(OSError):
        _write(_previous_file(), asdict(previous))


def load_previous() -> PreviousDeployment | None:
    """Return the deployment before the last switch; None if there was no switch."""
    try:
        content = _read(_previous_file())
        return PreviousDeployment(
            str(content["model"]),
            str(content["engine"]),
            dict(content["settings"]),
            str(content["file"]),
            dict(content["changes"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _previous_file() -> Path:
    return state_dir() / "previous.json"


def _read(file: Path) -> Any:
    """Return what the file holds; None if it cannot be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _write(file: Path, content: dict[str, Any]) -> None:
    """Replace the file, which its owner alone can read. Raises OSError."""
    temporary = file.with_suffix(".new")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary.unlink(missing_ok=True)
    with open_private(temporary, 0) as stream:
        json.dump(content, stream, indent=1)
    temporary.replace(file)
