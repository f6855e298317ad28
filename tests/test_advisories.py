"""The published vulnerabilities of engines, as data, and what `doctor` says of a version that has some."""

from __future__ import annotations

import pytest

from llmdeploy import doctor
from llmdeploy.config import DEFAULT
from llmdeploy.doctor import Check
from llmdeploy.engines import advisories, registry
from llmdeploy.engines.advisories import Advisory, release
from llmdeploy.engines.base import EngineStatus

ALL = [(engine.name, row) for engine in registry.every(DEFAULT) for row in engine.advisories()]


@pytest.mark.parametrize(("engine", "row"), ALL, ids=lambda it: it.name if isinstance(it, Advisory) else it)
def test_each_advisory_has_its_versions_and_their_source(engine: str, row: Advisory) -> None:
    assert row.source.startswith("https://")
    assert row.name.startswith(("CVE-", "PYSEC-"))
    assert row.affects(row.since) or row.since == "0"
    assert not row.affects(row.fixed)
    assert not row.affects(None)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.11.0", (0, 11, 0)),
        ("0.11.1rc2", (0, 11, 1)),
        ("0.8.5.post1", (0, 8, 5)),
        ("0.21.0+rhaiv.8", (0, 21, 0)),
        ("b8146", (8146,)),
        ("v0.34.2", (0, 34, 2)),
        ("unknown", ()),
        ("", ()),
        ("9" * 100, (999_999_999,)),
    ],
)
def test_numbers_of_a_version(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers


@pytest.mark.parametrize(
    ("name", "version", "least"),
    [
        ("vllm", "0.11.0", "0.32.0"),
        ("vllm", "0.32.0", None),
        ("vllm", "0.33.0", None),
        ("ollama", "0.1.33", "0.17.1"),
        ("ollama", "0.33.0", None),
        ("ollama", "0.34.3", "0.35.0"),
        ("llamacpp", "7777 (abcdef0)", "b8146"),
        ("llamacpp", "8300 (abcdef0)", "b11393"),
        ("llamacpp", "2026.10.11549", None),
        ("llamacpp", None, None),
    ],
)
def test_doctor_tells_a_version_that_is_not_safe(name: str, version: str | None, least: str | None) -> None:
    engine = registry.get(name, DEFAULT)
    before = Check(name, "ok", "it is here")
    check = doctor._safe(engine, EngineStatus(True, version, "it is here"), before)
    if least is None:
        assert check == before
        return
    assert check.status == "warn"
    assert check.detail.startswith(f"it is here; known vulnerabilities, safe from {least} on: ")
    assert check.hint.startswith("update it: ")


def test_few_advisories_are_named_and_the_rest_are_counted() -> None:
    rows = [Advisory(f"CVE-{number}", f"0.{number}", "https://x", "") for number in range(1, 6)]
    expected = "known vulnerabilities, safe from 0.5 on: CVE-5, CVE-4, CVE-3 and 2 more"
    assert advisories.in_words(rows, "0.0.1") == expected
    assert advisories.in_words(rows, "0.5") == ""


def test_a_fix_that_has_another_vulnerability_is_not_safe() -> None:
    rows = [Advisory("CVE-1", "0.2", "https://x", ""), Advisory("CVE-2", "0.4", "https://x", "", "0.2")]
    assert advisories.least_safe(rows, "0.1") == "0.4"


def test_an_engine_that_cannot_be_used_stays_a_failure() -> None:
    engine = registry.get("vllm", DEFAULT)
    check = doctor._safe(engine, EngineStatus(False, "0.6.0", ""), Check("vllm", "fail", "no driver", "get one"))
    assert (check.status, check.hint) == ("fail", "get one; update it: `llmdeploy engines install vllm`")
