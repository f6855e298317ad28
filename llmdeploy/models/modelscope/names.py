"""The names of the Hub's repositories at ModelScope, which are the same in most cases."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from llmdeploy.models.reference import MAIN, HubFile, HubRepo

Repository = TypeVar("Repository", bound=HubRepo | HubFile)


def at_modelscope(reference: Repository) -> Repository:
    """Return the same repository or file at ModelScope; whether it exists there is not known.

    A revision other than the main branch is not changed, although commits differ between the two.
    """
    if reference.source == "ms":
        return reference
    revision = MAIN["ms"] if reference.revision == MAIN["hf"] else reference.revision
    return replace(reference, repo=_name(reference.repo), revision=revision, source="ms")


def _name(repo: str) -> str:
    prefixes = _prefixes()
    prefix = max((known for known in prefixes if repo.startswith(known)), key=len, default="")
    return prefixes[prefix] + repo.removeprefix(prefix) if prefix else repo


@cache
def _prefixes() -> dict[str, str]:
    """Return the table of `names.toml`: beginning of a name at the Hub -> its beginning at ModelScope."""
    import tomllib

    table: dict[str, str] = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
    return table
