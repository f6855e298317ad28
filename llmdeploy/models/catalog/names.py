"""The names of the catalog alone, read without parsing it, so that completion stays fast."""

from __future__ import annotations

import re
from pathlib import Path

from llmdeploy import paths

SHIPPED = Path(__file__).with_name("catalog.toml")
_HEADER = re.compile(r'^\[models\.(?:"([^"]+)"|([\w-]+))\]$', re.MULTILINE)


def user_file() -> Path:
    """Return the path of the user's catalog, which need not exist."""
    return paths.user_config_file().with_name("catalog.toml")


def shipped() -> list[str]:
    """Return the names in the shipped catalog, in its order."""
    return ["".join(name) for name in _HEADER.findall(SHIPPED.read_text(encoding="utf-8"))]
