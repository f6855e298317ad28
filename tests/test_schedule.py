"""The tests that need the real vLLM run in one process, beside no other server of it."""

from __future__ import annotations

import pytest

from tests.schedule import LONGEST_FIRST, group


def test_tests_with_the_real_vllm_have_one_group(request: pytest.FixtureRequest) -> None:
    named = {item.nodeid for item in request.session.items if group(item.nodeid) == "the real vLLM"}
    marked = {item.nodeid for item in request.session.items if item.get_closest_marker("vllm")}
    assert named == marked


def test_long_groups_exist(request: pytest.FixtureRequest) -> None:
    files = [name for name in LONGEST_FIRST if name.startswith("tests/")]
    assert [name for name in files if not (request.config.rootpath / name).is_file()] == []
