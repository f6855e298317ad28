"""The format of llmdeploy.lock, apart from `lock`: most commands find no such file, and never load these modules."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable

import msgspec
import tomlkit

HEAD = "Written by `llmdeploy pull --lock`. `llmdeploy pull --locked` gets exactly this."


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

    version: int
    model: tuple[Pin, ...] = ()


def parse(text: str) -> Lock:
    """Return the content of the file. Raises ValueError for anything but a lock, and RecursionError."""
    return msgspec.convert(tomllib.loads(text), Lock)


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
