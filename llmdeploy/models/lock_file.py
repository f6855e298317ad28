"""The format of llmdeploy.lock, apart from `lock`: most commands find no such file, and never load these modules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec
import tomlkit

from llmdeploy.config import ENGINE_NAMES
from llmdeploy.config.toml_file import loads
from llmdeploy.errors import UsageError
from llmdeploy.models.listing_check import COMMIT, LARGEST_BYTES, SHA256
from llmdeploy.models.reference import HubRepo, OllamaTag
from llmdeploy.models.reference import parse as parse_reference
from llmdeploy.models.safe_paths import is_within
from llmdeploy.text import plain

HEAD = "Written by `llmdeploy pull --lock`. `llmdeploy pull --locked` gets exactly this."
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class LockedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a pin. Its size in bytes; its digest is a SHA-256, or Git's SHA-1 for small files."""

    name: str
    size: int
    digest: str


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The exact files that one engine gets for one name."""

    model: str
    """Name that the user gives; a name of the catalog is spelled as in the catalog."""
    engine: str
    source: str
    """Repository as the user named it (`hf://owner/repo`, `hf://owner/repo@branch`), or the Ollama tag."""
    revision: str
    """Commit of the repository, or digest of the tag."""
    files: tuple[LockedFile, ...]
    """Files of the repository; empty for a tag, whose digest covers all its files."""


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole content of the file."""

    version: Annotated[int, msgspec.Meta(le=2**31)]
    """Bounded, because Python refuses to show a number of thousands of digits."""
    model: tuple[Pin, ...] = ()


def parse(text: str) -> Lock:
    """Return the content of the file. Raises ValueError for anything but a lock, and RecursionError."""
    lock = msgspec.convert(loads(text), Lock)
    for pin in lock.model:
        _require_sound(pin)
    return lock


def _require_sound(pin: Pin) -> None:
    """Raise ValueError for a pin that `pull --lock` does not write: the file may come from a stranger."""
    shown = plain(pin.model)
    if pin.engine not in ENGINE_NAMES:
        raise ValueError(f"`{shown}` is for `{plain(pin.engine)}`, which is not an engine")
    form = _revision_of(pin.source)
    if form is None:
        raise ValueError(f"`{plain(pin.source)}` is not a repository or a tag of Ollama's")
    if not form.fullmatch(pin.revision):
        raise ValueError(f"`{plain(pin.revision)}` is not a revision of `{plain(pin.source)}`: a name may move")
    for file in pin.files:
        if not is_within(file.name) or not 0 <= file.size <= LARGEST_BYTES or not _DIGEST.fullmatch(file.digest):
            raise ValueError(f"`{shown}` has a file without a proper name, size or digest: `{plain(file.name)}`")


def _revision_of(source: str) -> re.Pattern[str] | None:
    """Return the form of a revision of that source: a commit, or the digest of a tag; None for another source."""
    try:
        reference = parse_reference(source)
    except UsageError:
        return None
    match reference:
        case HubRepo(quant=""):
            return COMMIT
        case OllamaTag():
            return SHA256
    return None


def dumps(pins: Iterable[Pin]) -> str:
    """Return the file's text for these pins, sorted."""
    document = tomlkit.document()
    document.add(tomlkit.comment(HEAD))
    document["version"] = 1
    tables = document["model"] = tomlkit.aot()
    for pin in sorted(pins, key=lambda pin: (pin.model, pin.engine)):
        files = tomlkit.array().multiline(True)
        for entry in pin.files:
            row = tomlkit.inline_table()
            row.update(msgspec.to_builtins(entry))
            files.append(row)
        tables.append(tomlkit.item({**msgspec.to_builtins(pin), "files": files}))
    return tomlkit.dumps(document)
