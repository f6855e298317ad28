"""Ollama: the engine for development. A running Ollama is used; without one, llmdeploy starts it.

The model is served under the name that the user gave: an alias with the plan's context, which shares the weights and is
removed when the deployment ends. A model that Ollama has under that name already is served as it is, with the context
that Ollama gives it: the user's own models are never rewritten.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmdeploy.engines.base import Engine, EngineStatus, ServerSpec
from llmdeploy.engines.log_reader import Loaded
from llmdeploy.engines.ollama.hints import hints
from llmdeploy.engines.ollama.server import OllamaServer
from llmdeploy.engines.ollama.weights import GgufImport, Tag, require_cloud, thinks
from llmdeploy.engines.vitals import Vitals
from llmdeploy.errors import DoesNotFit, EngineMissing, LlmdeployError, TimedOut
from llmdeploy.models import gguf
from llmdeploy.models.catalog import lookup
from llmdeploy.models.reference import CatalogName, ModelRef, OllamaTag
from llmdeploy.models.weights import GGUF, OLLAMA
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmdeploy.config import Settings
    from llmdeploy.engines.advisories import Advisory
    from llmdeploy.engines.diagnosis import Diagnosis, Exit
    from llmdeploy.engines.ollama.api import Daemon
    from llmdeploy.engines.ollama.state import State
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.plan import MemoryPart, Plan, Wishes

CLOUD = re.compile(r":([^/:]*-)?cloud$", re.IGNORECASE)
"""The end of the name of a model that runs at ollama.com, by Ollama's own rule: of a tag, and in any case."""
LOOK_SECONDS = 5.0
"""Seconds for which one look at Ollama is remembered: a look may take two."""
PATIENCE = 2.0
"""Seconds for each answer when a deployment ends."""
RELEASE_SECONDS = 4.0
"""Seconds for the memory to be free once it was asked for; less than `stop` waits."""
INHERITED = ("OLLAMA_*", "-OLLAMA_ORIGINS", "-OLLAMA_REMOTES", "-OLLAMA_API_KEY")
"""Patterns of the user's variables that an Ollama gets which llmdeploy starts. Only the gateway may send to it."""
GIVING_UP = "Error: "
"""The beginning of the last line of a daemon that cannot go on."""


def engine(settings: Settings) -> Ollama:
    return Ollama(settings)


class Ollama(Engine):
    name = "ollama"
    formats = (OLLAMA, GGUF)
    vitals = Vitals(front_cores=0.3)
    side_by_side = False
    unsupported = MappingProxyType(
        {
            "/v1/chat/completions": ("n", "logit_bias"),
            "/v1/completions": ("n", "logit_bias", "best_of", "echo", "logprobs"),
        }
    )

    def __init__(self, settings: Settings, server: OllamaServer | None = None) -> None:
        """Take the server to work with; without one, the server that is found here."""
        self._settings = settings
        self._seen: tuple[float, State] | None = None
        self._server = server or OllamaServer(settings, self._state)
        self.daemon = OllamaDaemon(settings, self._state)

    @property
    def install_hint(self) -> str:
        return f"get it: {hints(sys.platform)['get']}"

    @property
    def update_hint(self) -> str:
        return hints(sys.platform)["install"]

    def advisories(self) -> tuple[Advisory, ...]:
        from llmdeploy.engines.ollama.advisories import ADVISORIES

        return ADVISORIES

    def status(self) -> EngineStatus:
        from llmdeploy.engines.ollama import state

        self._seen = None
        return state.describe(self._state())

    def _state(self) -> State:
        """Return how Ollama is here, as of a moment ago at most."""
        from llmdeploy.engines.ollama import state

        now = time.monotonic()
        if self._seen is None or now > self._seen[0] + LOOK_SECONDS:
            self._seen = now, state.detect(self._settings)
        return self._seen[1]

    def resolve(self, model: ModelRef, *, reuse: bool = True, offline: bool = False) -> Tag | GgufImport:
        server = replace(self._server, offline=offline)
        if isinstance(model, OllamaTag):
            return self._tag(model.name, server)
        if not isinstance(model, CatalogName):
            return GgufImport(gguf.find(model, self._settings, offline=offline), server)
        entry = lookup.get(model.name)
        if entry is None:
            return self._tag(model.name, server)
        if entry.ollama is None:
            return GgufImport(gguf.find(model, self._settings, offline=offline), server)
        tag = self._tag(entry.ollama, server)
        return (self._local_instead(model, tag) if reuse and not offline else None) or tag

    def _local_instead(self, model: CatalogName, tag: Tag) -> GgufImport | None:
        """Return the catalog's GGUF files of that model if they are here and Ollama does not have the tag."""
        from llmdeploy.models import reuse

        local = reuse.for_ollama(model, self._settings)
        if local is None:
            return None
        try:
            missing = tag.server.api.is_local and tag.server.installed(tag.name) is None
        except LlmdeployError:  # Ollama does not run yet, so its models are not known
            return None
        return GgufImport(local, tag.server) if missing else None

    def _tag(self, name: str, server: OllamaServer) -> Tag:
        if CLOUD.search(name):
            require_cloud(self._settings, name, "ollama.com")
        return Tag(name, server)

    def plan(self, facts: ModelFacts, hardware: Hardware, wishes: Wishes) -> Plan:
        from llmdeploy.plan import Setting, compute_buffer, make_plan

        named = os.environ.get("OLLAMA_NUM_PARALLEL", "").strip(" \"'")
        if not self._server.is_ours:
            parallel = Setting(1, "at least: Ollama was started with a number of its own, `OLLAMA_NUM_PARALLEL`")
        elif wishes.parallel is not None:
            parallel = Setting(wishes.parallel, "as asked for")
        elif named.isdecimal() and int(named):  # Ollama warns of a malformed one
            parallel = Setting(int(named), "`OLLAMA_NUM_PARALLEL`")
        else:
            parallel = Setting(1, "Ollama's default")
        available = _available(self._server.api, hardware)
        return make_plan(facts, wishes, available, overhead=(compute_buffer(facts),), parallels=(parallel,))

    def server(
        self, weights: Tag | GgufImport, plan: Plan, *, served_name: str, port: int, key: str = ""
    ) -> ServerSpec:
        """Return the server; raises AlreadyServing and ModelInvalid for a name that belongs to another model.

        Ollama has no keys, so `key` changes nothing.
        """
        from llmdeploy.engines.ollama import aliases, dialect

        spec = ServerSpec(
            argv=(),
            base_url=self._server.url,
            health_path="/api/version",
            served_name=served_name,
            model=weights.model_name(),
            context=plan.context.value,
        )
        aliases.require_free(self._server.api, spec)
        adapt = partial(dialect.adapt, thinks=thinks(weights))
        is_remote = not self._server.api.is_local or bool(weights.shown.remote_host)
        return replace(spec, adapt=adapt, is_remote=is_remote)

    def diagnose(self, log: Sequence[str], exit: Exit) -> Diagnosis | None:
        from llmdeploy.engines import diagnosis
        from llmdeploy.engines.ollama import failures

        if isinstance(exit, diagnosis.Unreachable):
            cause = f"Ollama at `{exit.url}` has not answered for {exit.seconds:g} s"
            return diagnosis.Diagnosis(cause, f"start it: {hints(sys.platform)['start']}")
        if found := diagnosis.by_signal(exit.status):
            return found
        # The log reports the end of each model too: only the last line before it gives up is a cause.
        last = next((line for line in reversed(log) if line.startswith(GIVING_UP)), None)
        if last is None:
            return None
        error = failures.explain(last.removeprefix(GIVING_UP))
        return diagnosis.Diagnosis(error.message, error.hint)


class OllamaDaemon:
    """Ollama's own server, which loads models on demand."""

    def __init__(self, settings: Settings, look: Callable[[], State]) -> None:
        self._settings = settings
        self._look = look

    def spec(self, wishes: Wishes, port: int) -> ServerSpec:
        from llmdeploy.engines.ollama import state

        found = self._look()
        if found.probe.state != "refused":
            return ServerSpec((), found.host.url, "/api/version")
        if found.program is None:
            raise EngineMissing(found.probe.detail, state.describe(found).hint)
        variables = self._environment(wishes, port)
        argv, url = (str(found.program), "serve"), f"http://127.0.0.1:{port}"
        return ServerSpec(argv, url, "/api/version", env=variables, inherits=INHERITED)

    def _environment(self, wishes: Wishes, port: int) -> dict[str, str]:
        """Return the variables of a server that llmdeploy starts; the user's own of Ollama hold beside these."""
        from llmdeploy.plan import DEFAULT_CONTEXT

        settings = self._settings
        own: dict[str, object] = {
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_KEEP_ALIVE": -1,
            "OLLAMA_CONTEXT_LENGTH": wishes.context or DEFAULT_CONTEXT,
            "OLLAMA_NUM_PARALLEL": wishes.parallel,
            "OLLAMA_MODELS": settings.ollama.models,
            "OLLAMA_SCHED_SPREAD": None if settings.ollama.spread is None else int(settings.ollama.spread),
            "OLLAMA_NO_CLOUD": None if settings.flags.allow_cloud else 1,
        }
        return {name: str(value) for name, value in own.items() if value is not None}

    def attached(self, spec: ServerSpec) -> Ollama:
        found = self._look()
        return Ollama(self._settings, OllamaServer(self._settings, lambda: found, spec))

    async def load(self, spec: ServerSpec, weights: Tag | GgufImport) -> Loaded:
        import asyncio

        from llmdeploy.engines.ollama.api import Daemon

        daemon = Daemon(spec.base_url)
        naming = asyncio.ensure_future(asyncio.to_thread(_prepare_name, daemon, spec, weights))
        try:
            await asyncio.shield(naming)
        except asyncio.CancelledError:  # the thread continues, and `release` must find what it makes
            await asyncio.wait({naming})
            naming.exception()  # mark as retrieved; nobody needs it now
            raise
        await daemon.load(spec.served_name)
        return await asyncio.to_thread(self._loaded, daemon, spec)

    def _loaded(self, daemon: Daemon, spec: ServerSpec) -> Loaded:
        from llmdeploy.engines.ollama import state
        from llmdeploy.engines.ollama.documents import same_name

        found = next((one for one in daemon.running() if same_name(one.name, spec.served_name)), None)
        if found is None:  # a model in Ollama's cloud, or unloaded at once for another
            return Loaded(None, "loaded")
        wished, given = self._settings.context, found.context_length
        if wished is not None and given is not None and given < wished:
            raise DoesNotFit(
                f"Ollama gives `{spec.served_name}` a context of {given} tokens, not {wished}",
                f"set `OLLAMA_CONTEXT_LENGTH={wished}` where it is started ({hints(sys.platform)['environment']})",
            )
        size = next((one.size for one in daemon.models() if same_name(one.name, spec.model)), 0)
        return Loaded(given, f"{in_gib(found.size)} {state.processor(found, size)}")

    async def has_model(self, spec: ServerSpec) -> bool:
        import asyncio

        from llmdeploy.engines.ollama.api import Daemon
        from llmdeploy.engines.ollama.documents import same_name

        models = await asyncio.to_thread(Daemon(spec.base_url).models)
        return any(same_name(one.name, spec.served_name) for one in models)

    async def keep_loaded(self, spec: ServerSpec) -> None:
        import asyncio

        from llmdeploy.engines.ollama.api import Daemon
        from llmdeploy.engines.ollama.documents import same_name

        daemon = Daemon(spec.base_url)
        running = await asyncio.to_thread(daemon.running)
        ours = next((one for one in running if same_name(one.name, spec.served_name)), None)
        # If another model has taken the memory, this one comes back with its next request: do not fight over it.
        if ours.expires_soon if ours else not running:
            await daemon.load(spec.served_name)

    def release(self, base_url: str, served_name: str) -> None:
        from llmdeploy.engines.ollama import aliases
        from llmdeploy.engines.ollama.api import Daemon

        daemon = Daemon(base_url, patience=PATIENCE)
        try:
            daemon.unload(served_name)
            gone = daemon.wait_released(served_name, RELEASE_SECONDS)
        finally:
            aliases.delete_all(daemon)
        if not gone:
            raise TimedOut(f"Ollama still holds `{served_name}` in memory", f"`ollama stop {served_name}`")


def _prepare_name(daemon: Daemon, spec: ServerSpec, weights: Tag | GgufImport) -> None:
    """Make the server know the model by its served name. Raises AlreadyServing, ModelInvalid."""
    from llmdeploy.engines.ollama import aliases
    from llmdeploy.engines.ollama.documents import same_name
    from llmdeploy.models import digest

    aliases.delete_all(daemon)
    if same_name(spec.served_name, spec.model):
        return
    aliases.require_free(daemon, spec)
    files = weights.digests() if isinstance(weights, GgufImport) else {}
    checked = [path for path, sha256 in files.items() if digest.verified(path) == sha256]
    aliases.create(daemon, spec)
    for path in checked:  # Ollama has changed their times if they are linked into its store
        digest.save(path, files[path])


def _available(daemon: Daemon, hardware: Hardware) -> MemoryPart | None:
    """Return the memory that a model can have, with that of models which Ollama lets go; None for another machine."""
    from llmdeploy.plan import MemoryPart, free_memory

    if not daemon.is_local:
        return None
    free = free_memory(hardware, on_gpu=True)
    held = 0
    with suppress(EngineMissing):  # it is not started yet, so it holds nothing
        held = sum(one.size for one in daemon.running())
    if not held:
        return free
    reason = f"{free.reason}, and {in_gib(held)} of models that Ollama lets go for another"
    return MemoryPart(free.name, free.bytes + held, reason)
