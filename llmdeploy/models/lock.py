"""The file llmdeploy.lock: the revisions and digests that the models of a project are pinned to.

It is in the project's folder, beside `llmdeploy.toml`. A model in it is downloaded and served at the commit in it.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmdeploy.errors import ConfigError, DownloadFailed, ModelNotFound
from llmdeploy.models import source
from llmdeploy.models.catalog import lookup
from llmdeploy.models.reference import HubFile, HubRepo, OllamaTag, parse
from llmdeploy.text import permissions_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmdeploy.config import Settings
    from llmdeploy.models.lock_file import Pin
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.source import OnProgress

LOCK = Path("llmdeploy.lock")
R = TypeVar("R", bound=HubRepo | HubFile)


def read(file: Path = LOCK) -> tuple[Pin, ...]:
    """Return the pins of this folder; none if the file is missing. Raises ConfigError."""
    from llmdeploy import bounded_file

    try:
        text = bounded_file.read(file).decode("utf-8")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _unreadable(file, "it is not UTF-8 text") from None
    from llmdeploy.models import lock_file

    try:
        lock = lock_file.parse(text)
    except (ValueError, RecursionError) as error:  # msgspec's and TOML's are ValueErrors
        raise _unreadable(file, str(error)) from None
    if lock.version != 1:
        raise ConfigError(f"`{file}` has version {lock.version}, and this llmdeploy knows 1", _write_again(file))
    return lock.model


def write(pins: Iterable[Pin], file: Path = LOCK) -> None:
    """Write the pins, in place of those in the file. Raises ConfigError."""
    from llmdeploy import atomic_file
    from llmdeploy.models import lock_file

    try:
        if file.is_symlink():
            raise ConfigError(f"`{file}` is a link, and a lock is not written through one", _write_again(file))
        atomic_file.replace(file, lock_file.dumps(pins).encode())
        file.chmod(0o644)  # it belongs to the project and has nothing private
    except OSError as error:
        hint = permissions_hint(file.absolute().parent)
        raise ConfigError(f"`{file}` cannot be written: {error.strerror}", hint) from None


def with_pins(pins: Iterable[Pin], new: Iterable[Pin]) -> tuple[Pin, ...]:
    """Return the pins, with the new ones in place of those for the same model and engine."""
    return tuple({(pin.model, pin.engine): pin for pin in (*pins, *new)}.values())


def pin(model: str, engine: str, need: Requirements) -> Pin:
    """Return the pin of these requirements. Raises DownloadFailed if the source states no revision or digests."""
    if not need.revision or not all(file.digest for file in need.files):
        raise DownloadFailed(
            f"`{need.source}` does not tell its revision, so it cannot be locked", "leave `--lock` or `--locked` out"
        )
    from llmdeploy.models.lock_file import LockedFile, Pin

    files = () if isinstance(parse(need.source), OllamaTag) else need.files
    locked = tuple(LockedFile(file.name, file.size, file.digest) for file in files)
    return Pin(_spelled(model), engine, need.source, need.revision, locked)


def named(model: str | None, engines: Sequence[str]) -> tuple[Pin, ...]:
    """Return the pins of one model or all, for some engines or all. Raises ModelNotFound if there are none."""
    pins = read()
    if not pins:
        raise ModelNotFound(f"there is no `{LOCK}` here", "`llmdeploy pull MODEL --lock` writes one")
    name = model and _spelled(model)
    found = tuple(pin for pin in pins if name in {None, pin.model} and (not engines or pin.engine in engines))
    if not found:
        what = f"`{model}`" if model else "a model"
        where = f" for {' or '.join(engines)}" if engines else ""
        engine = f" --engine {engines[0]}" if len(engines) == 1 else ""
        raise ModelNotFound(
            f"`{LOCK}` does not name {what}{where}",
            f"`llmdeploy pull {shlex.quote(model or pins[0].model)}{engine} --lock` adds it",
        )
    return found


def pinned(model: object, reference: R, settings: Settings) -> R:
    """Return the repository or file of a name, at the commit that the lock of this folder pins it to."""
    found = _pin_of(model, reference, settings)
    return reference if found is None else replace(reference, revision=found.revision)


def hubs(model: object, reference: R, settings: Settings) -> tuple[str, ...]:
    """Return the sources for a repository of the Hub, best first; only the source in the lock if it is pinned."""
    order = source.in_order(settings.hub)
    if settings.source("source") == "--source":
        return order
    return tuple(hub for hub in order if _pin_of(model, source.at(reference, hub), settings)) or order


def note(model: object, references: Iterable[str], settings: Settings) -> str:
    """Return the sentence on the revision that the lock of this folder chose for weights; empty if it chose none.

    `references`: what names the weights. A lock may come with a folder, so what it changes is said.
    """
    pins = read() if settings.flags.pinned else ()
    name = _spelled(str(model)) if pins else ""
    homes = [it.home for it in map(parse, references if pins else ()) if isinstance(it, HubRepo | HubFile)]
    for one in pins:
        named = parse(one.source)
        if one.model != name or not isinstance(named, HubRepo) or named.revision == one.revision:
            continue
        if replace(named, revision=one.revision) in homes:
            return f"revision {one.revision} of `{name}`, by `./{LOCK}`"
    return ""


def require_same(locked: Pin, need: Requirements) -> None:
    """Raise DownloadFailed, before any download, if the requirements differ from the pin."""
    found = pin(locked.model, locked.engine, need)
    if found.revision == locked.revision and set(found.files) == set(locked.files):
        return
    before, after = {it.name: it for it in locked.files}, {it.name: it for it in found.files}
    other = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    what = f": {', '.join(f'`{name}`' for name in other[:3])}" if other else f", {found.revision} now"
    raise DownloadFailed(
        f"`{locked.source}` is not what `{LOCK}` names{what}",
        f"`llmdeploy pull {shlex.quote(locked.model)} --engine {locked.engine} --lock` takes it as it is now",
        code="lock_differs",
    )


def require_unchanged(locked: Pin, folder: Path | None, on_progress: OnProgress) -> None:
    """Raise DownloadFailed if a file on this machine no longer has the digest in the lock.

    A file is read again only if something about it changed since its digest was computed. `folder`: the folder that
    has the files, instead of the source's cache.
    """
    from llmdeploy.models import digest

    repo = parse(locked.source)
    if not isinstance(repo, HubRepo):  # Ollama checks the files of a tag itself
        return
    for file in locked.files:
        cached = source.cached(HubFile(repo.repo, file.name, locked.revision, repo.source))
        path = cached if folder is None else folder / file.name
        if path is None or digest.now(path, file.digest, on_progress) != file.digest:
            where = f"`{path or file.name}`"
            raise DownloadFailed(
                f"{where} is not what `{LOCK}` names: it was changed after its download",
                f"`{shlex.join(['rm', str(path.resolve() if path else file.name)])}`, and the same command fetches it",
                code="lock_differs",
            )


def _pin_of(model: object, reference: HubRepo | HubFile, settings: Settings) -> Pin | None:
    """Return the pin for the engine, else that of another engine for the same repository."""
    pins = [one for one in read() if one.source == str(reference.home)] if settings.flags.pinned else []
    name = _spelled(str(model)) if pins else ""
    found = [one for one in pins if one.model == name]
    return min(found, key=lambda one: one.engine != settings.engine, default=None)


def _spelled(model: str) -> str:
    return str(lookup.get(model) or model)


def _unreadable(file: Path, reason: str) -> ConfigError:
    return ConfigError(f"`{file}` cannot be read: {reason}", _write_again(file))


def _write_again(file: Path) -> str:
    return f"`rm {file}`, and lock the models again: `llmdeploy pull MODEL --lock`"
