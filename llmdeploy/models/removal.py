"""Removal of models from this machine, and the models that llmdeploy does not remove.

Ollama's models are removed by its daemon, which knows what else needs a file, and not here.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from llmdeploy.errors import LlmdeployError
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.store import Store
from llmdeploy.models.stores import folders, modelscope
from llmdeploy.models.stores.installed import InstalledModel, Place
from llmdeploy.paths import selftest_dir


def refusal(model: InstalledModel) -> LlmdeployError | None:
    """Return the error for a model that llmdeploy does not remove, with a hint; None if it may be removed."""
    if model.root == selftest_dir():
        return LlmdeployError(
            f"`{model.reference}` ships with llmdeploy", "it goes with the package", code="not_removed"
        )
    if model.place == "lmstudio":
        files = shlex.join(map(str, model.files))
        return LlmdeployError(
            f"`{model.reference}` is LM Studio's, and llmdeploy removes no files of others",
            f"remove it there, or with `rm {files}`",
            code="not_removed",
        )
    return None


def require_at_rest(going: Sequence[InstalledModel]) -> None:
    """Raise LlmdeployError for a model of the Hub's cache whose files a program is downloading."""
    for model in going:
        if model.place == "hub" and (folder := _folder(model)):
            from llmdeploy.models.hub.cache import in_work

            if in_work(folder):
                raise LlmdeployError(
                    f"files of `{model.reference}` are being downloaded",
                    "wait for the download, or end it with Ctrl-C",
                    code="not_removed",
                )


def remove(store: Store, going: Sequence[InstalledModel]) -> None:
    """Remove models from caches and folders, without files that other models need. Raises LlmdeployError."""
    for place, way in WAYS.items():
        if here := [model for model in going if model.place == place]:
            try:
                way(store, here)
            except OSError as error:
                raise LlmdeployError(
                    f"{_what(error, here)}: {error.strerror}",
                    "see who owns it: `ls -ld` shows that",
                    code="not_removed",
                ) from error


def _what(error: OSError, models: Sequence[InstalledModel]) -> str:
    """Return what failed. An error in a folder that is removed as a whole has only the name of a file in it."""
    file = os.fsdecode(error.filename or "")
    return f"`{file}` cannot be removed" if os.path.isabs(file) else f"`{models[0].root}` cannot be changed"


def _from_hub(store: Store, going: Sequence[InstalledModel]) -> None:
    _unlink(part for model in going for part in model.parts)
    whole = _left_by_all(store, going)
    files = going_files(store, going)
    if files or whole:
        from llmdeploy.models.hub.cache import remove

        remove(files, whole)


def _from_modelscope(store: Store, going: Sequence[InstalledModel]) -> None:
    _unlink((*going_files(store, going), *(part for model in going for part in model.parts)))
    stays = {_repository(model) for model in store.models if model.place == "modelscope" and model not in going}
    for model in going:
        if (repo := _repository(model)) not in stays:
            for folder in modelscope.folders(model.root, repo):
                shutil.rmtree(folder)


def _from_folder(store: Store, going: Sequence[InstalledModel]) -> None:
    for root in {model.root for model in going}:
        here = [model for model in going if model.root == root]
        files = [*going_files(store, here), *(part for model in here for part in model.parts)]
        _unlink(files)
        folders.forget(root, [it.with_name(it.name.removesuffix(folders.PART)) for it in files])
        for folder in sorted({file.parent for file in files}, reverse=True):
            with suppress(OSError):  # it has files of the user
                folder.rmdir()


WAYS: Mapping[Place, Callable[[Store, Sequence[InstalledModel]], None]] = MappingProxyType(
    {"hub": _from_hub, "modelscope": _from_modelscope, "folder": _from_folder}
)


def going_files(store: Store, going: Sequence[InstalledModel]) -> list[Path]:
    """Return the files to remove, links as links, without those that a remaining model needs, such as a projector."""
    kept = {file for model in store.everything if model not in going for file in model.files}
    return [file for file in dict.fromkeys(file for model in going for file in model.files) if file not in kept]


def _folder(model: InstalledModel) -> Path | None:
    """Return the folder of the model's repository in the Hub's cache."""
    for file in (*model.files, *model.parts):
        with suppress(ValueError):
            return model.root / file.relative_to(model.root).parts[0]
    return None


def _repository(model: InstalledModel) -> str:
    return model.reference.repo if isinstance(model.reference, HubRepo | HubFile) else ""


def _left_by_all(store: Store, going: Sequence[InstalledModel]) -> list[Path]:
    """Return the folders of repositories that lose all their models."""
    stays = {_folder(model) for model in store.models if model not in going}
    return [folder for folder in dict.fromkeys(map(_folder, going)) if folder and folder not in stays]


def _unlink(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
