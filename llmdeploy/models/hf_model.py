"""A model in Hugging Face form: config.json, safetensors and a tokenizer, in a folder here or in a Hub repository."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llmdeploy.config import DEFAULT, Settings
from llmdeploy.errors import DownloadFailed, ModelInvalid, ModelNotFound
from llmdeploy.models import hf_facts, lock, requirements, source
from llmdeploy.models.catalog import lookup
from llmdeploy.models.facts import ModelFacts
from llmdeploy.models.hf_facts import CONFIG
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, ModelRef, OllamaTag
from llmdeploy.models.requirements import Requirements
from llmdeploy.models.safetensors import INDEX, indexed
from llmdeploy.models.source import Listing, OnProgress, RemoteFile
from llmdeploy.models.weights import HF, MLX, Format
from llmdeploy.paths import selftest_dir

if TYPE_CHECKING:
    from llmdeploy.models.remote_code import RemoteCode

WANTED = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")
"""Files that vLLM reads besides the weights. Others, such as `*.bin` and `*.gguf`, have the same weights again."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    "python -c 'import glob, torch; from safetensors.torch import save_file; "
    '[save_file({name: it.clone() for name, it in torch.load(file, "cpu", weights_only=True).items()}, '
    'file.removesuffix("SUFFIX") + "safetensors", {"format": "pt"}) for file in glob.glob("*.SUFFIX")]\''
)
"""Command that writes pickles as safetensors, without running code that they hold."""
TOKENIZERS = ("token*", "vocab*", "tekken*", "*.model", "*.tiktoken")
"""Patterns of tokenizer files: every kind of tokenizer has a file that matches one of them."""


@dataclass(frozen=True)
class HfModel:
    """The files of one model in Hugging Face form."""

    location: Path | HubRepo
    reused_from: ClassVar[str] = ""

    def __str__(self) -> str:
        return str(self.location)

    @cached_property
    def format(self) -> Format:
        """Hugging Face form, or MLX if a configuration on this machine says so."""
        config = self.location / CONFIG if isinstance(self.location, Path) else self._cached(CONFIG)
        return MLX if config and hf_facts.is_mlx(config) else HF

    def references(self) -> tuple[str, ...]:
        return (str(self),)

    def is_present(self) -> bool:
        """Return whether all files are on this machine. Uses no network."""
        if isinstance(self.location, Path):
            return True
        return self._cached(CONFIG) is not None and self._has_weights() and _has_tokenizer(_names(self.folder))

    def requirements(self, folder: Path | None = None) -> Requirements:
        """Return the files and what is missing in the cache, or in `folder`. Raises DownloadFailed, ModelNotFound."""
        from llmdeploy.models import transfer

        try:
            if isinstance(self.location, HubRepo):
                return replace(transfer.need(self._listing, self._remote, folder), source=str(self))
        except DownloadFailed:
            if folder or not self.is_present():  # a model that is complete here needs no source
                raise
        held = wanted(_names(self.folder), f"`{self}`")
        return requirements.of_local_files(str(self), [self.folder / name for name in held])

    def download(self, on_progress: OnProgress, folder: Path | None = None) -> None:
        """Download the missing files. Raises DownloadFailed, ModelNotFound."""
        from llmdeploy.models import transfer

        if isinstance(self.location, HubRepo):
            transfer.fetch(self._listing, self._remote, on_progress, folder)

    @cached_property
    def _listing(self) -> Listing:
        """Listing of the repository, asked for once, so that all files are of the same commit."""
        assert isinstance(self.location, HubRepo)
        return source.origin(self.location.source).listing(self.location)

    @property
    def _remote(self) -> tuple[RemoteFile, ...]:
        return source.chosen(self._listing, wanted((file.path for file in self._listing.files), f"`{self}`"))

    @property
    def folder(self) -> Path:
        """Folder of the files. Raises ModelNotFound."""
        if isinstance(self.location, Path):
            return self.location
        if config := self._cached(CONFIG):
            return config.parent
        raise ModelNotFound(f"`{self}` is not on this machine", "`llmdeploy serve` fetches it")

    def facts(self) -> ModelFacts:
        """Read the files here, or their headers at the source. Raises ModelNotFound, ModelInvalid, DownloadFailed."""
        return hf_facts.read(self._files())

    def require_tokenizer(self) -> None:
        """Raise ModelInvalid if there is no tokenizer: vLLM would serve without one, and answer with garbage."""
        if not _has_tokenizer(self._files().names()):
            where = self.folder if self.is_present() else self
            raise ModelInvalid(
                f"`{where}` holds no tokenizer", "put the model's own there: `tokenizer.json` in most cases"
            )

    def require_weights(self) -> None:
        """Raise ModelNotFound unless there are safetensors: pickle files are not loaded, as they can hold code."""
        wanted(self._files().names(), f"`{self}`")

    def _files(self) -> hf_facts.Files:
        if isinstance(self.location, HubRepo) and not self.is_present():
            return hf_facts.Repository(self._listing)
        return hf_facts.Folder(self.folder)

    def revision(self) -> str | None:
        return source.commit_of(self.local_files())

    def local_files(self) -> tuple[Path, ...]:
        """Return the configuration and the weights; empty unless the model is complete here."""
        if not self.is_present():
            return ()
        return (self.folder / CONFIG, *sorted(_weights(self.folder)))

    def remote_code(self, revision: str = "main") -> RemoteCode:
        """Return the code that comes with the model. `revision`: that of other repositories. Raises ModelInvalid."""
        from llmdeploy.models import remote_code

        return remote_code.find(self.folder, revision)

    def _has_weights(self) -> bool:
        weights = {path.name for path in _weights(self.folder)}
        named = indexed(self._cached(INDEX))
        return bool(weights) and (named <= weights or bool(_consolidated(weights))) and _whole(weights)

    def _cached(self, name: str) -> Path | None:
        assert isinstance(self.location, HubRepo)
        return source.cached(HubFile(self.location.repo, name, self.location.revision, self.location.source))


def find(model: ModelRef, settings: Settings = DEFAULT, *, offline: bool = False) -> HfModel:
    """Return the model in Hugging Face form. Raises ModelNotFound.

    `offline`: also for a folder without a configuration, and for a repository of GGUF files by its name.
    """
    found = _find(model, settings)
    if offline and isinstance(model, Path) and not (model / CONFIG).is_file():
        raise ModelNotFound(f"the folder `{model}` holds no `{CONFIG}`", "give a folder with one, and safetensors")
    if offline and isinstance(model, HubRepo) and model.repo.lower().endswith("gguf") and not found.is_present():
        raise ModelNotFound(f"`{model}` is named as a repository of GGUF files", "name the one of the original model")
    return found


def _find(model: ModelRef, settings: Settings) -> HfModel:
    match model:
        case CatalogName():
            entry = lookup.find(model.name)
            if entry.hf_folder:
                return HfModel(selftest_dir() / entry.hf_folder)
            if entry.hub:
                repo = HubRepo(entry.hub)
                return source.first_here(
                    HfModel(lock.pinned(model, source.at(repo, hub), settings))
                    for hub in lock.hubs(model, repo, settings)
                )
        case HubRepo(quant=""):
            return HfModel(lock.pinned(model, model, settings))
        case HubRepo():
            raise ModelNotFound(
                f"`{model}` names GGUF files, which vLLM does not take",
                f"serve them elsewhere: `llmdeploy serve {model} --engine llamacpp`; "
                f"for vLLM name a repository without `:{model.quant}`",
            )
        case Path():
            if model.is_dir():
                return HfModel(model)
            if not model.exists():
                raise ModelNotFound(f"there is no `{model}`", "give a folder with a `config.json` and safetensors")
        case HubFile() | OllamaTag():
            pass
    raise ModelNotFound(
        f"`{model}` is not a model in Hugging Face form, which vLLM needs",
        f"serve it elsewhere: `llmdeploy serve {shlex.quote(str(model))} --engine llamacpp`; "
        "for vLLM give `owner/repo` or a folder",
    )


def _has_tokenizer(names: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for name in names for pattern in TOKENIZERS)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _weights(folder: Path) -> list[Path]:
    """Return the safetensors files that vLLM loads."""
    return [folder / name for name in hf_facts.weights([file.name for file in folder.glob("*.safetensors")])]


def wanted(names: Iterable[str], where: str = "the repository") -> list[str]:
    """Return the files of a repository that vLLM reads: those of its top folder, the configuration first.

    Raises ModelNotFound if there are no safetensors.
    """
    top = [name for name in names if "/" not in name]
    weights = hf_facts.weights(top)
    if not weights:
        raise _no_safetensors(where, top)
    rest = {name for name in top if any(fnmatch(name, pattern) for pattern in WANTED)}
    if _consolidated(weights):
        rest.discard(INDEX)  # it lists the other files, which are not taken
    return sorted({*weights, *rest}, key=lambda name: (name != CONFIG, name))


def _no_safetensors(where: str, names: Sequence[str]) -> ModelNotFound:
    message = f"{where} holds no safetensors in its top folder, which vLLM needs"
    pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES))
    if not pickles:
        hint = "name another repository; `owner/repo:Q4_K_M` names GGUF files, which other engines run"
        return ModelNotFound(message, hint)
    suffix = pickles[0].rpartition(".")[2]
    return ModelNotFound(
        f"{message}: `{pickles[0]}` is a pickle, which can run code when it is loaded",
        f"name another repository, or convert them in their folder: `{CONVERT.replace('SUFFIX', suffix)}`",
    )


def _consolidated(weights: Iterable[str]) -> list[str]:
    return [name for name in weights if name.startswith("consolidated")]


def _whole(weights: Collection[str]) -> bool:
    """Return whether all parts are there, if the weights are in parts."""
    parts = [match for name in weights if (match := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", name))]
    wanted = {f"{part[1]}-{n:05}-of-{part[2]}.safetensors" for part in parts for n in range(1, int(part[2]) + 1)}
    return wanted <= set(weights)
