"""The failures of uv and pip that only an installation of vLLM has.

The special rules stand before the general ones.
"""

from __future__ import annotations

from llmdeploy.engines.diagnosis import FailureRule

RULES = (
    FailureRule(
        r"(No matching distribution found for|no version of) torch==\S+\+cpu",
        "your package index does not have PyTorch's CPU build",
        "`pip install uv`, which knows where it is, and run it again; "
        "or set `PIP_EXTRA_INDEX_URL` to an index that has it",
    ),
    FailureRule(
        r"(No matching distribution found for|no version of) vllm",
        "this version does not exist for this Python",
        "leave `--version` out",
    ),
)
