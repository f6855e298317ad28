"""`.env` files: variables are added or updated, other lines are kept, and every reader reads the same values."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdeploy import dotenv
from llmdeploy.errors import LlmdeployError, UsageError

NEW = {"OPENAI_BASE_URL": "http://h:1/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "qwen3:8b"}
LINES = "OPENAI_BASE_URL=http://h:1/v1\nOPENAI_API_KEY=none\nOPENAI_MODEL=qwen3:8b\n"


def as_docker_reads(text: str) -> dict[str, str]:
    """Parse by the rules of `docker run --env-file`: no quotes, no expansion, no comments after a value."""
    found = {}
    for line in text.removeprefix("\ufeff").split("\n"):
        line = line.removesuffix("\r").lstrip()
        if line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert name == name.rstrip() != "", "it refuses a name with blanks"
            found |= {name: value} if equals else {}
    return found


def as_python_reads(file: Path) -> dict[str, str | None]:
    reader = pytest.importorskip("dotenv", reason="no python-dotenv here")
    found: dict[str, str | None] = reader.dotenv_values(file)
    return found


CASES = [
    ("", LINES),
    ("# mine\nDEBUG=1", f"# mine\nDEBUG=1\n{LINES}"),
    ("DEBUG=1\r\n", "DEBUG=1\r\n" + LINES.replace("\n", "\r\n")),
    (
        "A=1\nOPENAI_MODEL = 'old' # x\n\n  B=2  \n",
        "A=1\nOPENAI_MODEL=qwen3:8b\n\n  B=2  \nOPENAI_BASE_URL=http://h:1/v1\nOPENAI_API_KEY=none\n",
    ),
    (
        "export OPENAI_BASE_URL=x\r\n\texport OPENAI_API_KEY=\"a\\\"b\"\r\nOPENAI_MODEL=\r\n# end",
        "export OPENAI_BASE_URL=http://h:1/v1\r\n\texport OPENAI_API_KEY=none\r\nOPENAI_MODEL=qwen3:8b\r\n# end",
    ),
    # all of several lines, because readers differ in which one counts
    (f"{LINES}OPENAI_MODEL=a\n", f"{LINES}OPENAI_MODEL=qwen3:8b\n"),
    # lines that only look like an assignment
    (
        "# OPENAI_MODEL=a\nMY_OPENAI_MODEL=a\nOPENAI_MODEL_2=a\nTEXT='\nOPENAI_MODEL=a\n'\n",
        "# OPENAI_MODEL=a\nMY_OPENAI_MODEL=a\nOPENAI_MODEL_2=a\nTEXT='\nOPENAI_MODEL=a\n'\n" + LINES,
    ),
    # a value with several lines
    (f"OPENAI_API_KEY=\"a\nb\"\n{LINES}", f"OPENAI_API_KEY=none\n{LINES}"),
    ("\ufeffOPENAI_MODEL=a\nOPENAI_API_KEY=\nOPENAI_BASE_URL=", "\ufeffOPENAI_MODEL=qwen3:8b\nOPENAI_API_KEY=none\nOPENAI_BASE_URL=http://h:1/v1"),
    (LINES, LINES),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CASES, ids=range(len(CASES)))
def test_an_update(before: str, after: str, tmp_path: Path) -> None:
    assert dotenv.updated(before, NEW) == after
    file = tmp_path / ".env"
    file.write_bytes(before.encode())
    dotenv.write(file, NEW)
    assert file.read_bytes() == after.encode()
    dotenv.write(file, NEW)
    assert file.read_bytes() == after.encode(), "it is found again"
    if not after.startswith("\ufeff"):
        assert NEW.items() <= as_python_reads(file).items()
    if "export" not in after and "TEXT='" not in after:
        assert NEW.items() <= as_docker_reads(after).items()


@pytest.mark.parametrize("value", ['it\'s $HOME "and" $(so) on', "a b", "a\\nb", "a=b", "x!*&;|<>(){}[]~%^", "größe"])
def test_value_is_read_unchanged(value: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    dotenv.write(file, {"OPENAI_API_KEY": value})
    assert as_python_reads(file) == as_docker_reads(file.read_text()) == {"OPENAI_API_KEY": value}


REFUSED = ["'a", '"a"', "`a", "a${HOME}", "a #b", "#", " a", "a ", "a\nB=c", "a\tb", "a\x1b"]


@pytest.mark.parametrize("value", REFUSED)
def test_a_value_that_is_read_differently_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(LlmdeployError) as caught:
        dotenv.write(tmp_path / ".env", {"OPENAI_API_KEY": value})
    said = "the value of OPENAI_API_KEY cannot be written so that all readers of a `.env` file read it alike"
    assert caught.value.message == said, "and it does not show the key"
    assert not list(tmp_path.iterdir())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.text(st.characters(codec="utf-8"), min_size=1), before=st.sampled_from([case[0] for case in CASES[:5]]))
def test_written_values_are_read_alike(value: str, before: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(before.encode())
    try:
        dotenv.write(file, {"OPENAI_MODEL": value})
    except LlmdeployError:
        assert file.read_bytes() == before.encode()
        assert not re.fullmatch(r"[\w.:/-]+", value)
        return
    text = file.read_bytes().decode()
    assert as_python_reads(file)["OPENAI_MODEL"] == value
    if "export" not in text:
        assert as_docker_reads(text)["OPENAI_MODEL"] == value


def test_undecodable_bytes_are_kept(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"NAME=\xff\xfe\x00 caf\xe9\n")
    dotenv.write(file, NEW)
    assert file.read_bytes() == b"NAME=\xff\xfe\x00 caf\xe9\n" + LINES.encode()


@pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes as POSIX has them")
def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "real", tmp_path / ".env"
    link.symlink_to(file)
    dotenv.write(link, NEW)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    dotenv.write(link, {"OPENAI_MODEL": "b"})
    assert (stat.S_IMODE(file.stat().st_mode), link.is_symlink()) == (0o640, True)
    assert sorted(os.listdir(tmp_path)) == [".env", "real"]


@pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes as POSIX has them")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o602])
def test_key_is_not_written_where_others_can_read_it(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "my .env"
    file.write_text("A=1\n")
    file.chmod(mode)
    dotenv.write(file, {"B": "2"})
    with pytest.raises(LlmdeployError) as error:
        dotenv.write(file, {"OPENAI_API_KEY": "sesame"}, secret=True)
    assert error.value.message == f"others can read `{file}`, so the API key is not written to it"
    assert file.read_text() == "A=1\nB=2\n"
    assert error.value.hint == f"`chmod 600 '{file}'`, then again"
    file.chmod(0o600)
    dotenv.write(file, {"OPENAI_API_KEY": "sesame"}, secret=True)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("A=1\nB=2\nOPENAI_API_KEY=sesame\n", 0o600)


@pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes as POSIX has them")
def test_key_is_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, victim = tmp_path / "project", tmp_path / "bashrc"
    project.mkdir()
    victim.write_text("")
    victim.chmod(0o600)
    link = project / ".env"
    for target in (victim, Path("beside"), tmp_path / "missing"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(LlmdeployError, match="is a link to `") as error:
            dotenv.write(link, NEW, secret=True)
        assert error.value.hint == f"`rm {link}`, or name the file that you mean"
    with pytest.raises(LlmdeployError, match="is a link to"):
        dotenv.write(link, NEW)  # it leads out of its folder
    assert victim.read_text() == ""
    assert not (tmp_path / "missing").exists()
    link.unlink()
    link.write_text("A=1\n")
    link.chmod(0o600)
    owner = link.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(LlmdeployError, match="belongs to another user"):
        dotenv.write(link, NEW, secret=True)


@pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes as POSIX has them")
def test_new_file_with_a_key_is_private_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        dotenv.write(tmp_path / ".env", NEW, secret=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes as POSIX has them")
def test_non_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(UsageError, match=r"is not a file$"):
            dotenv.write(path, NEW)
    with pytest.raises(LlmdeployError, match=r"cannot be written: No such file or directory$") as caught:
        dotenv.write(tmp_path / "no such" / ".env", NEW)
    assert caught.value.hint == f"look at its owner and mode: `ls -ld '{tmp_path}/no such'`"


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / ".env").write_text("A=1\n")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LlmdeployError, match="cannot be written: No space left on device"):
        dotenv.write(tmp_path / ".env", NEW)
    assert (tmp_path / ".env").read_text() == "A=1\n"
    assert os.listdir(tmp_path) == [".env"]
