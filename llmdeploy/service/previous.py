"""The deployment before the last switch, for `switch --back`: how it was served, and what the switch wrote over."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmdeploy.paths import state_dir
from llmdeploy.service.state import open_private


@dataclass(frozen=True)
class PreviousDeployment:
    model: str
    engine: str
    settings: dict[str, Any]
    """As config.document gives them."""
    file: str
    """The configuration file that the switch changed."""
    changes: dict[str, str | None]
    """The keys that it changed, with what they were; None for one that was not there."""


def save(previous: PreviousDeployment) -> None:
    """To lose it costs the way back by one word, so what goes wrong here is not told."""
    temporary = _file().with_suffix(".new")
    with suppress(OSError):
        temporary.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        with open_private(temporary, 0) as stream:
            json.dump(asdict(previous), stream, indent=1)
        temporary.replace(_file())


def load() -> PreviousDeployment | None:
    """None where there was no switch."""
    try:
        content = json.loads(_file().read_text())
        return PreviousDeployment(
            str(content["model"]),
            str(content["engine"]),
            dict(content["settings"]),
            str(content["file"]),
            dict(content["changes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _file() -> Path:
    return state_dir() / "previous.json"
