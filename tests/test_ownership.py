"""Folders that others can change: no command reads a state folder of theirs, and no engine of theirs is run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmdeploy import atomic_file, ownership
from llmdeploy.atomic_file import JsonFile
from llmdeploy.cli.app import COMMANDS, STATELESS, invoke
from llmdeploy.engines.python_environment import find, install
from llmdeploy.engines.python_environment.find import STAMP
from llmdeploy.engines.vllm.program import PROGRAM
from llmdeploy.errors import InstallFailed, StateUnwritable
from llmdeploy.models.stores import folders
from llmdeploy.paths import data_dir, state_dir

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes as POSIX has them")

BY_EVERYONE = "may be written to by everyone"


@pytest.fixture
def state() -> Path:
    state_dir().mkdir(mode=0o700)
    return state_dir()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMDEPLOY_DATA_DIR", str(tmp_path / "data"))
    data_dir().mkdir()
    return data_dir()


def test_own_folder_is_trusted(state: Path, tmp_path: Path) -> None:
    assert ownership.problem_of(state) == ownership.problem_of(tmp_path / "missing") == ""
    ownership.require_own_state()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_folder_that_everyone_may_write_to_is_not_trusted(state: Path, mode: int) -> None:
    state.chmod(mode)
    assert ownership.problem_of(state) == ownership.problem_of(state, of_administrator=True) == BY_EVERYONE


def test_folder_of_another_user_is_not_trusted(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = state.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert ownership.problem_of(state) == "belongs to another user"
    assert (ownership.problem_of(state, of_administrator=True) == "") == (owner == 0)


@pytest.mark.parametrize(("members", "private"), [([], True), (["me"], True), (["me", "you"], False)])
def test_group_may_write_only_if_it_is_the_users_own(
    state: Path, monkeypatch: pytest.MonkeyPatch, members: list[str], private: bool
) -> None:
    from types import SimpleNamespace

    state.chmod(0o770)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr("grp.getgrgid", lambda gid: SimpleNamespace(gr_name="me", gr_mem=members))
    assert (ownership.problem_of(state) == "") == private
    monkeypatch.setattr("grp.getgrgid", lambda gid: SimpleNamespace(gr_name="users", gr_mem=[]))
    assert ownership.problem_of(state) == "may be written to by others of its group"


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - STATELESS))
def test_no_command_reads_a_state_folder_of_others(
    state: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state.chmod(0o777)
    with pytest.raises(StateUnwritable) as error:
        invoke([command])
    assert error.value.message == f"the state folder `{state}` {BY_EVERYONE}"
    assert error.value.hint == f"`chmod go-w {state}` if nobody else has used it, or {ownership.ELSEWHERE}"
    assert invoke([command, "--help"]) == 0
    assert capsys.readouterr().out


def test_document_in_a_folder_of_others_is_not_believed(state: Path) -> None:
    file = JsonFile(state / "trusted.json")
    file.write(["mine"])
    assert file.read([]) == ["mine"]
    state.chmod(0o777)
    assert file.read([]) == []
    with pytest.raises(PermissionError):
        file.write(["theirs"])


@pytest.mark.parametrize("content", [b"", b"[", b"[" * 10**6, b"\xff", b"1" * 10**6, b'"x"'])
def test_damaged_document_is_ignored(state: Path, content: bytes) -> None:
    (state / "x.json").write_bytes(content)
    assert JsonFile(state / "x.json").read({}) == {}


def test_document_that_is_not_a_small_file_is_ignored(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(state / "pipe")
    (state / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        assert JsonFile(state / name).read({}) == {}
    monkeypatch.setattr(atomic_file.bounded_file, "STATE", 10)
    (state / "large").write_text(json.dumps({"a": "b" * 10}))
    assert JsonFile(state / "large").read({}) == {}


# Engines that llmdeploy has installed


@pytest.mark.parametrize("place", ["", "engines", "engines/vllm", "engines/vllm/1.0", "engines/vllm/1.0/bin"])
def test_environment_that_others_can_change_is_not_run(data: Path, place: str) -> None:
    made = data / "engines" / "vllm" / "1.0"
    (made / "bin").mkdir(parents=True)
    (made / STAMP).write_text("{}")
    [environment] = find.made(PROGRAM)
    assert environment.problem == ""
    (data / place).chmod(0o777)
    [environment] = find.made(PROGRAM)
    assert environment.problem == f"`{data / place}` {BY_EVERYONE}"


def test_nothing_is_installed_where_others_can_change_it(data: Path) -> None:
    data.chmod(0o777)
    with pytest.raises(InstallFailed) as error:
        install.remove(PROGRAM)
    assert error.value.message == f"`{data}` {BY_EVERYONE}, and what is in it would be run"
    assert error.value.hint.startswith("`chmod go-w` it")


def test_environment_is_made_closed_to_a_shared_group(data: Path) -> None:
    """A umask of 002 is common where users share a group: what llmdeploy makes must be what it runs."""
    before = os.umask(0o002)
    try:
        with install._closed_to_the_group():
            (data / "engines").mkdir()
        (data / "later").mkdir()
    finally:
        os.umask(before)
    assert (data / "engines").stat().st_mode & 0o777 == 0o755
    assert (data / "later").stat().st_mode & 0o777 == 0o775


# The record of folders that `pull --dir` has filled


@pytest.mark.parametrize("file", ["../precious", "/etc/passwd", "a/../../precious", "a\\..\\b", 7, None, ""])
def test_record_of_folders_names_no_file_outside(data: Path, tmp_path: Path, file: object) -> None:
    entry = {"folder": str(tmp_path), "repo": "hf://owner/x", "files": ["x.gguf"]}
    (data / "folders.json").write_text(json.dumps({"folders": [entry]}))
    assert [one.files for one in folders.filled()] == [("x.gguf",)]
    (data / "folders.json").write_text(json.dumps({"folders": [{**entry, "files": [file]}]}))
    assert folders.filled() == []
