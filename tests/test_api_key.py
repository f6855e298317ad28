"""The API key, and the addresses that need one."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from llmdeploy import paths
from llmdeploy.cli.serve import _check_key
from llmdeploy.config import Settings, api_key, keys
from llmdeploy.errors import ConfigError

KEYS = "`llmdeploy config show` lists the keys"
PORT_HINT = "`port` is the port of the address that applications use"


def keyed(tmp_path: Path, content: str | bytes, mode: int = 0o600) -> Settings:
    file = tmp_path / "a key"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return Settings(api_key_file=str(file))


@pytest.mark.parametrize("content", ["k-1\n", "k-1", " k-1 \r\nwhat follows\n", "k-1\n\xff"])
def test_the_key_of_a_file_is_its_first_line(content: str, tmp_path: Path) -> None:
    assert api_key.read(keyed(tmp_path, content)) == "k-1"


def test_variable_takes_precedence_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = keyed(tmp_path, "file", mode=0o644)
    assert api_key.read(Settings()) is None
    monkeypatch.setenv("LLMDEPLOY_API_KEY", "variable it's $x")
    assert api_key.read(settings) == "variable it's $x"
    assert "LLMDEPLOY_API_KEY" not in {key.variable for key in keys()}, "a key of the configuration would be shown"


UNUSABLE = [
    ("\n", "`[FILE]` holds no API key"),
    (" \t\nk", "`[FILE]` holds no API key"),
    ("", "`[FILE]` holds no API key"),
    ("a\tb", "the API key in `[FILE]` has characters that cannot stand in a header"),
    ("a\x00", "the API key in `[FILE]` has characters that cannot stand in a header"),
    ("schlüssel", "the API key in `[FILE]` has characters that cannot stand in a header"),
    ("\ufeffa", "the API key in `[FILE]` has characters that cannot stand in a header"),
    ("a" * 4097, "the API key in `[FILE]` is longer than 4096 characters"),
    ("a" * 10**6, "the API key in `[FILE]` is longer than 4096 characters"),
]


@pytest.mark.parametrize(("content", "message"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_invalid_keys_are_refused(content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = keyed(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        api_key.read(settings)
    assert caught.value.message == message.replace("[FILE]", str(settings.api_key_file))
    assert caught.value.hint == "`openssl rand -hex 32` prints a good one"
    if content.isprintable() and len(content) in range(1, 5000):
        monkeypatch.setenv("LLMDEPLOY_API_KEY", content)
        with pytest.raises(ConfigError) as caught:
            api_key.read(Settings())
        assert caught.value.message == message.replace("`[FILE]`", "LLMDEPLOY_API_KEY")


def test_blank_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDEPLOY_API_KEY", " ")
    with pytest.raises(ConfigError, match=r"^LLMDEPLOY_API_KEY holds no API key$"):
        api_key.read(Settings())


@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them")
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o666])
def test_a_key_that_others_can_read_is_refused_until_its_hint_is_followed(mode: int, tmp_path: Path) -> None:
    settings = keyed(tmp_path, "k", mode)
    with pytest.raises(ConfigError) as caught:
        api_key.read(settings)
    assert caught.value.message == f"others may read or change `{settings.api_key_file}`, which holds the API key"
    assert caught.value.hint == f"`chmod 600 '{settings.api_key_file}'`"
    subprocess.run(["sh", "-c", caught.value.hint.strip("`")], check=True)
    assert api_key.read(settings) == "k"


@pytest.mark.skipif(os.name != "posix", reason="a shell, pipes and modes as POSIX has them")
def test_key_file_that_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(ConfigError, match=r"which is not a file$"):
            api_key.read(Settings(api_key_file=str(path)))
    missing = Settings(api_key_file=str(tmp_path / "it's"))
    with pytest.raises(ConfigError, match=r"which does not exist$") as caught:
        api_key.read(missing)
    subprocess.run(["sh", "-c", caught.value.hint.removesuffix(" makes one").strip("`")], check=True)
    found = api_key.read(missing)
    assert found is not None
    assert len(found) == 64


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="file modes do not bind root")
def test_unreadable_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        api_key.read(keyed(tmp_path, "k", 0))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    api_key.require(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "fe80::1", "::ffff:127.0.0.1"])
def test_any_other_address_needs_one(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api_key.require(host, "k")
    monkeypatch.setattr(paths, "user_config_file", lambda: tmp_path / "no such" / "config.toml")
    with pytest.raises(ConfigError) as caught:
        api_key.require(host, None)
    assert caught.value.message == f"others can reach `{host}`, and no API key is set"
    make, _, use = caught.value.hint.removeprefix("make one: `").removesuffix("`").rpartition(" && ")
    subprocess.run(["sh", "-c", make], check=True)
    [*command, file] = shlex.split(use)
    assert command == ["llmdeploy", "config", "set", "api_key_file"]
    api_key.require(host, api_key.read(Settings(api_key_file=file)))


def test_pages_of_other_origins_need_a_key() -> None:
    api_key.require("127.0.0.1", "k", ["https://a.example"])
    api_key.require("127.0.0.1", None, [])
    with pytest.raises(ConfigError) as caught:
        api_key.require("127.0.0.1", None, ["https://a.example"])
    assert caught.value.message == "`gateway.origins` lets web pages use the model, and no API key is set"
    assert caught.value.hint == f"make one: `{api_key.make_command()}`"


def test_serve_warns_of_a_short_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for length in (15, 16):
        monkeypatch.setenv("LLMDEPLOY_API_KEY", "k" * length)
        _check_key(Settings())
        said = " ".join(capsys.readouterr().err.split())
        assert ("only 15 characters, and may be guessed; use 16 or more: `openssl" in said) == (length == 15)
