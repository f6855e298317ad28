from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdeploy import config, paths
from llmdeploy.address import local_url
from llmdeploy.config import Key, Settings, Value, keys, toml_file
from llmdeploy.config import edit as config_edit
from llmdeploy.config.toml_file import line_of
from llmdeploy.config_types import Absolute, Arguments, Fraction, Host, Origins, Positive, Switch, Whole
from llmdeploy.errors import ConfigError, UsageError

KEYS = "`llmdeploy config show` lists the keys"
PORT_HINT = "`port` is the port of the address that applications use"


@pytest.fixture(autouse=True)
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the user's file, which does not exist; the folder is empty and no variable is set."""
    for name in os.environ:
        if name.startswith("LLMDEPLOY_"):
            monkeypatch.delenv(name)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    file = tmp_path / "home" / "config.toml"
    monkeypatch.setattr(paths, "user_config_file", lambda: file)
    return file


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode())
    return file


def test_without_any_file_every_value_is_the_default() -> None:
    loaded = config.load()
    assert loaded == Settings()
    assert {key.name: loaded.value(key.name) for key in keys()} == {
        "engine": Value("llamacpp", "default"),
        "model": Value("selftest", "default"),
        "source": Value("huggingface", "default"),
        "host": Value("127.0.0.1", "default"),
        "port": Value(11435, "default"),
        "api_key_file": Value(None, "default"),
        "context": Value(None, "default"),
        "parallel": Value(None, "default"),
        "timeout": Value(600, "default"),
        "gateway.max_body_mb": Value(64, "default"),
        "gateway.max_held": Value(200, "default"),
        "gateway.hold_timeout": Value(600, "default"),
        "gateway.stall_timeout": Value(45, "default"),
        "gateway.drain_timeout": Value(60, "default"),
        "gateway.origins": Value(None, "default"),
        "engines.llamacpp.threads": Value(None, "default"),
        "engines.llamacpp.gpu_layers": Value(None, "default"),
        "engines.llamacpp.server": Value(None, "default"),
        "engines.ollama.host": Value(None, "default"),
        "engines.ollama.models": Value(None, "default"),
        "engines.ollama.program": Value(None, "default"),
        "engines.ollama.spread": Value(None, "default"),
        **{key.name: Value(None, "default") for key in keys() if key.name.startswith("engines.vllm.")},
    }


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_every_key_is_complete(key: Key) -> None:
    assert key.default is None or key.rule.accepts(key.default)
    assert key.variable == "LLMDEPLOY_" + key.name.upper().replace(".", "_")
    assert key.variable not in ("LLMDEPLOY_CONFIG", "LLMDEPLOY_STATE_DIR", "LLMDEPLOY_API_KEY")
    assert key.help
    assert not key.help.endswith(".")


def test_precedence_of_sources(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        (str(user_file), lambda: write(user_file, "port = 1001")),
        ("./llmdeploy.toml", lambda: write(Path("llmdeploy.toml"), "port = 1002")),
        ("LLMDEPLOY_PORT", lambda: monkeypatch.setenv("LLMDEPLOY_PORT", "1003")),
    ]
    assert config.load({"port": None}).value("port") == Value(11435, "default")
    for number, (source, add) in enumerate(layers, 1001):
        assert config.load({"port": 9}).value("port") == Value(9, "--port")
        add()
        assert config.load({"port": None}).value("port") == Value(number, source)
        assert config.load().source("model") == "default"


@pytest.mark.parametrize(
    ("below", "above"), [("user", "project"), ("user", "variable"), ("project", "variable"), ("variable", "flag")]
)
def test_each_pair_of_sources(below: str, above: str, user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, object] = {}
    for source, value in ((below, 1), (above, 2)):
        match source:
            case "user":
                write(user_file, f"engines.llamacpp.threads = {value}")
            case "project":
                write(Path("llmdeploy.toml"), f"[engines.llamacpp]\nthreads = {value}")
            case "variable":
                monkeypatch.setenv("LLMDEPLOY_ENGINES_LLAMACPP_THREADS", str(value))
            case "flag":
                flags["engines.llamacpp.threads"] = value
    assert config.load(flags).llamacpp.threads == 2


def test_sources_add_up(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(user_file, 'model = "a"\n[engines.llamacpp]\nserver = "/opt/llama server"\ngpu_layers = -1\n')
    write(Path("llmdeploy.toml"), "timeout = 0.5\nengines = { llamacpp = { threads = 3 } }\n")
    monkeypatch.setenv("LLMDEPLOY_CONTEXT", "4096")
    loaded = config.load({"parallel": 2})
    assert (loaded.model, loaded.llamacpp.server, loaded.llamacpp.gpu_layers) == ("a", "/opt/llama server", -1)
    assert (loaded.timeout, loaded.llamacpp.threads, loaded.context, loaded.parallel) == (0.5, 3, 4096, 2)
    assert loaded.source("engines.llamacpp.threads") == "./llmdeploy.toml"


def test_empty_and_unknown_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"PORT": "", "MODLE": "x", "TEST_GPU": "1", "STATE_DIR": "/x", "THREADS": "no"}.items():
        monkeypatch.setenv(f"LLMDEPLOY_{name}", text)
    assert config.load() == Settings()


def test_byte_order_mark_and_windows_line_endings_are_read(user_file: Path) -> None:
    write(user_file, "\ufeffport = 1\r\nmodel = 'x'\r\n")
    assert (config.load().port, config.load().model) == (1, "x")


FILE_ERRORS = [
    ("prot = 1", ", line 1: unknown key `prot`", f"did you mean `port`? ({KEYS})"),
    ("\n# x\n[zzz]\na = 1", ", line 3: unknown key `zzz`", KEYS),
    ("threads = 2", ", line 1: unknown key `threads`", f"did you mean `engines.llamacpp.threads`? ({KEYS})"),
    (
        "[engines.llamacpp]\nserver = '/x'\nthread = 4",
        ", line 3: unknown key `engines.llamacpp.thread`",
        f"did you mean `engines.llamacpp.threads`? ({KEYS})",
    ),
    (
        "[engines.llamcpp]\nthreads = 4",
        ", line 1: unknown key `engines.llamcpp`",
        f"did you mean `engines.llamacpp`? ({KEYS})",
    ),
    (
        '"engines.llamacpp.threads" = 1',
        ', line 1: unknown key `"engines.llamacpp.threads"`',
        f"did you mean `engines.llamacpp.threads`? ({KEYS})",
    ),
    ('"\\u001b[31m" = 1', ', line 1: unknown key `"\\x1b[31m"`', KEYS),
    (f"{'z' * 99} = 1", f", line 1: unknown key `{'z' * 57}...`", KEYS),
    ('port = "abc"', ', line 1: `port` must be a whole number from 1 to 65535, not "abc"', PORT_HINT),
    ("port = 0", ", line 1: `port` must be a whole number from 1 to 65535, not 0", PORT_HINT),
    ("port = 65536", ", line 1: `port` must be a whole number from 1 to 65535, not 65536", PORT_HINT),
    ("port = true", ", line 1: `port` must be a whole number from 1 to 65535, not true", PORT_HINT),
    ("port = 80.0", ", line 1: `port` must be a whole number from 1 to 65535, not 80.0", PORT_HINT),
    ("port = [1]", ", line 1: `port` must be a whole number from 1 to 65535, not an array", PORT_HINT),
    ("port = 2026-01-01", ", line 1: `port` must be a whole number from 1 to 65535, not 2026-01-01", PORT_HINT),
    ("model = 'a'\n[port]", ", line 2: `port` must be a whole number from 1 to 65535, not a table", PORT_HINT),
    (
        "port = 0x" + "f" * 5000,
        ", line 1: `port` must be a whole number from 1 to 65535, not 0x" + "f" * 55 + "...",
        PORT_HINT,
    ),
    (
        "context = 0",
        ", line 1: `context` must be a whole number from 256 to 100000000, not 0",
        "`context` is the tokens that one request can hold (none: the plan chooses)",
    ),
    *(
        (
            f"timeout = {value}",
            f", line 1: `timeout` must be a number above 0, not {value}",
            "`timeout` is the seconds to wait for a server's start",
        )
        for value in ("0", "-1", "inf", "nan", "true")
    ),
    (
        'engine = "olama"',
        ', line 1: `engine` must be `llamacpp` or `ollama` or `vllm`, not "olama"',
        "`engine` is the engine that runs the model",
    ),
    *(
        (
            f'model = "{value}"',
            f', line 1: `model` must be a non-empty printable string, not "{shown}"',
            "`model` is the model to serve",
        )
        for value, shown in (("", ""), ("a\\u0000", "a\\x00"), ("a\\nb", "a\\nb"))
    ),
    *(
        (
            f'host = "{value}"',
            f', line 1: `host` must be an IP address or `localhost`, not "{value}"',
            "`host` is the address to listen on; one that others can reach needs an API key",
        )
        for value in ("", "example.com", "127.0.0.1:80", "[::1]", "127.1", "fe80::1%eth0", "0.0.0.0/0")
    ),
    *(
        (
            f"api_key_file = {value}",
            f", line 1: `api_key_file` must be the absolute path of a file, not {value}",
            "`api_key_file` is a file with the API key in its first line (none: LLMDEPLOY_API_KEY, or no key)",
        )
        for value in ('"key"', '""', "1")
    ),
    ('api_key = "x"', ", line 1: unknown key `api_key`", f"did you mean `api_key_file`? ({KEYS})"),
    (
        "[gateway]\nmax_held = -1",
        ", line 2: `gateway.max_held` must be a whole number from 0 to 100000, not -1",
        "`gateway.max_held` is the requests that wait at once while no server is ready",
    ),
    (
        "gateway.hold_timeout = 0",
        ", line 1: `gateway.hold_timeout` must be a number above 0, not 0",
        "`gateway.hold_timeout` is the seconds that a request waits for a server",
    ),
    (
        "port = 1\nengines = 3",
        ", line 2: `engines` must be a table, not 3",
        "write `[engines]` on a line, and its keys below it",
    ),
    (
        "[[engines.llamacpp]]\nthreads = 1",
        ", line 1: `engines.llamacpp` must be a table, not an array",
        "write `[engines.llamacpp]` on a line, and its keys below it",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), FILE_ERRORS, ids=range(len(FILE_ERRORS)))
def test_invalid_files(text: str, message: str, hint: str, user_file: Path) -> None:
    write(user_file, text)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert (caught.value.message, caught.value.hint) == (f"`{user_file}`{message}", hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port = 1\nmodel = x\n", "`./llmdeploy.toml`, line 2, column 9: invalid value"),
        (b"port = 1\nport = 2\n", "`./llmdeploy.toml`, line 2, column 9: cannot overwrite a value"),
        (b"port = [1,\n", "`./llmdeploy.toml`, end of document: invalid value"),
        (b"port = 1\nmodel = '\xff'\n", "`./llmdeploy.toml`, line 2: not UTF-8 text"),
        ("port = 1".encode("utf-16"), "`./llmdeploy.toml`, line 1: not UTF-8 text"),
        (b"a = " + b"[" * 5000, "`./llmdeploy.toml` is nested too deeply"),
        (b"a = " + b"9" * 5000, "`./llmdeploy.toml`: exceeds the limit (4300 digits) for integer string conver..."),
    ],
)
def test_file_that_is_not_toml(content: bytes, message: str) -> None:
    Path("llmdeploy.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert caught.value.message == message
    assert caught.value.hint


def test_folder_instead_of_a_file() -> None:
    Path("llmdeploy.toml").mkdir()
    with pytest.raises(ConfigError, match=r"^`\./llmdeploy\.toml` cannot be read: "):
        config.load()
    with pytest.raises(ConfigError, match=r"^`llmdeploy\.toml` is not a file that can be replaced$"):
        config_edit.set_value("port", "1", Path("llmdeploy.toml"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="file modes do not bind root")
def test_unreadable_file(user_file: Path) -> None:
    write(user_file, "port = 1").chmod(0)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert caught.value.message == f"`{user_file}` cannot be read: Permission denied"
    assert caught.value.hint == f"look at its owner and mode: `ls -ld {user_file}`"


def test_home_that_is_not_a_folder_is_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "user_config_file", lambda: write(tmp_path / "file", "") / "config.toml")
    assert config.load() == Settings()


def test_a_file_that_was_asked_for_must_exist(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDEPLOY_CONFIG", str(user_file))
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert caught.value.message == f"LLMDEPLOY_CONFIG names `{user_file}`, which does not exist"
    assert caught.value.hint == "`unset LLMDEPLOY_CONFIG`"
    config_edit.set_value("port", "7", user_file)
    assert config.load().value("port") == Value(7, str(user_file))


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("LLMDEPLOY_PORT", "abc", "LLMDEPLOY_PORT must be a whole number from 1 to 65535, not `abc`"),
        ("LLMDEPLOY_PORT", "1e3", "LLMDEPLOY_PORT must be a whole number from 1 to 65535, not `1e3`"),
        ("LLMDEPLOY_PORT", "9" * 5000, f"LLMDEPLOY_PORT must be a whole number from 1 to 65535, not `{'9' * 57}...`"),
        ("LLMDEPLOY_TIMEOUT", "soon", "LLMDEPLOY_TIMEOUT must be a number above 0, not `soon`"),
        ("LLMDEPLOY_TIMEOUT", "inf", "LLMDEPLOY_TIMEOUT must be a number above 0, not `inf`"),
        ("LLMDEPLOY_ENGINE", "x\x1b", "LLMDEPLOY_ENGINE must be `llamacpp` or `ollama` or `vllm`, not `x\\x1b`"),
        (
            "LLMDEPLOY_ENGINES_LLAMACPP_GPU_LAYERS",
            "-2",
            "LLMDEPLOY_ENGINES_LLAMACPP_GPU_LAYERS must be a whole number from -1 to 9999, not `-2`",
        ),
    ],
)
def test_invalid_variables(variable: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert (caught.value.message, caught.value.hint) == (message, f"`unset {variable}`")


def test_invalid_flags() -> None:
    with pytest.raises(UsageError) as caught:
        config.load({"engines.llamacpp.gpu_layers": -2})
    assert caught.value.message == "`--gpu-layers` must be a whole number from -1 to 9999, not `-2`"


def test_dots_in_texts_and_comments_are_not_counted() -> None:
    dots = "." * 100
    write(Path("llmdeploy.toml"), f'model = "a{dots}b" # {dots}\n# it\'s {dots}\nengine = "vllm"\n')
    assert config.load().model == f"a{dots}b"


def test_wrong_key_after_a_large_text_is_reported_in_bounded_time() -> None:
    write(Path("llmdeploy.toml"), f"a = [{'1,' * 400_000}]\n" + "#\n" * 400 + "modell = 1\n")
    before = time.process_time()
    with pytest.raises(ConfigError):
        config.load()
    write(Path("llmdeploy.toml"), f"#{'x' * 900_000}\n" + "#\n" * 400 + "modell = 1\n")
    with pytest.raises(ConfigError, match="unknown key `modell`"):
        config.load()
    assert time.process_time() - before < 5


PERSONAL = [
    ("host", "0.0.0.0", "who can send prompts"),
    ("api_key_file", "/tmp/key", "the API key"),
    ("engines.llamacpp.server", "/tmp/server", "a program to run"),
    ("engines.ollama.host", "example.com", "where prompts go"),
    ("engines.ollama.models", "/proc/self/cwd/store", "the models that are used"),
    ("gateway.origins", "https://a.example", "the web pages that may use the model"),
]


@pytest.mark.parametrize(("key", "value", "names"), PERSONAL, ids=lambda it: str(it))
def test_keys_that_a_project_file_must_not_set(key: str, value: str, names: str, user_file: Path) -> None:
    written = f'["{value}"]' if key == "gateway.origins" else f'"{value}"'
    write(Path("llmdeploy.toml"), f"{key} = {written}")
    with pytest.raises(ConfigError) as caught:
        config.load()
    said = f"`{key}` names {names}, which the file of a folder may not"
    assert caught.value.message == f"`./llmdeploy.toml`, line 1: {said}"
    assert f"`llmdeploy config set {key} " in caught.value.hint
    os.unlink("llmdeploy.toml")
    with pytest.raises(UsageError, match=said):
        config_edit.set_value(key, value, paths.PROJECT_CONFIG.absolute())
    assert not os.path.exists("llmdeploy.toml")
    config_edit.set_value(key, value, user_file)
    assert config.load().value(key).value == ([value] if key == "gateway.origins" else value)


LIMITS = {
    "timeout": 600,
    "gateway.max_body_mb": 64,
    "gateway.max_held": 200,
    "gateway.hold_timeout": 600,
    "gateway.drain_timeout": 60,
}


@pytest.mark.parametrize(("key", "most"), LIMITS.items())
def test_limits_that_a_project_file_must_not_raise(key: str, most: int, user_file: Path) -> None:
    assert {it.name for it in keys() if it.is_limit} == LIMITS.keys()
    project = paths.PROJECT_CONFIG.absolute()
    config_edit.set_value(key, str(most), project)
    config_edit.set_value(key, "1", project)
    said = f"`{key}` may be {most} at most in the file of a folder"
    with pytest.raises(UsageError, match=said):
        config_edit.set_value(key, str(most + 1), project)
    project.write_text(f"{key} = {most + 1}")
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert caught.value.message == f"`./llmdeploy.toml`, line 1: {said}"
    assert f"`llmdeploy config set {key} {most + 1}` writes" in caught.value.hint
    project.unlink()
    config_edit.set_value(key, str(most + 1), user_file)
    assert config.load().value(key).value == most + 1


def test_origins_are_a_list_in_files_variables_and_on_the_command_line(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_edit.set_value("gateway.origins", "https://a.example app://*", user_file)
    assert user_file.read_text() == '[gateway]\norigins = ["https://a.example", "app://*"]\n'
    monkeypatch.setenv("LLMDEPLOY_GATEWAY_ORIGINS", "https://b.example,tauri://localhost")
    assert config.load().gateway.origins == ["https://b.example", "tauri://localhost"]
    with pytest.raises(UsageError, match=r"`gateway\.origins` must be an array of origins such as"):
        config_edit.set_value("gateway.origins", "*", user_file)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("localhost", "http://localhost:80"),
        ("192.168.1.2", "http://192.168.1.2:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("fd00::2", "http://[fd00::2]:80"),
    ],
)
def test_local_url(host: str, url: str) -> None:
    assert local_url(host, 80) == url


COMMENTED = """\
# My machine.
model   = "selftest"    # small
"port" = 1 # an address

# llama.cpp
[engines.llamacpp]  # built by hand
    threads = 4
server = '/opt/x' # single quotes

# The end.
"""

EDITS = [
    # a new file
    ("", "port", "2", "port = 2\n"),
    ("", "engines.llamacpp.threads", "2", "[engines.llamacpp]\nthreads = 2\n"),
    # an existing value
    (COMMENTED, "model", 'a "b"', COMMENTED.replace('"selftest"', r'"a \"b\""')),
    (COMMENTED, "port", "65535", COMMENTED.replace("= 1 #", "= 65535 #")),
    (COMMENTED, "engines.llamacpp.threads", "8", COMMENTED.replace("4", "8")),
    (COMMENTED, "engines.llamacpp.server", "/a\\x", COMMENTED.replace("'/opt/x'", r'"/a\\x"')),
    ("port=1", "port", "2", "port=2"),
    ("model = 'a'\r\nport = 1 # x\r\n", "port", "2", "model = 'a'\r\nport = 2 # x\r\n"),
    # a wrong value, among unknown keys
    ("port = [ # x\n 1 ]\nprot = 3\n", "port", "2", "port = 2\nprot = 3\n"),
    # a new key goes to the end of its table, before the comments of the next table
    (COMMENTED, "timeout", "1.5", COMMENTED.replace("address\n", "address\ntimeout = 1.5\n")),
    (COMMENTED, "engines.llamacpp.gpu_layers", "-1", COMMENTED.replace("quotes\n", "quotes\ngpu_layers = -1\n")),
    ("[engines.llamacpp]", "engines.llamacpp.threads", "2", "[engines.llamacpp]\nthreads = 2"),
    ("[engines.llamacpp]\n", "port", "2", "port = 2\n\n[engines.llamacpp]\n"),
    ("model = 'a'\r\n\r\n[x]\r\n", "port", "2", "model = 'a'\r\nport = 2\r\n\r\n[x]\r\n"),
    ('model = """\na\nb"""\n# c', "port", "2", 'model = """\na\nb"""\nport = 2\n# c'),
    # other ways to write a table
    (
        "engines.llamacpp.threads = 1\n",
        "engines.llamacpp.gpu_layers",
        "2",
        "engines.llamacpp.threads = 1\nengines.llamacpp.gpu_layers = 2\n",
    ),
    (
        "engines = { llamacpp = { threads = 1 } }\n",
        "engines.llamacpp.threads",
        "2",
        "engines = { llamacpp = { threads = 2 } }\n",
    ),
    ("[engines]\nllamacpp.threads = 1\n", "engines.llamacpp.threads", "2", "[engines]\nllamacpp.threads = 2\n"),
    # a table of another engine, written by a newer version
    (
        "[engines.other]\nx = 1\n",
        "engines.llamacpp.threads",
        "2",
        "[engines.other]\nx = 1\n\n[engines.llamacpp]\nthreads = 2\n",
    ),
    ("port = 1\n", "engines.llamacpp.threads", "2", "port = 1\n\n[engines.llamacpp]\nthreads = 2\n"),
]


@pytest.mark.parametrize(("before", "key", "text", "after"), EDITS, ids=range(len(EDITS)))
def test_an_edit_changes_nothing_else(before: str, key: str, text: str, after: str, user_file: Path) -> None:
    if before:
        write(user_file, before)
    config_edit.set_value(key, text, user_file)
    assert user_file.read_bytes().decode() == after
    assert os.listdir(user_file.parent) == ["config.toml"]


@pytest.mark.parametrize(
    ("key", "text", "message", "hint"),
    [
        ("prot", "1", "unknown key `prot`", f"did you mean `port`? ({KEYS})"),
        (
            "engines.llamacpp",
            "1",
            "unknown key `engines.llamacpp`",
            f"did you mean `engines.llamacpp.server`? ({KEYS})",
        ),
        ("port", "abc", "`port` must be a whole number from 1 to 65535, not `abc`", PORT_HINT),
        ("port", "", "`port` must be a whole number from 1 to 65535, not ``", PORT_HINT),
        ("model", "", "`model` must be a non-empty printable string, not ``", "`model` is the model to serve"),
    ],
)
def test_a_wrong_command_line_touches_no_file(key: str, text: str, message: str, hint: str, user_file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        config_edit.set_value(key, text, user_file)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert not user_file.parent.exists()


@pytest.mark.parametrize(
    ("before", "key", "message"),
    [
        ("port = x", "port", ", line 1, column 8: invalid value"),
        ("\n[port]\nx = 1", "port", ", line 2: `port` must be a whole number from 1 to 65535, not a table"),
        ("engines = 3", "engines.llamacpp.threads", ", line 1: `engines` must be a table, not 3"),
        ("x = nan", "port", " is written in a way that cannot be edited here"),
    ],
)
def test_a_file_that_cannot_be_edited_is_left_alone(before: str, key: str, message: str, user_file: Path) -> None:
    write(user_file, before)
    with pytest.raises(ConfigError) as caught:
        config_edit.set_value(key, "1", user_file)
    assert caught.value.message == f"`{user_file}`{message}"
    assert user_file.read_text() == before


def test_folder_that_cannot_be_created(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "kept") / "config.toml"
    with pytest.raises(ConfigError) as caught:
        config_edit.set_value("port", "1", file)
    assert caught.value.message == f"`{file}` cannot be written: Not a directory"
    assert caught.value.hint == f"look at its owner and mode: `ls -ld {tmp_path / 'file'}`"
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="file modes do not bind root")
def test_folder_that_is_not_writable(user_file: Path) -> None:
    write(user_file, "port = 1")
    user_file.parent.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        config_edit.set_value("port", "2", user_file)
    user_file.parent.chmod(0o700)
    assert user_file.read_text() == "port = 1"


def test_failed_write_keeps_the_old_file(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write(user_file, "port = 1")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        config_edit.set_value("port", "2", user_file)
    assert user_file.read_text() == "port = 1"
    assert os.listdir(user_file.parent) == ["config.toml"]


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_modes_and_links_are_kept(tmp_path: Path, user_file: Path) -> None:
    config_edit.set_value("port", "1", user_file)
    assert stat.S_IMODE(user_file.stat().st_mode) == 0o600
    user_file.chmod(0o644)
    link = tmp_path / "link.toml"
    link.symlink_to(user_file)
    config_edit.set_value("port", "2", link)
    assert stat.S_IMODE(user_file.stat().st_mode) == 0o644
    assert (link.is_symlink(), user_file.read_text()) == (True, "port = 2\n")


@pytest.mark.skipif(os.name != "posix", reason="/dev/null")
def test_a_device_is_read_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "user_config_file", lambda: Path(os.devnull))
    assert config.load() == Settings()
    with pytest.raises(ConfigError, match="is not a file that can be replaced"):
        config_edit.set_value("port", "1", Path(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def accepted(key: Key) -> st.SearchStrategy[object]:
    """Generate values that a key accepts."""
    if isinstance(key.rule, Whole):
        return st.integers(key.rule.low, key.rule.high)
    if isinstance(key.rule, Fraction):
        return st.floats(0, 1, exclude_min=True)
    if isinstance(key.rule, Arguments):
        return st.lists(st.text(min_size=1).filter(str.isprintable))
    if isinstance(key.rule, Origins):
        return st.lists(st.sampled_from(["https://app.example", "chrome-extension://abcdef", "app://*"]))
    if isinstance(key.rule, Positive):
        return st.integers(1, 10**6) | st.floats(0, 10**6, exclude_min=True)
    if isinstance(key.rule, Switch):
        return st.booleans()
    if isinstance(key.rule, Absolute):
        return st.text(min_size=1).filter(str.isprintable).map(lambda text: f"/{text}")
    if isinstance(key.rule, Host):
        return st.ip_addresses().map(str).filter(key.rule.accepts) | st.just("localhost")
    return st.sampled_from(key.rule.choices) if key.rule.choices else st.text(min_size=1).filter(str.isprintable)


ASSIGNMENTS = st.lists(
    st.sampled_from(keys()).flatmap(lambda key: st.tuples(st.just(key.name), accepted(key))), min_size=1
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(assignments=ASSIGNMENTS, before=st.sampled_from(["", COMMENTED, "engines.llamacpp.threads = 1", "# x\r\n"]))
def test_set_values_are_loaded(assignments: list[tuple[str, object]], before: str, user_file: Path) -> None:
    write(user_file, before)
    for name, value in assignments:
        text = shlex.join(value) if isinstance(value, list) else str(value)
        text = text.lower() if isinstance(value, bool) else text
        config_edit.set_value(name, text, user_file)
        assert config.load().value(name) == Value(value, str(user_file))
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert [line for line in user_file.read_text().splitlines() if line.startswith("#")] == comments
    loaded = config.load()
    assert {name: loaded.value(name).value for name, _ in assignments} == dict(assignments)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a = 1\nb = 2", "b", 2),
        ("# b = 1\n\n  b = 2", "b", 3),
        ("a = 1", "b", None),
        ("[x]\nb = 1\n[y]\nb = 2", "y.b", 4),
        ("[ x . 'y' ]\n\"b\" = 1", "x.y.b", 2),
        ("[x]\ny.b = 1", "x.y.b", 2),
        ("[x]\ny.a = 1\ny.b = 1", "x.y.b", 3),
        ("a = 1\r\n[x.y]\r\nb = 1\r\n", "x", 2),
        ('a = """\nb = 1\n"""\nb = 2', "b", 4),
        ("a = [\n  '[b]',\n  # b = 1\n]\nb = 2", "b", 5),
        ("a = 1\nb = [\n1,\n2]", "b", 2),
        ("x = { y = { b = 1 } }", "x.y.b", 1),
        ("[[x]]\nb = 1", "x", 1),
        ("[[x]]\nb = 1", "x.b", None),
        ('"\\u0062" = 1', "b", 1),
        ("\n" * 1000 + "b = 1", "b", None),  # a file this long is not searched
    ],
)
def test_the_line_of_a_key(text: str, key: str, line: int | None) -> None:
    assert tomllib.loads(text)
    assert line_of(text, tuple(key.split("."))) == line


def test_import_is_light() -> None:
    heavy = ("tomllib", "tomlkit", "msgspec", "difflib", "platformdirs", "tempfile")
    code = f"import sys, llmdeploy.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_configuration_file_that_is_a_terminal_is_refused(tmp_path: Path) -> None:
    """Check a link such as one to `/dev/stdin`: reading it would wait until somebody types."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    try:
        (tmp_path / "llmdeploy.toml").symlink_to(os.ttyname(slave))
        with pytest.raises(ConfigError, match="`x` is a terminal"):
            toml_file.read(tmp_path / "llmdeploy.toml", "x")
        assert toml_file.read(Path(os.devnull), "x") == ""
    finally:
        os.close(master)
        os.close(slave)
