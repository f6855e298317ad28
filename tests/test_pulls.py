"""Several pulls at once: an error is reported before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmdeploy.config import Settings
from llmdeploy.engines.base import EngineStatus
from llmdeploy.errors import DoesNotFit, DownloadFailed, LlmdeployError, ModelNotFound, UsageError
from llmdeploy.models.reference import HubRepo
from llmdeploy.models.requirements import RequiredFile, Requirements
from llmdeploy.service.order import Order
from llmdeploy.service.pull import Pull, PullOrder, Pulls
from llmdeploy.units import GIB

MODEL = HubRepo("o/r")
COMMIT = "c" * 40


class Engine:
    """Needs one file of that size; `wanted` is whether it was let take others' copies."""

    def __init__(self, name: str, folder: Path, size: int, usable: bool = True, fits: bool = True) -> None:
        self.name, self._folder, self._usable, self._fits = name, folder, usable, fits
        self._file = RequiredFile(f"{name}.gguf", size, digest="ab" * 32)
        self.wanted: bool | None = None

    def status(self) -> EngineStatus:
        return EngineStatus(self._usable, None, f"{self.name} is not here", "install it")

    daemon = None

    def resolve(self, model: object, *, reuse: bool) -> Any:
        self.wanted = reuse
        need = Requirements("hf://o/r", self._folder, (self._file,), COMMIT)
        return SimpleNamespace(
            reused_from="", references=tuple, requirements=lambda folder: need, facts=lambda: "facts"
        )

    def log_reader(self) -> None: ...

    def plan(self, *_: object) -> Any:
        def require_fit(model: str) -> None:
            if not self._fits:
                raise DoesNotFit(f"`{model}` needs more", "take a smaller one")

        return SimpleNamespace(require_fit=require_fit)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10 * GIB))
    found: dict[str, Engine] = {}
    monkeypatch.setattr("llmdeploy.engines.registry.get", lambda name, settings: found[name])
    found["llamacpp"] = Engine("llamacpp", tmp_path, 6 * GIB)
    found["ollama"] = Engine("ollama", tmp_path, 3 * GIB)
    return found


def look(*asked: PullOrder, left_out: dict[str, LlmdeployError] | None = None, fit: bool = True) -> list[Pull]:
    with Pulls(lambda event: None, None if left_out is None else left_out.__setitem__) as pulls:
        return pulls.prepare(asked, start=False, fit=fit)


def asked(engine: str, **how: Any) -> PullOrder:
    return PullOrder(Order(MODEL, Settings(engine=engine)), **how)


def test_disk_must_hold_all_pulls_together(engines: dict[str, Engine], tmp_path: Path) -> None:
    assert len(look(asked("llamacpp"), asked("ollama"))) == 2
    engines["ollama"] = Engine("ollama", tmp_path, 5 * GIB)
    with pytest.raises(DownloadFailed, match=r"`hf://o/r` needs 11\.0 GiB more") as full:
        look(asked("llamacpp"), asked("ollama"))
    assert full.value.code == "disk_full"


def test_unusable_engine_is_left_out_of_all_and_is_an_error_if_alone(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    engines["vllm"] = Engine("vllm", tmp_path, 1, usable=False)
    engines["ollama"] = Engine("ollama", tmp_path, 1, fits=False)
    left: dict[str, LlmdeployError] = {}
    [only] = look(*map(asked, engines), left_out=left)
    assert only.engine.name == "llamacpp"
    assert {name: error.message for name, error in left.items()} == {
        "vllm": "vllm is not here", "ollama": "`hf://o/r` needs more"
    }  # fmt: skip
    with pytest.raises(DoesNotFit):
        look(asked("ollama"))
    assert len(look(asked("ollama"), fit=False)) == 1
    with pytest.raises(ModelNotFound, match="no engine here can use it"):
        look(asked("vllm"), left_out={})


def test_present_files_are_not_fetched_into_a_folder(engines: dict[str, Engine], tmp_path: Path) -> None:
    assert len(look(asked("llamacpp", folder=tmp_path))) == 1
    with pytest.raises(UsageError, match="is on this machine already"):
        look(asked("llamacpp", folder=tmp_path / "other"))


def test_files_of_other_programs_are_taken_only_without_lock_and_folder(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    engine = engines["llamacpp"]
    for how in ({"exact": True}, {"folder": tmp_path}):
        look(asked("llamacpp", **how))
        assert engine.wanted is False
    look(asked("llamacpp"))
    assert engine.wanted is True


def test_files_that_cannot_be_locked_are_reported_before_the_download(engines: dict[str, Engine]) -> None:
    engines["llamacpp"]._file = RequiredFile("x", 1)
    with pytest.raises(DownloadFailed, match="cannot be locked"):
        look(asked("llamacpp", exact=True))
