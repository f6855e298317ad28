"""The matrix in the summary of the run, from all processes of the run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.conformance import matrix


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the cells to the process that prints the summary, if the run has several."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["matrix"] = [matrix.CAME, matrix.ABSENT]


@pytest.hookimpl(optionalhook=True)  # the hook does not exist with `-p no:xdist`
def pytest_testnodedown(node: Any) -> None:
    """Take the cells from another process of the run."""
    came, absent = getattr(node, "workeroutput", {}).get("matrix", [{}, {}])
    for engine, cells in came.items():
        matrix.CAME[engine] |= cells
    matrix.ABSENT.update(absent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(matrix.CAME.values()):
        terminalreporter.section("conformance: answers by request and engine")
        for line in matrix.lines():
            terminalreporter.line(line)
