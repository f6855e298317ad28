"""The models in ModelScope's cache, whose layout `llmdeploy.models.modelscope.layout` describes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmdeploy.models.hf_facts import CONFIG
from llmdeploy.models.modelscope import layout
from llmdeploy.models.reference import HubRepo
from llmdeploy.models.safetensors import INDEX, indexed
from llmdeploy.models.stores.installed import InstalledModel, StoreListing, is_whole, last_used, merge_revisions, walk
from llmdeploy.models.stores.repository import models_in

OWN = (".msc", ".mdl", ".mv", ".lock")
"""Suffixes of ModelScope's own records among the files of a repository."""
TEMPORARY = "._____temp"
"""Part of the path of a file that ModelScope's library is downloading."""


def read(root: Path) -> StoreListing:
    """Return the models in the cache, each once with its files at all revisions, most of which are hard links."""
    repositories = layout.repositories(root)
    return StoreListing(
        tuple(merge_revisions(model for repo, folder in repositories for model in _revision(root, repo, folder)))
    )


def folders(root: Path, name: str) -> tuple[Path, ...]:
    """Return the folders of a repository, with all its revisions."""
    found = [folder for repo, folder in layout.repositories(root) if repo.repo == name]
    return tuple(dict.fromkeys(it.parents[1] if it.parent.name == "snapshots" else it for it in found))


def _revision(root: Path, repo: HubRepo, folder: Path) -> list[InstalledModel]:
    every = {file.relative_to(folder).as_posix(): file for file in walk(folder) if is_whole(file)}
    parts = tuple(file for path, file in every.items() if TEMPORARY in path or path.endswith(layout.PARTS))
    files = {path: file for path, file in every.items() if file not in parts and not path.endswith(OWN)}
    place = root / "hub" if (root / "hub") in folder.parents else root
    revisions = (repo.revision,) if layout.COMMIT.fullmatch(repo.revision) else ()
    models = [
        InstalledModel(
            group.reference,
            "modelscope",
            place,
            tuple(files[path] for path in group.files),
            group.formats,
            last_used(files[path] for path in group.files),
            revisions,
            detail=group.detail,
        )
        for group in models_in(repo, list(files), indexed(files.get(INDEX)), files.get(CONFIG))
    ]
    if not parts:
        return models
    if len(models) == 1:
        return [replace(models[0], parts=parts)]
    return [*models, InstalledModel(repo, "modelscope", place, (), (), last_used(parts), parts=parts)]
