"""The log of requests without the right API key, bounded however many there are."""

from __future__ import annotations

from dataclasses import dataclass, field

SECONDS = 60.0
"""Seconds between two lines about one client."""
MOST_CLIENTS = 20
"""Clients that lines are written about within these seconds."""


@dataclass
class Denials:
    """The clients that were refused lately for their API key."""

    clients: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The time of the last line about each client, by `monotonic()`, and the requests since then."""

    def note(self, client: str, now: float) -> str | None:
        """Count a request of a client at this address. Return the line to log, if it is time for one."""
        before = 0
        if client in self.clients:
            when, before = self.clients[client]
            if now - when < SECONDS:
                self.clients[client] = (when, before + 1)
                return None
        elif len(self.clients) >= MOST_CLIENTS:
            self.clients = {it: seen for it, seen in self.clients.items() if now - seen[0] < SECONDS}
            if len(self.clients) >= MOST_CLIENTS:
                return None
        self.clients[client] = (now, 0)
        more = f", {before} more times since this was last said" if before else ""
        return f"a client at {client} was refused, because its API key is missing or wrong{more}"
