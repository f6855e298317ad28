"""Held: a model that is on this machine; Ledger: what removing some of them would free."""

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
"""The Hub's cache, ModelScope's, Ollama's store, a folder of ours, LM Studio's folder."""
PLACE_OLLAMA: Place = "ollama"


@dataclass(frozen=True)
class InstalledModel:
    """One model in one place. Sizes in bytes, times in seconds since 1970."""

    reference: ModelRef
    """What serves it from here."""
    place: Place
    root: Path
    """The folder of the place: a cache, a store."""
    files: tuple[Path, ...]
    """As they lie there: perhaps links. Empty where only parts of a download are there."""
    formats: tuple[Format, ...]
    """The formats that it can be loaded in, with nothing downloaded and nothing converted; empty if it is not whole."""
    last_used: float
    revisions: tuple[str, ...] = ()
    """The commits, or the manifest's digest at Ollama."""
    parts: tuple[Path, ...] = ()
    """What a download that was broken off has left."""
    detail: str = ""
    """What is to be known of it besides: why an engine does not run it, where it is from."""
    hidden: bool = False
    """Not a model of its own for people: a name of ours for another. Its files count as used."""

    @property
    def size(self) -> int:
        """Of all files, links followed, each file once."""
        return total([self])

    @property
    def unfinished(self) -> int:
        """Of the parts."""
        return sum(status.st_size for status in map(_status, self.parts) if status)


@dataclass(frozen=True)
class StoreListing:
    """What one place holds."""

    held: tuple[InstalledModel, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be read, and why; sentences without a period."""


def total(models: Iterable[InstalledModel]) -> int:
    """Bytes that these take on the disks: what they share is counted once."""
    found = (_status(file) for model in models for file in model.files)
    return sum({(it.st_dev, it.st_ino): it.st_size for it in found if it}.values())


class DiskUsage:
    """Which models use which files, to tell what is free once some are gone."""

    def __init__(self, everything: Iterable[InstalledModel]) -> None:
        self._real = {id(model): [os.path.realpath(it) for it in (*model.files, *model.parts)] for model in everything}
        self._users = Counter(real for files in self._real.values() for real in set(files))

    def freed(self, going: Sequence[InstalledModel]) -> int:
        """Bytes: not what another model uses, or another name on the disk still has. Each is one of `everything`."""
        mine = Counter(real for model in going for real in set(self._real[id(model)]))
        links: defaultdict[tuple[int, int], list[os.stat_result]] = defaultdict(list)
        for real in [real for real, count in mine.items() if count == self._users[real]]:
            if found := _status(real):
                links[found.st_dev, found.st_ino].append(found)
        return sum(found[0].st_size for found in links.values() if len(found) >= found[0].st_nlink)


def joined(models: Iterable[InstalledModel]) -> list[InstalledModel]:
    """The models of a cache, each once: one that is there at several revisions is named as at the first whole one."""
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
    """When the newest of them was read or written; 0 where none is there."""
    found = [status for status in map(_status, files) if status]
    return max((max(status.st_atime, status.st_mtime) for status in found), default=0.0)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder; nothing where it is not there or cannot be read."""
    for name, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            yield Path(name) / file


def is_whole(file: Path) -> bool:
    """Whether it can be read, and is no link to something that is gone."""
    return os.path.isfile(file) and os.access(file, os.R_OK)


def _status(file: str | Path) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(file)
    return None
