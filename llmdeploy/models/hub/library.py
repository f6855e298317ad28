"""huggingface_hub, before it is imported and while it works: it keeps still, and reports nothing."""

from __future__ import annotations

import os
import warnings


def no_reports() -> None:
    """To be called before the first import: what it reads of the environment it reads then.

    It would ask the Hub for a list of programs to report in its user agent, and wait 3 s for that when it is away.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def keep_still() -> None:
    """It warns on stderr by two ways; what matters of it becomes an exception. For good: other threads download too."""
    no_reports()
    warnings.filterwarnings("ignore", module=r"(huggingface_hub|llmdeploy\.models\.hub)(\..*)?$")
    from logging import CRITICAL

    from huggingface_hub.utils import logging

    logging.set_verbosity(CRITICAL + 1)
