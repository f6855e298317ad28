"""The states of Ollama: each has its message and its hint, in time, in `serve` and in `doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmdeploy.config import Settings
from llmdeploy.engines.ollama import host, state
from llmdeploy.engines.ollama.documents import Running
from llmdeploy.engines.ollama.hints import hints
from llmdeploy.engines.ollama.probe import Probe
from llmdeploy.engines.ollama.settings import OllamaSettings
from llmdeploy.engines.ollama.state import PROGRAMS, State, describe, detect, find_program, listener, processor
from tests.conftest import BUSY, Result, World
from tests.ollama_replay import FORBIDDEN, HTML, SSH, closed_port, http_answer, port, replay

GET = hints(sys.platform)["get"]
TAKEN = "is taken by no Ollama that we can use"
ELSEWHERE = "name Ollama's address: `llmdeploy config set engines.ollama.host 127.0.0.1:11434`"
installed = pytest.mark.skipif(
    any(os.access(os.path.expandvars(place), os.X_OK) for place in PROGRAMS),
    reason="an Ollama is installed here, where it is always found",
)


@pytest.fixture
def bare(world: World) -> World:
    """Return a world without programs on the PATH, where nothing answers at Ollama's address."""
    folder = world.folder / "empty"
    folder.mkdir()
    world.environment["PATH"] = str(folder)
    world.environment["OLLAMA_HOST"] = f"127.0.0.1:{closed_port()}"
    return world


def program(world: World, script: str = "exit 1", version: str = "0.33.0") -> Path:
    """Put a program called `ollama` on the PATH of this world. Return its path."""
    path = world.folder / "bin" / "ollama"
    path.parent.mkdir()
    tell = "Warning: could not connect to a running Ollama instance"
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "{tell}"; echo "Warning: client version is {version}"; exit 0; fi\n'
        f"{script}\n"
    )
    path.chmod(0o755)
    world.environment["PATH"] = f"{path.parent}:{os.environ['PATH']}"
    return path


def in_time(world: World, *arguments: str, seconds: float = 3, **variables: str) -> Result:
    began = time.monotonic()
    result = world.run(*arguments, **variables)
    assert time.monotonic() - began < seconds * BUSY
    return result


def serve(world: World, **variables: str) -> tuple[str, str]:
    """Run `serve`. Return its error and hint, which must come quickly."""
    result = in_time(world, "serve", "selftest", "--engine", "ollama", **variables)
    assert (result.status, result.stdout) == (1, ""), result.text
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


def doctor(world: World, **variables: str) -> tuple[str, str, str]:
    """Return the status, detail and hint of `doctor` for Ollama."""
    result = in_time(world, "doctor", "--json", **variables)
    [check] = [it for it in json.loads(result.stdout)["checks"] if it["name"] == "ollama"]
    assert result.status == (1 if check["status"] == "fail" else 0), result.text
    return check["status"], check["detail"], check["hint"]


# --- None


@installed
def test_missing_ollama_is_reported_with_a_download_hint(bare: World) -> None:
    assert bare.run("config", "set", "engine", "ollama").status == 0
    expected = f"error: no Ollama on this machine\nhint: get it: {GET}\n"
    for command in (["serve"], ["serve", "qwen3:8b"], ["serve", "--detach"], ["chat", "hello"]):
        result = in_time(bare, *command, seconds=2)
        assert (result.status, result.stdout) == (1, ""), result.text
        assert result.stderr.endswith(expected)
    found = in_time(bare, "doctor", seconds=2)
    assert found.status == 1
    assert "fail  ollama    no Ollama on this machine\n" in found.stdout
    assert f"hint: ollama: get it: {GET}\n" in found.stderr


@installed
def test_missing_ollama_is_not_an_error_for_another_engine(bare: World) -> None:
    assert doctor(bare) == ("ok", "no Ollama on this machine", "")


@installed
def test_malformed_address_is_reported_with_a_missing_ollama(bare: World) -> None:
    # The address may be the reason why no Ollama was found.
    message, hint = serve(bare, OLLAMA_HOST=f"127.0.0.1:{closed_port()}0000")
    assert message == "no Ollama on this machine"
    assert hint.startswith("`OLLAMA_HOST` has the port `")
    assert hint.endswith(f"; get it: {GET}")


# --- A program, and nothing at its address


def test_installed_program_can_be_started(bare: World) -> None:
    path = program(bare)
    detail = f"Ollama 0.33.0 at `{path}`, not running: `llmdeploy serve` starts it".replace(
        str(bare.folder), "[FOLDER]"
    )
    assert doctor(bare) == ("ok", detail, "")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (
            "Error: listen tcp 127.0.0.1:11434: bind: address already in use",
            "the server ended before it was ready: another program listens at Ollama's address: usually an Ollama "
            "that runs already",
        ),
        (
            "Error: could not create directory mkdir /root/.ollama: permission denied",
            "the server ended before it was ready: Ollama's server cannot write its own folder `.ollama` in the home "
            "of its user",
        ),
        (
            "Error: mkdir /dev/null: not a directory: ensure path elements are traversable",
            "the server ended before it was ready: Ollama says: mkdir /dev/null: not a directory: ensure path elements "
            "are traversable",
        ),
        ("something else", "the server ended before it was ready (status 1): something else"),
    ],
)
def test_program_that_exits_is_explained(bare: World, words: str, cause: str) -> None:
    program(bare, f"echo '{words}' >&2; exit 1")
    message, hint = serve(bare)
    assert message == cause
    assert hint.endswith("its log is `[FOLDER]/state/server.log`")


def test_configured_path_that_is_not_a_program(bare: World) -> None:
    bare.environment["LLMDEPLOY_ENGINES_OLLAMA_PROGRAM"] = "/no/ollama"
    expected = (
        "`/no/ollama` (set by `engines.ollama.program`) is not a program",
        "name another: `llmdeploy config set engines.ollama.program /path/to/ollama`",
    )
    assert serve(bare) == expected
    assert doctor(bare) == ("warn", *expected)


def test_malformed_address_is_reported(bare: World) -> None:
    program(bare)
    _, _, hint = doctor(bare, OLLAMA_HOST=f"127.0.0.1:{closed_port()}0000")
    assert hint.startswith("`OLLAMA_HOST` has the port `")
    assert hint.endswith("which is none: Ollama warns and uses 11434")


# --- Something else at its address

OTHERS: dict[str, tuple[bytes, str]] = {
    "html": (http_answer("text/html", HTML), "another program: a web page `Grafana` (status 200)"),
    "403": (FORBIDDEN, "it refuses us (status 403): an Ollama behind a proxy, or its rules"),
    "ssh": (SSH, "what listens at `URL` does not speak HTTP"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_programs_at_the_address_are_distinguished(bare: World, other: str) -> None:
    program(bare, "echo must not be started >&2")
    answer, detail = OTHERS[other]
    with port(answer) as url:
        expected = (f"`{url}` {TAKEN}: {detail.replace('URL', url)}", ELSEWHERE)
        assert serve(bare, OLLAMA_HOST=url) == expected
        assert doctor(bare, OLLAMA_HOST=url) == ("warn", *expected)
        assert doctor(bare, OLLAMA_HOST=url, LLMDEPLOY_ENGINE="ollama") == ("fail", *expected)


# Whether a process of this machine is called Ollama is chance.
RUNS = """
import sys
from llmdeploy.engines.ollama import state
state._ollama_runs = lambda: {runs}
from llmdeploy.__main__ import main
sys.exit(main())
"""


def run_where_ollama(world: World, runs: bool, *arguments: str, **variables: str) -> tuple[Result, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNS.format(runs=runs), *arguments],
        env=world.environment | variables, cwd=world.work, stdin=subprocess.DEVNULL, capture_output=True, timeout=30,
    )  # fmt: skip
    return Result(done.returncode, world.plain(done.stdout), world.plain(done.stderr)), time.monotonic() - began


def test_silent_port_is_reported(bare: World) -> None:
    with port(None) as url:
        result, seconds = run_where_ollama(bare, False, "serve", "selftest", "--engine", "ollama", OLLAMA_HOST=url)
    assert result.text == (
        "exit 1\n--- stdout\n--- stderr\n[TIME] checking\n"
        f"error: `{url}` {TAKEN}: `{url}` accepts connections and does not answer\n"
        f"hint: {ELSEWHERE}\n"
    )
    assert seconds < 3 * BUSY


def test_silent_port_of_a_starting_ollama_is_waited_for(bare: World) -> None:
    # The wait is reported, and has a limit.
    arguments = ("serve", "selftest", "--engine", "ollama", "--timeout", "6")
    with port(None) as url:
        result, seconds = run_where_ollama(bare, True, *arguments, OLLAMA_HOST=url)
    assert result.text == (
        "exit 1\n--- stdout\n--- stderr\n[TIME] checking\n[TIME] reaching ollama\n"
        f"[TIME] still reaching ollama: attached to {url}, which keeps a log of its own\n"
        "error: the server was not ready after 6 s, still reaching ollama\n"
        "hint: give it longer with `--timeout`; its log is `[FOLDER]/state/server.log`\n"
    )
    assert 6 < seconds < 12


def test_doctor_does_not_wait_for_a_starting_ollama(bare: World) -> None:
    with port(None) as url:
        result, seconds = run_where_ollama(bare, True, "doctor", OLLAMA_HOST=url)
    assert f"ok  ollama    Ollama at `{url}` starts: it does not answer yet\n" in result.stdout
    assert seconds < 3 * BUSY


def test_remote_machine_that_does_not_answer(bare: World) -> None:
    # No server is started on this machine.
    program(bare, "echo must not be started >&2")
    message, hint = serve(bare, OLLAMA_HOST="http://192.0.2.1:11434")
    assert "`http://192.0.2.1:11434`" in message
    assert hint == "start Ollama there, or `unset OLLAMA_HOST`"


# --- One that runs


def test_running_ollama_has_version_store_and_processor(bare: World) -> None:
    with replay("version", "show", "tags", "load_unload") as ollama:
        released = ollama.exchanges.pop(-1)  # the last word on what runs stays that something does
        assert released["response"]["chunks"][0][1] == '{"models":[]}'
        [shown] = [one for one in ollama.exchanges if one["request"]["body"] == {"model": "selftest"}]
        shown["request"]["body"]["model"] = "selftest:latest"
        expected = f"Ollama 0.33.0-rc2 at `{ollama.url}`, store `/var/lib/ollama/models`, computes on the CPU"
        assert doctor(bare, OLLAMA_HOST=ollama.url) == ("ok", expected, "")
        assert ollama.unknown == []


def test_running_ollama_with_an_empty_store(bare: World) -> None:
    with replay("version", "empty_store") as ollama:
        assert doctor(bare, OLLAMA_HOST=ollama.url) == ("ok", f"Ollama 0.33.0-rc2 at `{ollama.url}`", "")


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("0.34.2", f"the program is 0.34.2, newer than the server that runs: {hints(sys.platform)['restart']}"),
        ("0.33.0-rc2", ""),
        ("0.0.0", ""),
        ("0.32.9", ""),
    ],
)
def test_server_older_than_its_program_is_reported(bare: World, version: str, hint: str) -> None:
    program(bare, version=version)
    with replay("version", "empty_store") as ollama:
        found = doctor(bare, OLLAMA_HOST=ollama.url)
    assert found == ("warn" if hint else "ok", f"Ollama 0.33.0-rc2 at `{ollama.url}`", hint)


def test_program_that_hangs_does_not_delay_detection(bare: World) -> None:
    path = program(bare)
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    with replay("version", "empty_store") as ollama:
        began = time.monotonic()
        found = detect(Settings(ollama=OllamaSettings(program=str(path), host=ollama.url)))
        assert time.monotonic() - began < 2.2 * BUSY
    assert (found.probe.state, found.program_version) == ("running", None)


def test_details_of_a_running_ollama_may_fail(bare: World) -> None:
    # Ollama is still reported as running.
    with replay("version") as ollama:
        found = detect(Settings(ollama=OllamaSettings(host=ollama.url)))
        assert {path for _, path, _ in ollama.unknown} == {"/api/tags"}
    assert describe(found).detail == f"Ollama 0.33.0-rc2 at `{ollama.url}`"


# --- Whose it is

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 19243 1 0000000000000000 100
   1: 0100007F:2CAB 0100007F:2CAA 01 00000000:00000000 00:00000000 00000000  1000        0 19244 1 0000000000000000 100
   2: 0100007F:2CAA 0100007F:2CAB 01 00000000:00000000 00:00000000 00000000     0        0 19245 1 0000000000000000 100
"""


def test_user_of_a_listening_port() -> None:
    assert listener(TCP, 11434) == 998
    assert listener(TCP, 11435) is None  # a connection is not a listening socket
    assert listener("", 11434) is None
    assert listener("header\ngarbage\n", 11434) is None


def test_ollama_of_another_user_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    # An Ollama of the same user is not: the real table of the system decides.
    with replay("version", "empty_store") as ollama:
        settings = Settings(ollama=OllamaSettings(host=ollama.url))
        assert detect(settings).owner is None
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
        found = detect(settings)
    if not Path("/proc/net/tcp").exists():
        pytest.skip("only Linux tells")
    import pwd

    name = pwd.getpwuid(os.getuid()).pw_name
    assert found.owner == name
    assert f", run by user `{name}`" in describe(found).detail


# --- In words: pure

URL = "http://127.0.0.1:11434"
RUNNING = State(host.parse(None), Probe("running", "0.33.0", "Ollama 0.33.0"))
REFUSED = State(host.parse(None), Probe("refused", None, f"nothing answers at `{URL}`"))


@pytest.mark.parametrize(
    ("found", "usable", "detail", "hint"),
    [
        (RUNNING, True, f"Ollama 0.33.0 at `{URL}`", ""),
        (replace(RUNNING, owner="ollama"), True, f"Ollama 0.33.0 at `{URL}`, run by user `ollama`", ""),
        (
            replace(RUNNING, owner="ollama", store=Path("/s"), processor="on the GPU"),
            True,
            f"Ollama 0.33.0 at `{URL}`, run by user `ollama`, store `/s`, computes on the GPU",
            "",
        ),
        (REFUSED, False, "no Ollama on this machine", "get it: `curl -fsSL https://ollama.com/install.sh | sh`"),
        (
            replace(REFUSED, program=Path("/bin/ollama")),
            True,
            "Ollama of an unknown version at `/bin/ollama`, not running: `llmdeploy serve` starts it",
            "",
        ),
        (
            replace(REFUSED, host=host.parse("http://h:1")),
            False,
            f"nothing answers at `{URL}`",
            "start Ollama there, or `unset OLLAMA_HOST`",
        ),
        (
            State(host.parse("127.0.0.1:abc"), Probe("other", None, "another program: x")),
            False,
            f"`{URL}` {TAKEN}: another program: x",
            "`OLLAMA_HOST` has the port `abc`, which is none: Ollama warns and uses 11434; `unset OLLAMA_HOST`",
        ),
    ],
)
def test_description_of_each_state(found: State, usable: bool, detail: str, hint: str) -> None:
    status = describe(found, "linux")
    assert (status.usable, status.detail, status.hint) == (usable, detail, hint)
    assert status.installed is (detail != "no Ollama on this machine")


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_hints_of_each_operating_system(platform: str) -> None:
    assert describe(REFUSED, platform).hint == f"get it: {hints(platform)['get']}"
    old = replace(RUNNING, program_version="0.99.0")
    assert describe(old, platform).hint.endswith(hints(platform)["restart"])
    assert hints(platform).keys() == hints("linux").keys()


@pytest.mark.parametrize(
    ("size", "size_vram", "file_size", "words"),
    [
        (1000, 0, 600, "on the CPU"),
        (600, 0, 600, "on the CPU"),
        (1000, 1000, 600, "on the GPU"),
        (1000, 250, 600, "25 % on the GPU, 75 % on the CPU"),
        (600, 600, 600, "where, it does not tell"),  # it could not read what was allocated: no GPU is proved
        (0, 0, 0, "on the CPU"),
        (0, 5, 600, "where, it does not tell"),
        (500, 600, 600, "where, it does not tell"),
    ],
)
def test_device_of_a_loaded_model(size: int, size_vram: int, file_size: int, words: str) -> None:
    assert processor(Running("x", size, size_vram, None, None), file_size) == words


# --- The program


def test_program_is_found_on_path_and_in_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, on_path = tmp_path / "usual" / "ollama", tmp_path / "path" / "ollama"
    for path in (usual, on_path):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setattr(state, "PROGRAMS", ("/nowhere/ollama", str(usual)))
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_program(Settings()) == (on_path, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program(Settings()) == (usual, "")
    usual.chmod(0o644)
    assert find_program(Settings()) == (None, "")
    assert find_program(Settings(ollama=OllamaSettings(program=str(on_path)))) == (on_path, "")
    problem = f"`{usual}` (set by `engines.ollama.program`) is not a program"
    assert find_program(Settings(ollama=OllamaSettings(program=str(usual)))) == (None, problem)


def test_every_state_is_detected_in_time() -> None:
    # Every engine reports its status within 2 s, whatever answers at the address.

    def seconds(url: str) -> float:
        began = time.monotonic()
        detect(Settings(ollama=OllamaSettings(host=url)))
        return time.monotonic() - began

    for answer in (None, b"", FORBIDDEN, SSH, http_answer("text/html", HTML)):
        with port(answer) as url:
            assert seconds(url) < 2.2, answer
    assert seconds("http://192.0.2.1:11434") < 2.2
