"""Weights for Ollama: a model of its registry, or GGUF files that it imports."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmdeploy.errors import DownloadFailed, EngineMissing, ModelInvalid, NotPermitted, UsageError
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import OllamaTag
from llmdeploy.models.weights import GGUF, OLLAMA, Format

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.ollama.documents import Shown
    from llmdeploy.engines.ollama.imports import Import
    from llmdeploy.engines.ollama.registry import Manifest, Registry
    from llmdeploy.engines.ollama.server import OllamaServer
    from llmdeploy.models.facts import ModelFacts
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.source import OnProgress


@dataclass(frozen=True)
class Tag:
    """A model by its name at Ollama."""

    name: str
    server: OllamaServer = field(compare=False, repr=False)
    format: ClassVar[Format] = OLLAMA
    reused_from: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.name

    def references(self) -> tuple[str, ...]:
        return (str(OllamaTag(self.name)),)

    def model_name(self) -> str:
        """Return the name by which the server has the model."""
        return self.name

    def is_present(self) -> bool:
        if self.server.offline:
            return self.server.is_stored(self.name)
        with suppress(EngineMissing):  # it is not started yet
            return self.server.installed(self.name) is not None
        return False

    def requirements(self, folder: Path | None = None) -> Requirements:
        """Return the layers; none if the registry does not report them: the daemon may get the model all the same."""
        from llmdeploy.engines.ollama import requirements

        _refuse(folder)
        with suppress(EngineMissing):  # it is not started yet
            if one := self.server.installed(self.name):
                return requirements.of_installed(one, self.server.disk)
        try:
            return requirements.of_manifest(self._registered()[1], self.server.disk)
        except DownloadFailed as error:
            return requirements.of_unknown(self.name, self.server.disk, error.message)

    def download(self, on_progress: OnProgress, folder: Path | None = None) -> None:
        self.requirements(folder).require_room()
        self.server.api.pull(self.name, on_progress)

    def facts(self) -> ModelFacts:
        if self.is_present():
            return _facts(self.shown, self.name)
        registry, manifest = self._registered()
        return registry.facts(manifest)

    @cached_property
    def shown(self) -> Shown:
        """The server's report on the model. Raises ModelNotFound, ModelInvalid, NotPermitted."""
        return _shown(self.server, self.name)

    def local_files(self) -> tuple[Path, ...]:
        """Return nothing: Ollama's store may be anywhere."""
        return ()

    def revision(self) -> str | None:
        installed = self.server.installed(self.name)
        return installed.digest if installed else None

    def _registered(self) -> tuple[Registry, Manifest]:
        """Return the model at its registry. Raises DownloadFailed."""
        if isinstance(self._registry_answer, DownloadFailed):
            raise self._registry_answer
        return self._registry_answer

    @cached_property
    def _registry_answer(self) -> tuple[Registry, Manifest] | DownloadFailed:
        """The answer of the registry, which is asked once."""
        from llmdeploy.engines.ollama.registry import Registry

        registry = Registry(self.name)
        try:
            return registry, registry.manifest()
        except DownloadFailed as error:
            return error


@dataclass(frozen=True)
class GgufImport:
    """GGUF files that Ollama makes a model of."""

    model: GgufModel
    server: OllamaServer = field(compare=False, repr=False)
    format: ClassVar[Format] = GGUF

    def __str__(self) -> str:
        return str(self.model)

    def references(self) -> tuple[str, ...]:
        return self.model.references()

    @property
    def reused_from(self) -> str:
        return self.model.reused_from

    def model_name(self) -> str:
        """Return the name by which the server has the model, made of the content of its files."""
        return self._import.name()

    def digests(self) -> dict[Path, str]:
        """Return the SHA-256 of each file."""
        return self._import.digests()

    def is_present(self) -> bool:
        if self.server.offline:  # only the server knows what it was given
            return False
        with suppress(EngineMissing):  # it is not started yet
            return self._import.is_there()
        return False

    def requirements(self, folder: Path | None = None) -> Requirements:
        from llmdeploy.engines.ollama import requirements

        _refuse(folder)
        files = self.model.requirements()
        return requirements.with_copies(files, self._store_requirements(files))

    def download(self, on_progress: OnProgress, folder: Path | None = None) -> None:
        from llmdeploy.plan import require_length

        need = self.requirements(folder)
        need.require_room()
        if copies := self._store_requirements(need):
            copies.require_room()
        if not need.present:  # what is all here needs no source
            self.model.download(on_progress)
        require_length(self.model.facts(), self.server.settings.context)  # before Ollama is given anything
        self._import.make(on_progress)

    def facts(self) -> ModelFacts:
        return _facts(self.shown, self.model_name()) if self.is_present() else self.model.facts()

    @cached_property
    def shown(self) -> Shown:
        """The server's report on the model. Raises ModelNotFound, ModelInvalid, NotPermitted."""
        return _shown(self.server, self.model_name())

    def local_files(self) -> tuple[Path, ...]:
        return self.model.local_files()

    def revision(self) -> str | None:
        return self.model.revision()

    def _store_requirements(self, files: Requirements) -> Requirements | None:
        """Return what an import of the files takes of Ollama's store; None if it takes nothing."""
        from llmdeploy.engines.ollama import requirements

        with suppress(EngineMissing):
            if self._import.is_there():
                return None
        if self._import.can_link(files):
            return None
        here = [path.stat().st_size for path in self._import.files] if self.model.is_present() else None
        return requirements.of_import(files.source, sum(here) if here else files.size, self.server.disk)

    @property
    def _import(self) -> Import:
        from llmdeploy.engines.ollama.imports import Import

        return Import(self.server.api, self.server.store, self.model)


def require_cloud(settings: Settings, name: str, host: str) -> None:
    """Raise NotPermitted for a model that runs at `host`, unless the user allows it."""
    if not settings.flags.allow_cloud:
        raise NotPermitted(
            f"`{name}` runs at {host}, not here: the prompts would leave this machine",
            f"`llmdeploy serve {name} --engine ollama --allow-cloud` allows it",
            code="cloud_model",
        )


def thinks(weights: Tag | GgufImport) -> bool:
    """Return whether the model knows of reasoning; an old Ollama does not report it, so the answer is yes there."""
    capabilities = weights.shown.capabilities
    return "thinking" in capabilities or not capabilities


def _refuse(folder: Path | None) -> None:
    """Raise UsageError for a folder of the user's."""
    if folder is not None:
        raise UsageError(
            "Ollama keeps all models in one store, so `--dir` is not for it",
            "leave `--dir` out; another store: set `OLLAMA_MODELS`, here and where Ollama is started",
        )


def _shown(server: OllamaServer, name: str) -> Shown:
    shown = server.api.show(name)
    if shown.remote_host:
        require_cloud(server.settings, name, shown.remote_host)
    if shown.capabilities and "completion" not in shown.capabilities:
        raise ModelInvalid(f"`{name}` cannot chat: it makes embeddings", "take a model that chats: `qwen3:8b`")
    return shown


def _facts(shown: Shown, name: str) -> ModelFacts:
    from llmdeploy.models.facts import UNKNOWN_LENGTH, ModelFacts

    known = {"completion": "text", "vision": "image"}
    capabilities = [known.get(it, it) for it in shown.capabilities or ("completion",)]
    if not shown.capabilities and shown.projector:  # an Ollama that does not report capabilities
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
        source=f"`ollama show {name}`",
    )
