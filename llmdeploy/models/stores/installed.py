"""Models on this machine, and the space on the disk that their removal frees."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llmdeploy.models.reference import HubFile, HubRepo, ModelRef
from llmdeploy.models.weights import Format

Place = Literal["hub", "modelscope", "ollama", "folder", "lmstudio"]
"""A place: the Hub's cache, ModelScope's cache, Ollama's store, a folder of `pull --dir`, LM Studio's folder."""
PLACE_OLLAMA: Place = "ollama"


@dataclass(frozen=True)
class InstalledModel:
    """One model in one place. Sizes in bytes, times in seconds since 1970."""

    reference: ModelRef
    """Reference that serves the model from this place."""
    place: Place
    root: Path
    """Folder of the place: a cache or a store."""
    files: tuple[Path, ...]
    """Files of the place, some of which may be links; empty if there are only partial files."""
    formats: tuple[Format, ...]
    """Formats in which it can be loaded without a download or a conversion; empty if it is not whole."""
    last_used: float
    """Time at which a file was last read or written."""
    revisions: tuple[str, ...] = ()
    """Commits, or the digest of the manifest for Ollama."""
    parts: tuple[Path, ...] = ()
    """Partial files of an interrupted download."""
    detail: str = ""
    """Text for people: the reason why an engine cannot run it, or its origin."""
    hidden: bool = False
    """Whether people do not see it, because it is an alias that llmdeploy made. Its files count as used."""

    @property
    def size(self) -> int:
        """Bytes of all files; links are followed, and each file counts once."""
        return total_bytes([self])

    @property
    def unfinished(self) -> int:
        """Bytes of the partial files."""
        return sum(status.st_size for status in map(_status, self.parts) if status)


@dataclass(frozen=True)
class StoreListing:
    """The models of one place."""

    models: tuple[InstalledModel, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences without a period about what could not be read, and why."""


def total_bytes(models: Iterable[InstalledModel]) -> int:
    """Return the bytes of these models on the disks; a shared file counts once."""
    found = (_status(file) for model in models for file in model.files)
    return sum({(it.st_dev, it.st_ino): it.st_size for it in found if it}.values())


class DiskUsage:
    """The files that each model uses, from which the space that a removal frees is computed."""

    def __init__(self, everything: Iterable[InstalledModel]) -> None:
        self._real = {id(model): [os.path.realpath(it) for it in (*model.files, *model.parts)] for model in everything}
        self._users = Counter(real for files in self._real.values() for real in set(files))

    def freed(self, going: Sequence[InstalledModel]) -> int:
        """Return the bytes that the removal of models of `everything` frees.

        Files that another model uses, or that have another hard link, are not freed.
        """
        mine = Counter(real for model in going for real in set(self._real[id(model)]))
        links: defaultdict[tuple[int, int], list[os.stat_result]] = defaultdict(list)
        for real in [real for real, count in mine.items() if count == self._users[real]]:
            if found := _status(real):
                links[found.st_dev, found.st_ino].append(found)
        return sum(found[0].st_size for found in links.values() if len(found) >= found[0].st_nlink)


def merge_revisions(models: Iterable[InstalledModel]) -> list[InstalledModel]:
    """Return the models of a cache without duplicates; several revisions get the name of the first whole one."""
    found: dict[str, InstalledModel] = {}
    for model in models:
        reference = model.reference
        key = str(replace(reference, revision="") if isinstance(reference, HubRepo | HubFile) else reference)
        if (before := found.get(key)) is None:
            found[key] = model
            continue
        found[key] = replace(
            before if before.formats or not model.formats else model,
            files=(*before.files, *model.files),
            last_used=max(before.last_used, model.last_used),
            revisions=(*before.revisions, *model.revisions),
            parts=(*before.parts, *model.parts),
        )
    return list(found.values())


def last_used(files: Iterable[Path]) -> float:
    """Return the time at which a file was last read or written, in seconds since 1970; 0 if there is no file."""
    found = [status for status in map(_status, files) if status]
    return max((max(status.st_atime, status.st_mtime) for status in found), default=0.0)


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; nothing if it is missing or cannot be read."""
    for name, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            yield Path(name) / file


def is_whole(file: Path) -> bool:
    """Return whether a file can be read and is not a broken link."""
    return os.path.isfile(file) and os.access(file, os.R_OK)


def _status(file: str | Path) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(file)
    return None
