"""The state of Ollama on this machine: program, server, user, store and processor. Raises nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmdeploy.background import start, within
from llmdeploy.engines.base import EngineStatus
from llmdeploy.engines.ollama import failures, host
from llmdeploy.engines.ollama.api import Daemon
from llmdeploy.engines.ollama.hints import hints
from llmdeploy.engines.ollama.probe import Probe, probe

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.engines.ollama.documents import Running
    from llmdeploy.engines.ollama.host import Host

SECONDS = 1.9
"""Seconds that the whole detection may take."""
VERSION_SECONDS = 1.5

PROGRAMS = (
    "/usr/local/bin/ollama",
    "/usr/bin/ollama",
    "/opt/homebrew/bin/ollama",
    "/Applications/Ollama.app/Contents/Resources/ollama",
    r"%LOCALAPPDATA%\Programs\Ollama\ollama.exe",
)
"""The places where Ollama's installers put the program; the PATH of a service may lack them."""


@dataclass(frozen=True)
class State:
    """The program and the server of Ollama, as they were detected."""

    host: Host
    probe: Probe
    program: Path | None = None
    program_version: str | None = None
    program_problem: str = ""
    """The reason why the configured program cannot be run; empty if it can."""
    starting: bool = False
    """Whether the server accepts connections but does not answer yet: it searches for GPUs first."""
    owner: str | None = None
    """The user that the server runs as, if it is another user."""
    store: Path | None = None
    processor: str = ""
    """The device of the loaded model, in words; empty if no model is loaded."""


def detect(settings: Settings) -> State:
    """Detect the current state. Takes under 2 s."""
    deadline = time.monotonic() + SECONDS
    at = host.parse(settings.ollama.host or os.environ.get("OLLAMA_HOST"))
    program, problem = find_program(settings)
    asking = start(lambda: _program_version(program))
    found = probe(at.url)
    try:
        version = asking.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        version = None
    state = State(at, found, program, version, problem)
    if not host.is_local_url(at.url) or found.state == "refused":
        return state
    try:
        return within(max(0.05, deadline - time.monotonic()), lambda: _with_details(state))
    except Exception:  # the state is shown without these details
        return state


def _with_details(state: State) -> State:
    """Return the state with the details that need more requests."""
    state = replace(state, owner=_owner(urlsplit(state.host.url).port or 0))
    if state.probe.state == "silent":
        return replace(state, starting=_ollama_runs())
    if state.probe.state != "running":
        return state
    daemon = Daemon(state.host.url)
    models, running = daemon.models(), daemon.running()
    sizes = {one.name: one.size for one in models}
    blobs = next((daemon.show(one.name).blobs for one in models if not one.remote_host), ())
    return replace(
        state,
        store=Path(blobs[0]).parents[1] if blobs else None,
        processor=processor(running[0], sizes.get(running[0].name, 0)) if running else "",
    )


def describe(state: State, platform: str = sys.platform) -> EngineStatus:
    """Describe the state in words, and decide whether it can serve a model."""
    how = hints(platform)
    version = state.probe.version or state.program_version
    if state.probe.state == "running":
        return EngineStatus(True, version, _running_words(state), _running_hint(state, how))
    if state.starting:
        return EngineStatus(True, version, f"Ollama at `{state.host.url}` starts: it does not answer yet")
    if state.probe.state in {"other", "forbidden", "silent"}:
        at = f"`{state.host.url}` is taken by no Ollama that we can use"
        return EngineStatus(False, None, f"{at}: {state.probe.detail}", _elsewhere(state))
    if state.program_problem:
        return EngineStatus(
            False,
            None,
            state.program_problem,
            "name another: `llmdeploy config set engines.ollama.program /path/to/ollama`",
        )
    if not host.is_local_url(state.host.url):
        return EngineStatus(False, None, state.probe.detail, "start Ollama there, or `unset OLLAMA_HOST`")
    if state.program is None:
        hint = "; ".join(filter(None, (state.host.problem, f"get it: {how['get']}")))
        return EngineStatus(False, None, "no Ollama on this machine", hint, installed=False)
    detail = (
        f"Ollama {version or 'of an unknown version'} at `{state.program}`, not running: `llmdeploy serve` starts it"
    )
    return EngineStatus(True, version, detail, state.host.problem or "")


def processor(running: Running, file_size: int) -> str:
    """Return the device of a loaded model, in words, from the memory that Ollama reports.

    If Ollama could not read what its engine allocated, it reports that everything is on GPUs: then both numbers are the
    size of the file and say nothing.
    """
    if running.size_vram == 0:
        return "on the CPU"
    if running.size == 0 or running.size_vram > running.size or running.size == running.size_vram == file_size:
        return "where, it does not tell"
    if running.size_vram == running.size:
        return "on the GPU"
    share = round(100 * running.size_vram / running.size)
    return f"{share} % on the GPU, {100 - share} % on the CPU"


def find_program(settings: Settings) -> tuple[Path | None, str]:
    """Return the `ollama` program, or the reason why the configured one cannot be used."""
    if settings.ollama.program:
        path = Path(settings.ollama.program)
        usable = path.is_file() and os.access(path, os.X_OK)
        return (path, "") if usable else (None, f"`{path}` (set by `engines.ollama.program`) is not a program")
    on_path = shutil.which("ollama")
    candidates = [on_path, *(os.path.expandvars(place) for place in PROGRAMS)]
    found = (Path(it) for it in candidates if it and os.path.isabs(it) and os.access(it, os.X_OK))
    return next(found, None), ""


def _program_version(program: Path | None) -> str | None:
    """Return the version of the program, which may be newer than the running server."""
    if program is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_SECONDS,
            stdin=subprocess.DEVNULL,
            # The program also asks a server for its version; a closed port keeps it from waiting for a silent one.
            env={**os.environ, "OLLAMA_HOST": "127.0.0.1:1"},
        )
        match = re.search(r"client version is (\S+)", done.stdout + done.stderr)
        return match[1] if match else None
    return None


def _owner(port: int) -> str | None:
    """Return the user whose process listens on a port of this machine, if it is another user. Only on Linux."""
    if not Path("/proc/net/tcp").exists():
        return None
    import pwd

    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            uid = listener(Path(table).read_text(), port)
            if uid is not None and uid != os.geteuid():
                try:
                    return pwd.getpwuid(uid).pw_name
                except KeyError:
                    return str(uid)
    return None


def listener(table: str, port: int) -> int | None:
    """Return the user id of the process that listens on a port, from the text of `/proc/net/tcp`."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return int(fields[7])
    return None


def _ollama_runs() -> bool:
    """Return whether a process on this machine is called Ollama."""
    import psutil

    return any((process.info["name"] or "").lower().startswith("ollama") for process in psutil.process_iter(["name"]))


def _running_words(state: State) -> str:
    words = [f"Ollama {state.probe.version} at `{state.host.url}`"]
    if state.owner:
        words.append(f"run by user `{state.owner}`")
    if state.store:
        words.append(f"store `{state.store}`")
    if state.processor:
        words.append(f"computes {state.processor}")
    return ", ".join(words)


def _running_hint(state: State, how: dict[str, str]) -> str:
    if failures.is_newer(state.program_version, state.probe.version):
        return f"the program is {state.program_version}, newer than the server that runs: {how['restart']}"
    return state.host.problem or ""


def _elsewhere(state: State) -> str:
    if state.host.problem:
        return f"{state.host.problem}; `unset OLLAMA_HOST`"
    return "name Ollama's address: `llmdeploy config set engines.ollama.host 127.0.0.1:11434`"
