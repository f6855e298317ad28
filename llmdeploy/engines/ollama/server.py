"""The Ollama server that an engine works with: its address, and where its models are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy.models.stores import ollama as stores

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.base import ServerSpec
    from llmdeploy.engines.ollama.api import Daemon
    from llmdeploy.engines.ollama.documents import Installed
    from llmdeploy.engines.ollama.state import State


@dataclass(frozen=True)
class OllamaServer:
    """One Ollama server. It may not run yet: then what asks it raises EngineMissing."""

    settings: Settings
    look: Callable[[], State]
    """Returns how Ollama is here."""
    spec: ServerSpec | None = None
    """The server that an engine is attached to; None for the one that `look` finds."""
    offline: bool = False
    """Whether to read the stores on this machine instead of asking the server."""

    @property
    def is_ours(self) -> bool:
        """Whether llmdeploy starts it, or has started it."""
        return self.look().probe.state == "refused" if self.spec is None else bool(self.spec.argv)

    @property
    def url(self) -> str:
        return self.look().host.url if self.spec is None else self.spec.base_url

    @property
    def api(self) -> Daemon:
        from llmdeploy.engines.ollama.api import Daemon

        return Daemon(self.url, program_version=self.look().program_version)

    def installed(self, name: str) -> Installed | None:
        """Return the model of that name, or None if the server has none. Raises EngineMissing."""
        from llmdeploy.engines.ollama.documents import same_name

        return next((one for one in self.api.models() if same_name(one.name, name)), None)

    def is_stored(self, name: str) -> bool:
        """Return whether a store on this machine has a model of that name, without asking the server."""
        return stores.has(name, self.settings.ollama.models)

    @property
    def store(self) -> Path:
        """The server's store: it reports the place if it has a model; otherwise the variables name it."""
        named = (self.is_ours and self.settings.ollama.models) or os.environ.get("OLLAMA_MODELS")
        found = None if self.is_ours else self.look().store
        return found or Path(named or Path.home() / ".ollama" / "models")

    @property
    def disk(self) -> Path | None:
        """The store folder, for the check of free space; None if it is remote or unknown."""
        state = self.look()
        if not self.api.is_local:
            return None
        if self.is_ours or state.store or not state.owner or "OLLAMA_MODELS" in os.environ:
            return self.store
        home = os.path.expanduser(f"~{state.owner}")
        return Path(home) / ".ollama" / "models" if os.path.isabs(home) else None
