"""The failures of uv and pip, searched in the last lines that they wrote.

The special rules stand before the general ones.
"""

from __future__ import annotations

from llmdeploy.engines.diagnosis import FailureRule

RULES = (
    FailureRule(r"No space left on device", "the disk is full", "`df -h` shows what is full"),
    FailureRule(
        r"ensurepip", "this Python cannot make environments", "`sudo apt install python3-venv`, or `pip install uv`"
    ),
    FailureRule(
        r"Retrying \(Retry|NewConnectionError|timed out|dns error|tcp connect error|Failed to fetch",
        "the packages cannot be fetched",
        "look at the network and at HTTPS_PROXY, and run it again: what was fetched is kept",
    ),
)
