"""The matrix at the end of the run, from all processes of the run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.conformance import matrix


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what came to the process that prints the summary, if the run has several."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["matrix"] = [matrix.CAME, matrix.ABSENT]


@pytest.hookimpl(optionalhook=True)  # there is no such hook with `-p no:xdist`
def pytest_testnodedown(node: Any) -> None:
    """Take what came in another process of the run."""
    came, absent = getattr(node, "workeroutput", {}).get("matrix", [{}, {}])
    for engine, cells in came.items():
        matrix.CAME[engine] |= cells
    matrix.ABSENT.update(absent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(matrix.CAME.values()):
        terminalreporter.section("one behaviour: what came, by request and engine")
        for line in matrix.lines():
            terminalreporter.line(line)
