"""Atomic changes of several keys of a configuration file, which keep everything else byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdeploy import config
from llmdeploy.config import edit as config_edit
from llmdeploy.config.check import leaves
from llmdeploy.config.edit import Edit, diff, edited, write
from llmdeploy.errors import ConfigError, UsageError

BOTH = """\
# My machine.
engine = "llamacpp" # for now
model   = "selftest"

# vLLM
[engines.vllm]
extra_args = [ # two
  "--a",
  "--b",
]
dtype = "half" # small

# llama.cpp
[engines.llamacpp]
threads = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "config.toml"


def write_bytes(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode())


EDITS: list[tuple[str, dict[str, str | None], str]] = [
    # several keys, some of them new
    (
        BOTH,
        {"engine": "vllm", "model": "qwen3:8b", "context": "4096", "engines.vllm.max_num_seqs": "8"},
        BOTH.replace('"llamacpp" #', '"vllm" #')
        .replace('"selftest"', '"qwen3:8b"\ncontext = 4096')
        .replace("small\n", "small\nmax_num_seqs = 8\n"),
    ),
    ("", {"engine": "vllm", "model": "x"}, 'engine = "vllm"\nmodel = "x"\n'),
    # a key is removed with its lines only
    (BOTH, {"engine": None}, BOTH.replace('engine = "llamacpp" # for now\n', "")),
    (BOTH, {"engines.vllm.extra_args": None}, BOTH.replace(BOTH[BOTH.index("extra") : BOTH.index("dtype")], "")),
    (BOTH, {"engines.llamacpp.threads": None}, BOTH.replace("threads = 4\n", "")),
    (BOTH, {"port": None, "engines.ollama.spread": None}, BOTH),
    ("port = 1", {"port": None}, ""),
    ("model = 'a'\r\nport = 1", {"port": None}, "model = 'a'\r\n"),
    ("port = 1\r\n# x\r\n", {"port": None}, "# x\r\n"),
    ("engines.llamacpp.threads = 1\nport = 2\n", {"engines.llamacpp.threads": None}, "port = 2\n"),
    ("[engines]\n  llamacpp . 'threads' = 1\n", {"engines.llamacpp.threads": None}, "[engines]\n"),
    ("engines = { llamacpp = { threads = 1 } }\nport = 2", {"engines.llamacpp.threads": None}, "port = 2"),
    (
        'model = """\nport = 3\n"""\nport = 1\n# port = 4',
        {"port": None},
        'model = """\nport = 3\n"""\n# port = 4',
    ),
    # a wrong value, removed or replaced
    ("port = 'x'\nprot = 1\n", {"port": None}, "prot = 1\n"),
    # removed and added at once
    (
        BOTH,
        {"engine": None, "port": "2"},
        BOTH.replace('engine = "llamacpp" # for now\n', "").replace('st"', 'st"\nport = 2'),
    ),
    # the line endings of the file
    ('model = "a"\r\n', {"model": None, "port": "2"}, "port = 2\r\n"),
    ("# x\r\nport = 1", {"parallel": "2"}, "# x\r\nport = 1\r\nparallel = 2"),
    ("port = 1\r\n", {"gateway.max_held": "2"}, "port = 1\r\n\r\n[gateway]\r\nmax_held = 2\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "changes", "after"), EDITS, ids=range(len(EDITS)))
def test_an_edit(before: str, changes: dict[str, str | None], after: str, file: Path) -> None:
    if before:
        write_bytes(file, before)
    edit = edited(file, changes)
    assert (edit.before, edit.after) == (before, after)
    assert file.exists() == bool(before), "nothing is written yet"
    assert write(edit) == edit
    assert (file.read_bytes().decode() if file.exists() else "") == after
    assert sorted(os.listdir(file.parent)) == ["config.toml"]


def test_an_inline_table_loses_one_key(file: Path) -> None:
    write_bytes(file, "engines = { llamacpp = { threads = 1, gpu_layers = 2 } } # x\n")
    write(edited(file, {"engines.llamacpp.threads": None}))
    assert tomllib.loads(file.read_text()) == {"engines": {"llamacpp": {"gpu_layers": 2}}}
    assert file.read_text().endswith("} # x\n")


def test_key_is_removed_from_a_very_long_file(file: Path) -> None:
    write_bytes(file, "# x\n" * 1000 + "port = 1\nmodel = 'a'\n")
    write(edited(file, {"port": None}))
    assert file.read_text() == "# x\n" * 1000 + "model = 'a'\n"


def test_no_change_creates_no_file(file: Path) -> None:
    write(edited(file, {"port": None}))
    assert not file.parent.exists()


def test_byte_order_mark_is_kept(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbfport = 1\r\n")
    write(edited(file, {"port": "2"}))
    assert file.read_bytes() == b"\xef\xbb\xbfport = 2\r\n"


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ("", {"port": "2", "prot": None}, "unknown key `prot`"),
        ("", {"model": "a", "port": "x"}, "`port` must be a whole number from 1 to 65535, not `x`"),
        ("port = 1\n[model]\nx = 1", {"port": "2", "model": None}, "line 2: `model` must be a non-empty printable"),
        ("x = nan", {"port": "2"}, "cannot be edited here"),
        ("x = nan\nport = 1", {"port": None}, "cannot be edited here"),
        ("port = x", {"port": None}, "line 1, column 8: invalid value"),
    ],
)
def test_one_wrong_key_changes_none(before: str, changes: dict[str, str | None], message: str, file: Path) -> None:
    write_bytes(file, before)
    with pytest.raises((ConfigError, UsageError)) as caught:
        edited(file, changes)
    assert message in caught.value.message
    assert caught.value.hint
    assert file.read_text() == before


# Concurrent changes


def test_concurrent_changes_are_kept(file: Path) -> None:
    write_bytes(file, "port = 1\n")
    edit = edited(file, {"model": "a", "engine": "vllm"})
    write_bytes(file, "# mine\nport = 2\nengine = 'ollama' # fast\n")
    made = write(edit)
    assert file.read_text() == '# mine\nport = 2\nengine = "vllm" # fast\nmodel = "a"\n'
    assert (made.before, made.after) == ("# mine\nport = 2\nengine = 'ollama' # fast\n", file.read_text())


def test_file_removed_or_broken_meanwhile(file: Path) -> None:
    write_bytes(file, "port = 1\n")
    edit = edited(file, {"model": "a"})
    file.unlink()
    assert write(edit).after == 'model = "a"\n'
    write_bytes(file, "port = x\n")
    with pytest.raises(ConfigError, match="line 1, column 8: invalid value"):
        write(edit)
    assert file.read_text() == "port = x\n"


SETS = """
import sys
from pathlib import Path
from llmdeploy.config.edit import set_value
for number in range(1, 41):
    set_value(sys.argv[1], str(number), Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_concurrent_commands_keep_each_others_changes(file: Path) -> None:
    write_bytes(file, "# kept\n")
    keys = ["port", "parallel", "gateway.max_held", "engines.llamacpp.threads"]
    writers = [subprocess.Popen([sys.executable, "-c", SETS, key, file]) for key in keys]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    values = dict(leaves(tomllib.loads(file.read_text())))
    assert values == {tuple(key.split(".")): 40 for key in keys}
    assert file.read_text().startswith("# kept\n")


def test_waiting_for_the_lock_is_limited(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    write_bytes(file, "port = 1\n")
    monkeypatch.setattr(config_edit, "PATIENCE", 0.05)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        config_edit.set_value("port", "2", file)
    finally:
        os.close(descriptor)
    assert file.read_text() == "port = 2\n"


# The difference


def test_difference_is_a_patch(file: Path) -> None:
    write_bytes(file, BOTH)
    edit = edited(file, {"engine": "vllm", "engines.llamacpp.threads": None, "model": None})
    assert (
        diff(edit)
        == f"""\
--- {file}
+++ {file}
@@ -1,6 +1,5 @@
 # My machine.
-engine = "llamacpp" # for now
-model   = "selftest"
+engine = "vllm" # for now
 
 # vLLM
 [engines.vllm]
@@ -12,4 +11,3 @@
 
 # llama.cpp
 [engines.llamacpp]
-threads = 4
"""
    )
    assert diff(edited(file, {"engine": "llamacpp"})) == ""


@pytest.mark.skipif(shutil.which("patch") is None, reason="no `patch` here")
@pytest.mark.parametrize("before", ["", "port = 1", "port = 1\r\n# x\u2028y", BOTH])
def test_patch_applies_the_difference(before: str, file: Path, tmp_path: Path) -> None:
    write_bytes(file, before)
    edit = edited(file, {"model": "a", "gateway.max_held": "3"})
    command = ["patch", "--binary", "--quiet", str(file)]
    done = subprocess.run(command, input=diff(edit).encode(), capture_output=True)
    assert done.returncode == 0, done.stdout
    assert file.read_bytes().decode() == edit.after


# Generated files


VALUES: dict[str, list[tuple[str, Any]]] = {
    "model": [('"a#b"', "a#b"), ("'x = 1'", "x = 1")],
    "port": [("1", 1), ("0x10", 16)],
    "timeout": [("1.5", 1.5), ("3", 3)],
    "engines.llamacpp.threads": [("2", 2), ("3 ", 3)],
    "engines.llamacpp.server": [('"/opt/a \\"b\\""', '/opt/a "b"')],
    "gateway.max_held": [("1_000", 1000)],
    "engines.vllm.extra_args": [("[]", []), ('["a", "#"]', ["a", "#"]), ('[ # x\n "a",\n]', ["a"])],
    "engines.vllm.dtype": [('"""half"""', "half")],
}
FOREIGN = ["future", "gateway.future", "engines.other.x", "engines.vllm.future"]
NEW: dict[str, list[str | None]] = {
    "model": [None, "n 'e' \"w\""],
    "port": [None, "7"],
    "parallel": [None, "2"],
    "engines.llamacpp.threads": [None, "9"],
    "engines.llamacpp.gpu_layers": [None, "-1"],
    "gateway.max_held": [None, "5"],
    "gateway.stall_timeout": [None, "90"],
    "gateway.drain_timeout": [None, "2.5"],
    "engines.vllm.extra_args": [None, "--x '#y'"],
    "engines.ollama.spread": [None, "true"],
}
REMARKS = ["", "  ", "# a remark", "   # port = 3", "#"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Generate a file, the lines that set each key, and the values."""
    chosen = draw(st.lists(st.sampled_from([*VALUES, *FOREIGN]), unique=True))
    remarks = st.lists(st.sampled_from(REMARKS), max_size=2)
    lines: list[str] = draw(remarks)
    owned: dict[str, str] = {}
    said: dict[str, Any] = {}
    tables: dict[str, list[str]] = {"": []}
    for name in chosen:
        table = name.rpartition(".")[0] if draw(st.booleans()) else ""
        tables.setdefault(table, []).append(name)
    # TOML does not allow a header for a table that dotted keys have defined.
    dotted = {name.rpartition(".")[0] for name in tables[""] if "." in name}
    for table in [it for it in tables if it in dotted or any(of.startswith(f"{it}.") for of in dotted)]:
        if table:
            tables[""] += tables.pop(table)
    for table, names in tables.items():
        if table:
            lines += [f"[{table}]" + draw(st.sampled_from(["", "  # the table"])), *draw(remarks)]
        for name in names:
            shown, value = draw(st.sampled_from(VALUES.get(name, [("1", 1)])))
            key = name.removeprefix(f"{table}.") if table else name
            comment = draw(st.sampled_from(["", " # what it is"]))
            owned[name] = (
                f"{draw(st.sampled_from(['', '  ']))}{key}{draw(st.sampled_from([' = ', '=']))}{shown}{comment}"
            )
            said[name] = value
            lines += [owned[name], *draw(remarks)]
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n"]))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
        owned = {name: line.replace("\n", "\r\n") for name, line in owned.items()}
    return text, owned, said


CHANGES = st.lists(st.sampled_from(list(NEW)), unique=True, min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(NEW[name]) for name in names})
)


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for word, value in table.items():
        found |= flat(value, f"{prefix}{word}.") if isinstance(value, dict) else {prefix + word: value}
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(content=files(), changes=CHANGES)
def test_unchanged_lines_are_kept(
    content: tuple[str, dict[str, str], dict[str, Any]], changes: dict[str, str | None], file: Path
) -> None:
    before, owned, said = content
    write_bytes(file, before)
    after = write(edited(file, changes)).after
    assert file.read_bytes().decode() == after

    # Messages
    found = flat(tomllib.loads(after))
    wanted = {
        **said,
        **{name: None if text is None else config.key_named(name).read(text) for name, text in changes.items()},
    }
    assert found == {name: value for name, value in wanted.items() if value is not None}

    # All lines except those of changed keys are kept in order
    rest = before
    for name in changes:
        if name in owned:
            at = f"\n{rest}".index(f"\n{owned[name]}")
            rest = rest[:at] + rest[at + len(owned[name]) :].removeprefix("\r").removeprefix("\n")
    kept = [line for line in rest.split("\n") if line.strip()]
    there = iter(after.split("\n"))
    assert all(any(line.rstrip("\r") == one.rstrip("\r") for one in there) for line in kept)
    if "\r\n" in before:
        assert after.count("\n") == after.count("\r\n")
    removed = {name for name, text in changes.items() if text is None and name in owned}
    if removed == set(changes) & set(owned) and all(text is None for text in changes.values()):
        assert after in {rest, rest + "\n", rest + "\r\n"}, "what goes, goes without a trace"


def test_an_edit_is_a_value() -> None:
    edit = Edit(Path("x"), "a\n", "b\n", {"port": None})
    assert diff(edit) == "--- x\n+++ x\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
def test_file_of_a_folder_is_not_written_through_a_link_out_of_it(tmp_path: Path) -> None:
    folder, other = tmp_path / "project", tmp_path / "other.toml"
    folder.mkdir()
    other.write_text("port = 1\n")
    link = folder / "llmdeploy.toml"
    link.symlink_to(other)
    for act in (lambda: config_edit.set_value("port", "2", link), lambda: config_edit.require_writable(link)):
        with pytest.raises(ConfigError, match="is a link to `") as error:
            act()
        assert error.value.hint == f"`rm {link}`"
    assert other.read_text() == "port = 1\n"
    link.unlink()
    link.symlink_to("beside.toml")
    config_edit.set_value("port", "2", link)
    assert (folder / "beside.toml").read_text() == "port = 2\n"
