"""Recorded machines: `Hardware` values as such machines report them, one JSON file each."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmdeploy.hardware import Hardware

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def load(name: str) -> Hardware:
    """Load the machine in `tests/machines/NAME.json`."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Hardware)
