"""How the test run is shared out when it has several processes: one module at a time, the longest first."""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict

from xdist.scheduler import LoadScopeScheduling

REAL_VLLM = re.compile(
    r"tests/test_vllm_(serve|switch)\.py::|/test_conformance\.py::.*\[vllm"
    r"|::test_transcript_of_vllm$|::test_real_vllm_is_detected$|::test_repair_of_the_real_vllm_finds_nothing_to_do$"
)
"""The names of the tests with the real vLLM. One process runs them: a server needs 2 GB of memory and both cores."""

LONGEST_FIRST = (
    "the real vLLM",
    "tests/test_serve.py",
    "tests/test_switch.py",
    "tests/test_bad_input.py",
    "tests/test_failures.py",
    "tests/test_faults.py",
    "tests/test_readme.py",
    "tests/test_package.py",
    "tests/test_gateway_connections.py",
)
"""The groups that take longest, longest first; the others follow by their number of tests."""


SHARDS = {"tests/test_serve.py": 3, "tests/test_switch.py": 4}
"""The modules that are too long for one process, and the number of groups that their tests are split into."""


def group(nodeid: str) -> str:
    """Return the name of the group of tests that one process runs together.

    The tests of a module share its servers, so they stay together. A long module is split, and each group starts them.
    """
    if REAL_VLLM.search(nodeid):
        return "the real vLLM"
    module, _, test = nodeid.partition("::")
    shards = SHARDS.get(module)
    return module if shards is None else f"{module} {zlib.crc32(test.encode()) % shards}"


def rank(name: str) -> int:
    """Return a group's place in the order in which groups are handed out."""
    module = name.partition(".py ")[0] + ".py" if ".py " in name else name
    return LONGEST_FIRST.index(module) if module in LONGEST_FIRST else len(LONGEST_FIRST)


class LongestFirst(LoadScopeScheduling):
    """Hands out groups of tests, the longest first, so that no process is left with a long one at the end."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _assign_work_unit(self, node: object) -> None:
        self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=lambda unit: (rank(unit[0]), -len(unit[1]))))
        super()._assign_work_unit(node)  # type: ignore[arg-type]
