"""Paths that a stranger names: those of a repository's files, and the places in a cache that follow from them."""

from __future__ import annotations

import re
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from llmdeploy.errors import DownloadFailed
from llmdeploy.text import plain

LONGEST_PATH = 4096

_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")
"""Control characters, halves of characters, and what separates folders on Windows."""
_DRIVE = re.compile(r"[A-Za-z]:")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|\.git", re.IGNORECASE)
"""Names of devices on Windows, and of the folder whose files Git runs."""


def is_within(path: object) -> bool:
    """Return whether a path stays in the folder that it is joined to, and every program can name it."""
    return (
        isinstance(path, str)
        and len(path) <= LONGEST_PATH
        and not _UNSENDABLE.search(path)
        and not any(part in {"", ".", ".."} for part in path.split("/"))
    )


def require_places(where: str, paths: Iterable[str]) -> None:
    """Raise DownloadFailed for files that cannot all be stored under their names on every system.

    `where`: the repository that lists them.
    """
    paths = list(paths)
    for path in paths:
        if not is_within(path) or _is_ambiguous(path):
            raise DownloadFailed(
                f"`{where}` lists `{plain(path)}`, which is not a path within it on every system",
                "take the model from another source",
            )
    if clash := next(clashes([unicodedata.normalize("NFC", path).casefold() for path in paths]), None):
        raise DownloadFailed(
            f"`{where}` lists two files that some file systems do not tell apart: `{plain(clash)}`",
            "take the model from another source",
        )


def clashes(paths: Iterable[str]) -> Iterator[str]:
    """Yield each path that is there twice, and each file that is the folder of another file."""
    ordered = sorted(
        path.replace("/", "\0") for path in paths
    )  # so a folder's files come right after a file of its name
    for path, following in pairwise(ordered):
        if path == following or following.startswith(f"{path}\0"):
            yield path.replace("\0", "/")


def below(root: Path, place: Path) -> Path:
    """Return a place in a cache. Raises DownloadFailed unless it lies below the cache's folder."""
    if not place.is_relative_to(root) or ".." in place.relative_to(root).parts or place == root:
        raise DownloadFailed(
            f"`{plain(str(place))}` is not a place in the cache `{root}`", "check the name and the revision"
        )
    return place


def require_own(part: Path) -> None:
    """Raise DownloadFailed for a partial file that is a link, a pipe or a device: its bytes would go elsewhere."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(part.lstat().st_mode):
            raise DownloadFailed(
                f"`{part}` is a link or not a regular file, so no download is written to it",
                f"remove it: `{shlex.join(['rm', str(part)])}`",
            )


def _is_ambiguous(path: str) -> bool:
    """Return whether some system reads the path as another one, or shows it as another one."""
    return (
        _DRIVE.match(path) is not None
        or not path.isprintable()
        or any(_RESERVED.fullmatch(part) or part.endswith((".", " ")) for part in path.split("/"))
    )
