"""A model as GGUF files, which llama.cpp runs and Ollama can import."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from llmdeploy.config import DEFAULT, Settings
from llmdeploy.errors import DownloadFailed, ModelNotFound
from llmdeploy.models import facts, lock, quantization, requirements, source
from llmdeploy.models.catalog import lookup
from llmdeploy.models.quantization import Choice, find_mmproj
from llmdeploy.models.reference import HUB_HOSTS, CatalogName, HubFile, HubRepo, ModelRef, OllamaTag
from llmdeploy.models.requirements import Requirements
from llmdeploy.models.source import Listing, OnProgress, RemoteFile
from llmdeploy.models.weights import GGUF, Format


@dataclass(frozen=True)
class GgufModel:
    """The files of one model, here or still in a repository."""

    weights: Path | HubFile | HubRepo
    """A file (the first one of a model in parts), or a repository with the quantization of the files to take."""
    mmproj: Path | HubFile | None = None
    """The vision projector; None for the one that belongs to the weights in their repository, if there is one."""
    reused_from: str = field(default="", compare=False)
    """A sentence on the other program's files that these are; empty when nothing is reused."""
    instead_of: tuple[str, ...] = field(default=(), compare=False)
    """References of the files that these replace, if they are reused."""
    format: ClassVar[Format] = GGUF

    def __str__(self) -> str:
        return " + ".join(str(file) for file in self.files)

    def references(self) -> tuple[str, ...]:
        return self.instead_of or tuple(map(str, self.files))

    @property
    def files(self) -> tuple[Path | HubFile | HubRepo, ...]:
        """Files that are named, here or at their source."""
        return (self.weights, self.mmproj) if self.mmproj else (self.weights,)

    def is_present(self) -> bool:
        """Return whether all files are on this machine. Uses no network."""
        return self._located is not None

    def requirements(self, folder: Path | None = None) -> Requirements:
        """Return the files and what is missing in the cache, or in `folder`. Raises DownloadFailed, ModelNotFound."""
        from llmdeploy.models import transfer

        try:
            if self._home:
                return replace(transfer.need(self._listing, self._remote, folder), source=str(self._home))
        except DownloadFailed:
            if folder or not self._located:  # a model that is complete here needs no source
                raise
        return requirements.of_local_files(str(self._home or self.weights), self.local_files())

    def download(self, on_progress: OnProgress, folder: Path | None = None) -> None:
        """Download the missing files. Raises DownloadFailed, ModelNotFound."""
        from llmdeploy.models import transfer

        if self._home:
            transfer.fetch(self._listing, self._remote, on_progress, folder)

    def paths(self) -> tuple[Path, Path | None]:
        """Return the weights (the first part if there are several) and the projector. Raises ModelNotFound."""
        if (here := self._located) is None:
            raise ModelNotFound(f"`{self.weights}` is not on this machine", "`llmdeploy serve` fetches it")
        return here.weights[0], here.mmproj

    def local_files(self) -> tuple[Path, ...]:
        """Return all files; empty unless all are on this machine."""
        here = self._located
        return () if here is None else (*here.weights, *([here.mmproj] if here.mmproj else []))

    def revision(self) -> str | None:
        return source.commit_of(self.local_files())

    def facts(self) -> facts.ModelFacts:
        """Read the headers, here or at the source. Raises ModelNotFound, ModelInvalid, DownloadFailed."""
        if self._home is None or self.is_present():
            return facts.read_gguf(*self.paths())
        choice = self._choice([file.path for file in self._listing.files])
        weights, mmproj = self._at_commit(choice.weights[0]), choice.mmproj and self._at_commit(choice.mmproj)
        return facts.read_gguf(weights, mmproj or (self.mmproj if isinstance(self.mmproj, Path) else None))

    @property
    def _home(self) -> HubRepo | None:
        """Repository of the files; None for files of the user."""
        return None if isinstance(self.weights, Path) else self.weights.home

    @property
    def _located(self) -> _Located | None:
        """Places of the files; None unless all are on this machine."""
        if isinstance(self.weights, Path):
            return _Located((self.weights,), self.mmproj if isinstance(self.mmproj, Path) else None)
        assert self._home
        held = source.origin(self._home.source).cached_paths(self._home)
        if not held:  # the usual case, and the choice takes longer than the look
            return None
        try:
            choice = self._choice(held)
        except ModelNotFound:
            return None
        if not set(choice.paths) <= set(held):
            return None
        mmproj = self._cached(choice.mmproj) if choice.mmproj else self.mmproj
        return _Located(tuple(map(self._cached, choice.weights)), mmproj if isinstance(mmproj, Path) else None)

    def _cached(self, path: str) -> Path:
        """Return the place of a file that the cache has."""
        assert self._home
        found = source.cached(HubFile(self._home.repo, path, self._home.revision, self._home.source))
        assert found
        return found

    def _at_commit(self, path: str) -> HubFile:
        """Return a file at the commit of the listing: the repository may change meanwhile."""
        assert self._home
        return HubFile(self._home.repo, path, self._listing.commit, self._home.source)

    @cached_property
    def _listing(self) -> Listing:
        """Listing of the repository, asked for once, so that all files are of the same commit."""
        assert self._home
        return source.origin(self._home.source).listing(self._home)

    @property
    def _remote(self) -> tuple[RemoteFile, ...]:
        paths = [file.path for file in self._listing.files]
        return source.chosen(self._listing, self._choice(paths).paths)

    def _choice(self, paths: Sequence[str]) -> Choice:
        """Choose the files among those paths. Raises ModelNotFound."""
        if isinstance(self.weights, HubRepo):
            if not any(path.lower().endswith(".gguf") for path in paths):
                raise self._no_gguf(any(path.endswith(".safetensors") for path in paths))
            choice = quantization.choose(paths, self.weights.quant, f"`{self.weights.repo}`")
        else:
            assert isinstance(self.weights, HubFile)
            choice = quantization.belonging(self.weights.file, paths)
        match self.mmproj:
            case Path():
                return replace(choice, mmproj=None)
            case HubFile():
                return replace(choice, mmproj=self.mmproj.file)
        return choice

    def _no_gguf(self, runs_on_vllm: bool) -> ModelNotFound:
        assert isinstance(self.weights, HubRepo)
        other = f"name a repository of GGUF files, `{self.weights.repo}-GGUF` perhaps"
        if not runs_on_vllm:
            return ModelNotFound(f"`{self.weights}` holds no model that an engine here runs", other)
        return ModelNotFound(
            f"`{self.weights}` holds no GGUF file; as a whole it runs on vLLM",
            f"`llmdeploy serve {self._home} --engine vllm`, or {other}",
        )


@dataclass(frozen=True)
class _Located:
    """The places of a model's files on this machine."""

    weights: tuple[Path, ...]
    mmproj: Path | None


def find(model: ModelRef, settings: Settings = DEFAULT, *, offline: bool = False) -> GgufModel:
    """Return the files of a model, with the projector that the settings name. Raises ModelNotFound.

    `offline`: also for a repository that is not here and is not named as one of GGUF files.
    """
    found, mmproj = _files(model, settings), settings.flags.mmproj
    if offline and isinstance(model, HubRepo | Path):
        _require_name_of_gguf(model, found)
    if mmproj is None:
        return found
    if not mmproj.is_file():
        raise ModelNotFound(f"there is no file `{mmproj}`", "give the vision projector's path with `--mmproj`")
    return replace(found, mmproj=mmproj)


def _require_name_of_gguf(model: HubRepo | Path, found: GgufModel) -> None:
    """Raise ModelNotFound for a folder, and for a repository that by its name does not hold GGUF files."""
    if isinstance(model, Path):
        if model.is_dir():
            raise ModelNotFound(f"`{model}` is a folder, not a GGUF file", "give the GGUF file in it")
    elif not (model.quant or model.repo.lower().endswith("gguf") or found.is_present()):
        other = f"name a repository of GGUF files, `{model.repo}-GGUF` perhaps"
        raise ModelNotFound(f"`{model}` is not named as a repository of GGUF files", other)


def _files(model: ModelRef, settings: Settings) -> GgufModel:
    match model:
        case Path():
            if (model / "config.json").is_file():
                raise ModelNotFound(
                    f"`{model}` is a folder: a model in Hugging Face form, which runs on vLLM",
                    f"`llmdeploy serve {shlex.quote(str(model))} --engine vllm`, or give a GGUF file",
                )
            return GgufModel(model, find_mmproj(model))
        case HubRepo() | HubFile():
            return GgufModel(lock.pinned(model, model, settings))
        case CatalogName():
            entry = lookup.find(model.name)
            weights, mmproj = entry.weights, entry.mmproj
            if isinstance(weights, Path):
                return GgufModel(weights, mmproj)
            return source.first_here(
                GgufModel(
                    lock.pinned(model, source.at(weights, hub), settings),
                    lock.pinned(model, source.at(mmproj, hub), settings) if isinstance(mmproj, HubFile) else mmproj,
                )
                for hub in lock.hubs(model, weights, settings)
            )
        case OllamaTag():
            return GgufModel(_repository(model))


def _repository(tag: OllamaTag) -> HubRepo:
    """Return the repository of a tag such as `hf.co/owner/repo:Q4_K_M`. Raises ModelNotFound for any other tag."""
    if not tag.name.startswith(HUB_HOSTS):
        raise ModelNotFound(
            f"`{tag}` is a model of Ollama's", f"serve it there: `llmdeploy serve {tag} --engine ollama`"
        )
    repo, _, quant = tag.name.partition("/")[2].partition(":")
    return HubRepo(repo, quant="" if quant == "latest" else quant)
