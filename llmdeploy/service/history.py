"""The memory of the service: how earlier starts went, and the deployment before the last switch (`switch --back`)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import Remedy
from llmdeploy.paths import state_dir

LONGEST_SECONDS = 10**6
"""The longest start that is believed."""
KEPT = 50
"""Number of starts that are kept; the oldest is dropped."""


@dataclass(frozen=True)
class Start:
    """A start that succeeded."""

    seconds: float
    remedies: tuple[Remedy, ...] = ()
    """The settings that had to be changed for it, in order."""


def load_start(key: str) -> Start | None:
    """Return the last start of that kind; None if there was none."""
    import msgspec

    try:
        found = msgspec.convert(_read_starts()[key], Start)
    except (KeyError, ValueError):
        return None
    return found if 0 <= found.seconds <= LONGEST_SECONDS else None


def save_start(key: str, start: Start) -> None:
    """Keep the start as the last one of its kind.

    An error is not reported: a lost entry costs an estimate, or the failed tries of a start.
    """
    starts = {**{name: it for name, it in _read_starts().items() if name != key}, key: asdict(start)}
    newest = dict(list(starts.items())[-KEPT:])
    with suppress(OSError):
        _starts_file().write(newest)


def _read_starts() -> dict[str, Any]:
    return _starts_file().read({})


def _starts_file() -> JsonFile:
    return JsonFile(state_dir() / "starts.json", indent=1)


@dataclass(frozen=True)
class PreviousDeployment:
    """The deployment before the last switch, and the settings that the switch overwrote."""

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
        _previous_file().write(asdict(previous))


def load_previous() -> PreviousDeployment | None:
    """Return the deployment before the last switch; None if nothing was switched."""
    import msgspec

    content: dict[str, Any] = _previous_file().read({})
    try:
        return msgspec.convert(content, PreviousDeployment)
    except ValueError:
        return None


def _previous_file() -> JsonFile:
    return JsonFile(state_dir() / "previous.json", indent=1)
