"""ModelScope's cache on this machine: <cache>/models/<owner>/<name>, a dot in the name written as `___`."""

from __future__ import annotations

import os
from pathlib import Path

from llmdeploy.models.reference import MAIN, HubRepo
from llmdeploy.models.stores.held import Held, Shelf, is_whole, last_used, walk
from llmdeploy.models.stores.hub_cache import shards
from llmdeploy.models.stores.repository import INDEX, groups

DOT = "___"
OWN = (".msc", ".mdl", ".mv", ".lock")
"""ModelScope's notes beside the files of a repository."""
TEMPORARY = "._____temp"


def cache() -> Path:
    """The folder of the cache, as ModelScope's library finds it."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope" / "hub")


def read(root: Path) -> Shelf:
    """The models in it."""
    folders = sorted(it for it in root.glob("models/*/*") if it.is_dir() and not it.name.startswith("."))
    return Shelf(tuple(model for folder in folders for model in _repository(root, folder)))


def _repository(root: Path, folder: Path) -> list[Held]:
    repo = HubRepo(f"{folder.parent.name}/{folder.name.replace(DOT, '.')}", MAIN["ms"], "ms")
    every = {file.relative_to(folder).as_posix(): file for file in walk(folder) if is_whole(file)}
    parts = tuple(file for path, file in every.items() if TEMPORARY in path or path.endswith(".incomplete"))
    files = {path: file for path, file in every.items() if file not in parts and not path.endswith(OWN)}
    needed = {INDEX: shards(files[INDEX])} if INDEX in files else {}
    found = groups(repo, list(files), needed)
    models = [
        Held(
            group.reference,
            "modelscope",
            root,
            tuple(files[path] for path in group.files),
            group.engines,
            last_used(files[path] for path in group.files),
            parts=parts if len(found) == 1 else (),
            detail=group.detail,
        )
        for group in found
    ]
    if parts and len(found) != 1:
        models.append(Held(repo, "modelscope", root, (), (), last_used(parts), parts=parts))
    return models
