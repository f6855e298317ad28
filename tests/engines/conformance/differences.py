"""What is not the same on every engine, and why. docs/api.md has the same table, which a test holds."""

from __future__ import annotations

from dataclasses import dataclass

NO_BLIND = "the self-test model has no text-only form for vLLM; what is asked of it is refused before any engine"


@dataclass(frozen=True)
class Difference:
    name: str
    """Of the request."""
    engine: str
    cell: str
    reason: str
    text: str | None = None
    holds: bool = True
    """Whether what else must be true of the answer is true here too."""

    @property
    def row(self) -> str:
        """In the table of docs/api.md."""
        return f"| {self.name} | {self.engine} | `{self.cell}` | {self.reason} |"


DIFFERENCES: tuple[Difference, ...] = ()
