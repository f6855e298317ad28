"""The matrix of requests and engines; each cell is the answer in short."""

from __future__ import annotations

from collections.abc import Iterator

ENGINES = ("llamacpp", "ollama", "vllm")

OTHERWISE, WRONG = " *", " !"
"""Marks after a cell that differs from the other engines: a known difference, and a failure."""

CAME: dict[str, dict[str, str]] = {engine: {} for engine in ENGINES}
"""The cells, by engine and request."""
ABSENT: dict[str, str] = {}
"""The engines that are not available, and why."""


def lines() -> Iterator[str]:
    """Yield the lines of the matrix, one for each request."""
    columns = [engine for engine in ENGINES if CAME[engine]]
    names = list(dict.fromkeys(name for engine in columns for name in CAME[engine]))
    first = max(map(len, names), default=0)
    widths = [max(map(len, (engine, *CAME[engine].values()))) for engine in columns]
    yield _line(first, "", zip(columns, widths, strict=True))
    for name in names:
        cells = (CAME[engine].get(name, "-") for engine in columns)
        yield _line(first, name, zip(cells, widths, strict=True))
    yield f"{OTHERWISE.strip()} explained in differences.py; {WRONG.strip()} not as expected; - not requested"
    for engine, why in ABSENT.items():
        yield f"{engine} is not available: {why}"


def _line(first: int, name: str, cells: Iterator[tuple[str, int]]) -> str:
    return f"{name:{first}}  {'  '.join(f'{cell:{width}}' for cell, width in cells)}".rstrip()
