"""Ollama: the engine for development. It is attached to where it runs, started where it does not, and never fought.

The model is served under the user's own name: an alias with the plan's context, which shares the weights and goes when
the deployment ends. A name that is Ollama's own already is served as it is, with the context that Ollama gives it: what
is the user's is never rewritten.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmdeploy import paths
from llmdeploy.engines import diagnosis as engine_failures
from llmdeploy.engines.base import EngineStatus, Loaded, Request, ServerSpec
from llmdeploy.engines.llamacpp.engine import compute_buffer
from llmdeploy.engines.ollama import dialect, failures, requirements, state
from llmdeploy.engines.ollama.api import Daemon
from llmdeploy.engines.ollama.documents import Installed, Shown, same_name
from llmdeploy.engines.ollama.hints import hints
from llmdeploy.engines.ollama.imports import Import
from llmdeploy.engines.ollama.registry import Manifest, Registry
from llmdeploy.engines.phases import Phases
from llmdeploy.errors import (
    AlreadyServing,
    DoesNotFit,
    DownloadFailed,
    EngineMissing,
    LlmdeployError,
    ModelInvalid,
    NotPermitted,
    Remedy,
    TimedOut,
    UsageError,
)
from llmdeploy.models import digest, gguf, reuse, source
from llmdeploy.models.catalog import lookup
from llmdeploy.models.facts import UNKNOWN_LENGTH, ModelFacts
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import CatalogName, ModelRef, OllamaTag
from llmdeploy.models.stores.ollama import MARK, full_name
from llmdeploy.plan import DEFAULT_CONTEXT, MemoryPart, Plan, Setting, Wishes, free_memory, make_plan, require_length
from llmdeploy.units import in_gib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmdeploy.config import Settings
    from llmdeploy.hardware import Hardware
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.source import OnProgress

CLOUD = re.compile(r":([^/:]*-)?cloud$", re.IGNORECASE)
"""The end of a name, by Ollama's own rule: of a tag, and in any case."""
PATIENCE = 2.0
"""Seconds for each answer where a deployment ends."""
RELEASE_SECONDS = 4.0
"""For the memory to be free once it was asked for; less than `stop` waits."""
GIVING_UP = "Error: "
"""How the last line of a daemon begins that cannot go on."""


def engine(settings: Settings) -> Ollama:
    return Ollama(settings)


@dataclass(frozen=True)
class Tag:
    """A model by its name at Ollama."""

    name: str

    def __str__(self) -> str:
        return self.name


class Ollama:
    name = "ollama"
    side_by_side = False
    lacks: Mapping[str, tuple[str, ...]] = MappingProxyType(
        {
            "/v1/chat/completions": ("n", "logit_bias"),
            "/v1/completions": ("n", "logit_bias", "best_of", "echo", "logprobs"),
        }
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state: state.State | None = None
        self._ours = False
        self._url = ""
        self._imported: Import | None = None
        self._manifests: dict[str, tuple[Registry, Manifest] | DownloadFailed] = {}
        self._thinks = True

    def status(self) -> EngineStatus:
        self._state = state.detect(self._settings)
        return state.describe(self._state)

    def daemon(self, wishes: Wishes, port: int) -> ServerSpec:
        found = self._state or state.detect(self._settings)
        self._ours = found.probe.state == "refused"
        self._url = f"http://127.0.0.1:{port}" if self._ours else found.host.url
        if not self._ours:
            return ServerSpec((), self._url, "/api/version")
        if found.program is None:
            raise EngineMissing(found.probe.detail, state.describe(found).hint)
        return ServerSpec((str(found.program), "serve"), self._url, "/api/version", env=self._environment(wishes, port))

    def _environment(self, wishes: Wishes, port: int) -> dict[str, str]:
        """Of a daemon that we start; the user's own variables of Ollama hold where we have nothing to say."""
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

    def artefact(self, model: ModelRef, *, anywhere: bool = True) -> Tag | GgufModel:
        if isinstance(model, OllamaTag):
            return self._tag(model.name)
        if not isinstance(model, CatalogName):
            return gguf.find(model, self._settings)
        entry = lookup.get(model.name)
        if entry is None:
            return self._tag(model.name)
        if entry.ollama is None:
            return gguf.find(model, self._settings)
        tag = self._tag(entry.ollama)
        return (self._local_instead(model, tag) if anywhere else None) or tag

    def _local_instead(self, model: CatalogName, tag: Tag) -> GgufModel | None:
        """The catalog's GGUF files for that model, where they are on this machine and Ollama has not the tag."""
        local = reuse.for_ollama(model, self._settings)
        if local is None:
            return None
        try:
            return local if self._api().is_local and self._installed(tag) is None else None
        except LlmdeployError:  # it does not run yet: what it has is not known
            return None

    def _tag(self, name: str) -> Tag:
        if CLOUD.search(name):
            self._require_cloud(name, "ollama.com")
        return Tag(name)

    def present(self, artefact: Tag | GgufModel) -> bool:
        with suppress(EngineMissing):  # it is not started yet
            if isinstance(artefact, GgufModel):
                return self._import(artefact).is_there()
            return self._installed(artefact) is not None
        return False

    def _installed(self, tag: Tag) -> Installed | None:
        return next((one for one in self._api().models() if same_name(one.name, tag.name)), None)

    def need(self, artefact: Tag | GgufModel, folder: Path | None = None) -> Requirements:
        """Of a tag that the registry does not tell of, no sizes are known: the daemon may get it all the same."""
        if folder is not None:
            raise UsageError(
                "Ollama keeps all models in one store, so `--dir` is not for it",
                "leave `--dir` out; another store: set `OLLAMA_MODELS`, here and where Ollama is started",
            )
        if isinstance(artefact, GgufModel):
            files = artefact.need()
            return requirements.with_copies(files, self._store_need(artefact, files))
        with suppress(EngineMissing):  # it is not started yet
            if one := self._installed(artefact):
                return requirements.of_installed(one, self._disk)
        try:
            return requirements.of_manifest(self._registered(artefact.name)[1], self._disk)
        except DownloadFailed as error:
            return requirements.of_unknown(artefact.name, self._disk, error.message)

    def pull(self, artefact: Tag | GgufModel, on_progress: OnProgress, folder: Path | None = None) -> None:
        need = self.need(artefact, folder)
        need.require_room()
        if isinstance(artefact, GgufModel):
            if taken := self._store_need(artefact, need):
                taken.require_room()
            if not need.present:  # what is all here needs no source
                artefact.pull(on_progress)
            require_length(artefact.facts(), self._settings.context)  # before Ollama is given anything
            self._import(artefact).make(on_progress)
        else:
            self._api().pull(artefact.name, on_progress)

    def _store_need(self, model: GgufModel, files: Requirements) -> Requirements | None:
        """What an import of the files takes of Ollama's store; None where it takes nothing."""
        made = self._import(model)
        with suppress(EngineMissing):
            if made.is_there():
                return None
        if made.can_link(files):
            return None
        here = [path.stat().st_size for path in made.files] if model.present() else None
        return requirements.of_import(files.source, sum(here) if here else files.size, self._disk)

    def _import(self, model: GgufModel) -> Import:
        return Import(self._api(), self._store, model)

    @property
    def _store(self) -> Path:
        """Where the daemon's store is, it tells where it has a model; else the variables tell where it should be."""
        named = (self._ours and self._settings.ollama.models) or os.environ.get("OLLAMA_MODELS")
        found = self._state.store if self._state and not self._ours else None
        return found or Path(named or Path.home() / ".ollama" / "models")

    @property
    def _disk(self) -> Path | None:
        """The store, for its room; None where it is another machine's, or nobody knows where."""
        state = self._state
        if not self._api().is_local:
            return None
        if self._ours or state is None or state.store or not state.owner or "OLLAMA_MODELS" in os.environ:
            return self._store
        home = os.path.expanduser(f"~{state.owner}")
        return Path(home) / ".ollama" / "models" if os.path.isabs(home) else None

    def _registered(self, name: str) -> tuple[Registry, Manifest]:
        """The model at its registry, which is asked once, whatever the answer. Raises DownloadFailed."""
        if name not in self._manifests:
            registry = Registry(name)
            try:
                self._manifests[name] = registry, registry.manifest()
            except DownloadFailed as error:
                self._manifests[name] = error
        known = self._manifests[name]
        if isinstance(known, DownloadFailed):
            raise known
        return known

    def facts(self, artefact: Tag | GgufModel) -> ModelFacts:
        if not self.present(artefact):
            if isinstance(artefact, GgufModel):
                return artefact.facts()
            registry, manifest = self._registered(artefact.name)
            return registry.facts(manifest)
        name = self._model(artefact)
        shown = self._api().show(name)
        if shown.remote_host:
            self._require_cloud(name, shown.remote_host)
        if shown.capabilities and "completion" not in shown.capabilities:
            raise ModelInvalid(f"`{name}` cannot chat: it makes embeddings", "take a model that chats: `qwen3:8b`")
        self._thinks = "thinking" in shown.capabilities or not shown.capabilities  # an old one does not tell
        return _facts(shown, f"`ollama show {name}`")

    def _model(self, artefact: Tag | GgufModel) -> str:
        return self._import(artefact).name() if isinstance(artefact, GgufModel) else artefact.name

    def _require_cloud(self, name: str, host: str) -> None:
        if not self._settings.flags.allow_cloud:
            raise NotPermitted(
                f"`{name}` runs at {host}, not here: the prompts would leave this machine",
                f"`llmdeploy serve {name} --engine ollama --allow-cloud` allows it",
                code="cloud_model",
            )

    def saved(self, artefact: Tag | GgufModel) -> str | None:
        return (isinstance(artefact, GgufModel) and artefact.saved) or None

    def files(self, artefact: Tag | GgufModel) -> tuple[Path, ...]:
        """Of a tag none: Ollama's store may be anywhere."""
        return artefact.local_files() if isinstance(artefact, GgufModel) else ()

    def revision(self, artefact: Tag | GgufModel) -> str | None:
        if isinstance(artefact, GgufModel):
            return source.commit_of(artefact.local_files())
        installed = self._installed(artefact)
        return installed.digest if installed else None

    def plan(self, facts: ModelFacts, hardware: Hardware, wishes: Wishes) -> Plan:
        named = os.environ.get("OLLAMA_NUM_PARALLEL", "").strip(" \"'")
        if not self._ours:
            parallel = Setting(1, "at least: Ollama was started with a number of its own, `OLLAMA_NUM_PARALLEL`")
        elif wishes.parallel is not None:
            parallel = Setting(wishes.parallel, "as asked for")
        elif named.isdecimal() and int(named):  # of a malformed one Ollama warns
            parallel = Setting(int(named), "`OLLAMA_NUM_PARALLEL`")
        else:
            parallel = Setting(1, "Ollama's default")
        return make_plan(
            facts, wishes, self._available(hardware), overhead=(compute_buffer(facts),), parallels=(parallel,)
        )

    def _available(self, hardware: Hardware) -> MemoryPart | None:
        daemon = self._api()
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

    def server(self, artefact: Tag | GgufModel, plan: Plan, *, served_name: str, port: int) -> ServerSpec:
        """Raises AlreadyServing and ModelInvalid too: what has that name already must not be released for us."""
        spec = ServerSpec(
            argv=(),
            base_url=self._url,
            health_path="/api/version",
            served_name=served_name,
            model=self._model(artefact),
            context=plan.context.value,
        )
        _require_name(self._api(), spec)
        self._imported = self._import(artefact) if isinstance(artefact, GgufModel) else None
        return spec

    def progress(self) -> Phases:
        return Phases(())

    def repaired(self, remedy: Remedy) -> None:
        """It fits a model to the memory by itself."""

    async def load(self, spec: ServerSpec) -> Loaded:
        import asyncio

        daemon = Daemon(spec.base_url)
        naming = asyncio.ensure_future(asyncio.to_thread(self._prepare_name, daemon, spec))
        try:
            await asyncio.shield(naming)
        except asyncio.CancelledError:  # its thread goes on, and `release` must find what it makes
            await asyncio.wait({naming})
            naming.exception()  # which nobody wants to know now
            raise
        await daemon.load(spec.served_name)
        return await asyncio.to_thread(self._loaded, daemon, spec)

    def _prepare_name(self, daemon: Daemon, spec: ServerSpec) -> None:
        """Have the daemon know the model by the name that it is served as. Raises AlreadyServing, ModelInvalid."""
        _delete_aliases(daemon)
        if same_name(spec.served_name, spec.model):
            return
        _require_name(daemon, spec)
        files = self._imported.digests() if self._imported else {}
        daemon.create_alias(spec.served_name, spec.model, {"num_ctx": spec.context}, license=_mark(spec.served_name))
        for path, sha256 in files.items():  # Ollama has set their times, where they are linked into its store
            digest.save(path, sha256)

    def _loaded(self, daemon: Daemon, spec: ServerSpec) -> Loaded:
        found = next((one for one in daemon.running() if same_name(one.name, spec.served_name)), None)
        if found is None:  # a model of Ollama's cloud, or let go for another at once
            return Loaded(None, "loaded")
        wished, given = self._settings.context, found.context_length
        if wished is not None and given is not None and given < wished:
            raise DoesNotFit(
                f"Ollama gives `{spec.served_name}` a context of {given} tokens, not {wished}",
                f"set `OLLAMA_CONTEXT_LENGTH={wished}` where it is started ({hints(sys.platform)['environment']})",
            )
        size = next((one.size for one in daemon.models() if same_name(one.name, spec.model)), 0)
        where = state.processor(found, size)
        return Loaded(given, f"{in_gib(found.size)} {where}")

    async def keep(self, spec: ServerSpec) -> None:
        import asyncio

        daemon = Daemon(spec.base_url)
        running = await asyncio.to_thread(daemon.running)
        ours = next((one for one in running if same_name(one.name, spec.served_name)), None)
        # Where another model has taken the room, ours comes back with its next request: to insist would be a fight.
        if ours.expires_soon if ours else not running:
            await daemon.load(spec.served_name)

    def release(self, base_url: str, served_name: str) -> None:
        daemon = Daemon(base_url, patience=PATIENCE)
        try:
            daemon.unload(served_name)
            gone = daemon.wait_released(served_name, RELEASE_SECONDS)
        finally:
            _delete_aliases(daemon)
        if not gone:
            raise TimedOut(f"Ollama still holds `{served_name}` in memory", f"`ollama stop {served_name}`")

    def adapt(self, request: Request) -> Request:
        return dialect.adapt(request, thinks=self._thinks)

    def diagnose(self, log: Sequence[str], exit: engine_failures.Exit) -> engine_failures.Diagnosis | None:
        if isinstance(exit, engine_failures.Unreachable):
            start = hints(sys.platform)["start"]
            cause = f"Ollama at `{exit.url}` has not answered for {exit.seconds:g} s"
            return engine_failures.Diagnosis(cause, f"start it: {start}")
        if found := engine_failures.by_signal(exit.status):
            return found
        # Its log tells of each model's end too: only what it says as it gives up is a cause of its own.
        last = next((line for line in reversed(log) if line.startswith(GIVING_UP)), None)
        if last is None:
            return None
        error = failures.explain(last.removeprefix(GIVING_UP))
        return engine_failures.Diagnosis(error.message, error.hint)

    def _api(self) -> Daemon:
        if not self._url:
            self._url = (self._state or state.detect(self._settings)).host.url
        version = self._state.program_version if self._state else None
        return Daemon(self._url, program_version=version)


def _facts(shown: Shown, source: str) -> ModelFacts:
    known = {"completion": "text", "vision": "image"}
    capabilities = [known.get(it, it) for it in shown.capabilities or ("completion",)]
    if not shown.capabilities and shown.projector:  # an Ollama that does not tell
        capabilities.append("image")
    return ModelFacts(
        architecture=shown.architecture or "unknown",
        weights_bytes=shown.size or 0,
        kv_heads=shown.kv_heads,
        key_length=shown.key_length or 0,
        value_length=shown.value_length or 0,
        embedding_length=shown.embedding_length or 0,
        vocabulary_size=shown.vocabulary_size or 0,
        context_length=shown.context_length or UNKNOWN_LENGTH,
        capabilities=tuple(capabilities),
        source=source,
    )


def _require_name(daemon: Daemon, spec: ServerSpec) -> None:
    """Raises AlreadyServing, ModelInvalid where the name that it is to be served as is another's."""
    name = spec.served_name
    if not any(same_name(one.name, name) for one in daemon.models()):
        return
    license = daemon.show(name).license
    # A name of Ollama's own is served as it is; an alias that a llmdeploy made for itself is no such name.
    free = _beginning(name) not in license if same_name(name, spec.model) else _mark(name) in license
    if not free:
        raise _taken(name, license)


def _taken(name: str, license: str) -> LlmdeployError:
    if _beginning(name) in license:
        where = license.partition(_beginning(name))[2].removesuffix(".")
        return AlreadyServing(
            f"another llmdeploy serves `{name}` on this Ollama ({where})",
            f"stop that one; where it is gone: `ollama rm {name}`",
        )
    return ModelInvalid(
        f"Ollama has another model that is called `{name}`, and llmdeploy overwrites none",
        f"give that one another name: `ollama cp {name} {name}-mine && ollama rm {name}`",
    )


def _mark(alias: str) -> str:
    """A text that goes with an alias of this service's: there is one service for each state folder.

    It names the alias and has an end: what the user copied or made from it has the text too, and is the user's.
    """
    return f"{_beginning(alias)}state folder {paths.state_dir()} of {socket.gethostname()}."


def _beginning(alias: str) -> str:
    return f"{MARK} as {full_name(alias)}, "


def _delete_aliases(daemon: Daemon) -> None:
    """Remove the aliases of this service: that of now, and what a crash has left."""
    for one in daemon.models():
        if one.parent and _mark(one.name) in daemon.show(one.name).license:
            daemon.delete(one.name)
