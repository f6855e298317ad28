"""The matrix: requests by engines, and in each cell what came."""

from __future__ import annotations

from collections.abc import Iterator

ENGINES = ("llamacpp", "ollama", "vllm")

OTHERWISE, WRONG = " *", " !"
"""After a cell that is not as on the other engines: known, with its reason; or a failure."""

CAME: dict[str, dict[str, str]] = {engine: {} for engine in ENGINES}
"""By engine and request."""
ABSENT: dict[str, str] = {}
"""The engines that are not here, and why."""


def lines() -> Iterator[str]:
    """One line a request."""
    columns = [engine for engine in ENGINES if CAME[engine]]
    names = list(dict.fromkeys(name for engine in columns for name in CAME[engine]))
    first = max(map(len, names), default=0)
    widths = [max(map(len, (engine, *CAME[engine].values()))) for engine in columns]
    yield _line(first, "", zip(columns, widths, strict=True))
    for name in names:
        cells = (CAME[engine].get(name, "-") for engine in columns)
        yield _line(first, name, zip(cells, widths, strict=True))
    yield f"{OTHERWISE.strip()} as differences.py tells; {WRONG.strip()} not as it must be; - not asked"
    for engine, why in ABSENT.items():
        yield f"{engine} is not here: {why}"


def _line(first: int, name: str, cells: Iterator[tuple[str, int]]) -> str:
    return f"{name:{first}}  {'  '.join(f'{cell:{width}}' for cell, width in cells)}".rstrip()
