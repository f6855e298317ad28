from __future__ import annotations

import pytest

from llmdeploy.units import in_gib, in_time, in_words


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (3, "3 B"), (1024, "1 KiB"), (607_136, "593 KiB"), (2**20, "1 MiB"), (5 * 10**9, "4.7 GiB")],
)
def test_bytes(size: int, text: str) -> None:
    assert in_gib(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")])
def test_times(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(1_152_640, "1.15 million"), (494e6, "494 million"), (999.9e6, "1 billion"), (8.29e9, "8.29 billion")],
)
def test_large_numbers(count: float, text: str) -> None:
    assert in_words(int(count)) == text
