"""Published vulnerabilities of engines, and which of them a version has. Each engine lists its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN = 3
"""The most advisories that a message names."""


@dataclass(frozen=True)
class Advisory:
    """One vulnerability, with the versions that have it."""

    name: str
    fixed: str
    """The first version without it, as `source` states."""
    source: str
    """The page that states these versions."""
    what: str
    """The harm, in a few words."""
    since: str = "0"
    """The first version that has it."""
    runs_code: bool = False
    """Whether a model's own code runs without the user's consent."""

    def affects(self, version: str | None) -> bool:
        """Return whether that version has it. A version that is not known is not accused."""
        return version is not None and release(self.since) <= release(version) < release(self.fixed)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version, without what a distributor added."""
    found = re.match(r"\D{0,8}(\d{1,9}(?:\.\d{1,9}){0,3})", version)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def of(advisories: Iterable[Advisory], version: str | None) -> tuple[Advisory, ...]:
    """Return those of the advisories that affect a version, the one that was fixed last first."""
    known = [it for it in advisories if it.affects(version)]
    return tuple(sorted(known, key=lambda it: release(it.fixed), reverse=True))


def least_safe(advisories: Iterable[Advisory], version: str) -> str:
    """Return the first version, `version` or a later one, that no advisory affects."""
    rows = tuple(advisories)
    while found := of(rows, version):
        version = found[0].fixed
    return version


def in_words(advisories: Iterable[Advisory], version: str | None) -> str:
    """Return the names of the advisories that affect a version, and the first safe one; empty if there are none."""
    rows = tuple(advisories)
    known = of(rows, version)
    if not known or version is None:
        return ""
    names = ", ".join(it.name for it in known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if known[SHOWN:] else "")
    return f"known vulnerabilities, safe from {least_safe(rows, version)} on: {names}"
