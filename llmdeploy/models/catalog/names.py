"""The names of the catalog alone, without what is behind them: a Tab must not be felt."""

from __future__ import annotations

import re
from pathlib import Path

from llmdeploy import paths

SHIPPED = Path(__file__).with_name("catalog.toml")
_HEADER = re.compile(r'^\[models\.(?:"([^"]+)"|([\w-]+))\]$', re.MULTILINE)


def user_file() -> Path:
    """The user's catalog; it need not exist."""
    return paths.user_config_file().with_name("catalog.toml")


def shipped() -> list[str]:
    """Those of the file that comes with llmdeploy, in its order."""
    return ["".join(name) for name in _HEADER.findall(SHIPPED.read_text(encoding="utf-8"))]
