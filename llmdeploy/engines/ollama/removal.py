"""The removal of models from Ollama's store by the daemon: only it knows which other models use a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmdeploy.engines.ollama import host
from llmdeploy.engines.ollama.api import Daemon
from llmdeploy.engines.ollama.documents import same_name
from llmdeploy.engines.ollama.hints import hints
from llmdeploy.errors import LlmdeployError, NotPermitted

if TYPE_CHECKING:
    from llmdeploy.config import Settings


def daemon_with(settings: Settings, names: Mapping[str, str]) -> Daemon:
    """Return the daemon that has these models: name -> digest.

    Raises LlmdeployError if no daemon runs, and NotPermitted if the one that runs has another store.
    """
    daemon = Daemon(host.parse(settings.ollama.host or os.environ.get("OLLAMA_HOST")).url)
    try:
        models = daemon.models()
    except LlmdeployError as error:
        raise LlmdeployError(
            f"only Ollama itself removes its models, and it does not answer: {error.message}",
            f"start it: {hints(sys.platform)['start']}",
            code="not_removed",
        ) from error
    for name, digest in names.items():
        if not any(same_name(one.name, name) and one.digest == digest for one in models):
            raise NotPermitted(
                f"the Ollama that runs at `{daemon.url}` has another store than the one with `{name}`",
                f"`OLLAMA_HOST` names the one that has it; there: `ollama rm {name}`",
                code="not_removed",
            )
    return daemon
