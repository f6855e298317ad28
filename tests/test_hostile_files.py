"""Some hundred hostile files of each kind, read in a process of their own: soon, with little memory, or refused.

`python -m tests.hostile_files 20000` reads as many as one likes.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import BUSY, ROOT

SECONDS = 1
"""The longest time of one file."""
MIB = 200
"""The most memory of one file."""
FILES = 700


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of one file is measured as Linux tells it")
def test_hostile_files_are_read_soon_and_with_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_files", str(FILES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert sum(result["files"] for result in results.values()) == FILES
    for kind, result in results.items():
        assert not result["bugs"], (kind, result)
        assert result["seconds"] < SECONDS * 2, (kind, result)  # a busy processor is slower too
        assert result["waited"] < SECONDS * 5 * BUSY, (kind, result)
        assert result["mib"] < MIB, (kind, result)
