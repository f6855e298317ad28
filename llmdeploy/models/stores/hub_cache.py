"""The models in the Hub's cache, read without huggingface_hub, whose import takes long. Its layout:

models--<owner>--<name>/
    refs/<branch or tag>               the commit of the branch or tag
    snapshots/<commit>/<path>          a link to a blob, or the file itself without links
    blobs/<digest>                     a file
    blobs/<digest>….incomplete         the partial file of an interrupted download
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmdeploy import bounded_file
from llmdeploy.models.hf_facts import CONFIG
from llmdeploy.models.reference import MAIN, HubRepo
from llmdeploy.models.safetensors import INDEX, indexed
from llmdeploy.models.stores.installed import InstalledModel, StoreListing, is_whole, last_used, merge_revisions, walk
from llmdeploy.models.stores.repository import models_in

PREFIX = "models--"


def read(cache: Path) -> StoreListing:
    """Return the models in the cache."""
    try:
        folders = sorted(it for it in cache.iterdir() if it.name.startswith(PREFIX))
    except FileNotFoundError:
        return StoreListing()
    except OSError as error:
        return StoreListing(notes=(f"the Hub's cache `{cache}` cannot be read: {error.strerror}",))
    return StoreListing(tuple(model for folder in folders for model in _repository(cache, folder)))


def _repository(cache: Path, folder: Path) -> list[InstalledModel]:
    repo = folder.name.removeprefix(PREFIX).replace("--", "/")
    found = merge_revisions(
        model
        for commit, revision in _revisions(folder).items()
        for model in _revision(cache, folder / "snapshots" / commit, HubRepo(repo, revision))
    )
    models = [_named(model) for model in found]
    parts = tuple(sorted(folder.glob("blobs/*.incomplete")))
    if not parts:
        return models
    if len(models) == 1:
        return [replace(models[0], parts=parts)]
    left = InstalledModel(HubRepo(repo), "hub", cache, (), (), last_used(parts), parts=parts)
    return [*models, _named(left)]


def _revisions(folder: Path) -> dict[str, str]:
    """Return commit -> name: the main branch, another branch or tag, or the commit itself; the main branch first."""
    named: dict[str, str] = {}
    for file in walk(folder / "refs"):
        with suppress(OSError, UnicodeDecodeError):
            name, commit = file.relative_to(folder / "refs").as_posix(), bounded_file.read(file).decode("ascii").strip()
            named[commit] = name if named.get(commit) != MAIN["hf"] else MAIN["hf"]
    with suppress(OSError):
        commits = sorted(it.name for it in (folder / "snapshots").iterdir() if it.is_dir())
        return {it: named.get(it, it) for it in sorted(commits, key=lambda it: named.get(it) != MAIN["hf"])}
    return {}


def _revision(cache: Path, snapshot: Path, repo: HubRepo) -> list[InstalledModel]:
    files = {file.relative_to(snapshot).as_posix(): file for file in walk(snapshot) if is_whole(file)}
    return [
        InstalledModel(
            group.reference,
            "hub",
            cache,
            tuple(files[path] for path in group.files),
            group.formats,
            last_used(files[path] for path in group.files),
            (snapshot.name,),
            detail=group.detail,
        )
        for group in models_in(repo, list(files), indexed(files.get(INDEX)), files.get(CONFIG))
    ]


def _named(model: InstalledModel) -> InstalledModel:
    """Return the model, named by its folder if its old repository has no owner and so no address."""
    if isinstance(model.reference, HubRepo) and "/" not in model.reference.repo:
        folder = model.files[0].parent if model.files else model.root / f"{PREFIX}{model.reference.repo}"
        return replace(model, reference=folder)
    return model
