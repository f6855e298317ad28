"""Requests that a server ended with: one of them may have ended it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from llmdeploy.gateway.target import Target
from llmdeploy.http1 import Request

NAMED = 5
"""Number of requests that are named; the others are counted."""

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
"""Ids of clients that are repeated; all others could write lines of their own into a log."""


@dataclass(frozen=True)
class Suspect:
    """A request that was with a server when it ended, without anything of its text."""

    target: Target
    """The server."""
    id: str
    path: str
    size: int
    """Bytes of its body."""


def id_of(head: Request) -> str:
    """Return the id of a request: the one that the client gave it, or a new one."""
    given = (head.get(b"x-request-id") or b"").decode("latin-1")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def named(suspects: Sequence[Suspect]) -> str:
    """Return a sentence that names the requests of one server."""
    first = "; ".join(f"{it.id}: {it.path}, {it.size} bytes" for it in suspects[:NAMED])
    more = f"; and {len(suspects) - NAMED} more" if len(suspects) > NAMED else ""
    number = "1 request" if len(suspects) == 1 else f"{len(suspects)} requests"
    is_not = "which is not sent again" if len(suspects) == 1 else "which are not sent again"
    return f"`{suspects[0].target.engine}` did not finish {number}, {is_not} ({first}{more})"
