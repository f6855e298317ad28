"""What is served, on record: the state folder, its lock, and the one file that the service writes.

The record is a claim of the process that wrote it; `observe` holds it against what really runs.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmdeploy.errors import AlreadyServing, StateUnwritable
from llmdeploy.paths import state_dir
from llmdeploy.service.process import ProcessId, alive

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1

Claim = Literal["starting", "ready", "failed"]
State = Literal["stopped", "starting", "ready", "failed", "crashed"]


@dataclass(frozen=True)
class Record:
    """One deployment, as its service last wrote it."""

    state: Claim
    phase: str
    """The step of the start it is in, or was in when it failed."""
    model: str
    """What the user named: a name, a path or an address."""
    served_name: str
    """The model name that applications send."""
    engine: str
    engine_version: str | None
    url: str
    """The address, without `/v1`."""
    since: str
    """When the service started, ISO 8601 in UTC."""
    service: ProcessId
    server: ProcessId | None = None
    plan: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    """What ended it, as LlmdeployError.as_document gives it."""


@dataclass(frozen=True)
class Situation:
    """What runs, as seen from outside the service."""

    state: State
    record: Record | None = None
    leftover: bool = False
    """The service is gone and its server still runs."""


def record_file() -> Path:
    return state_dir() / "deployment.json"


def server_log() -> Path:
    return state_dir() / "server.log"


def service_log() -> Path:
    return state_dir() / "service.log"


def observe() -> Situation:
    """What runs now. Never raises: a record that cannot be read is none."""
    record = read()
    if record is None:
        return Situation("stopped")
    if alive(record.service):
        return Situation(record.state, record)
    state: State = "failed" if record.state == "failed" else "crashed"
    return Situation(state, record, leftover=alive(record.server))


def read() -> Record | None:
    try:
        content = json.loads(record_file().read_text())
        if content.pop("schema") != SCHEMA:
            return None
        if content["state"] not in get_args(Claim):
            return None
        service, server = content.pop("service"), content.pop("server")
        return Record(**content, service=_process(service), server=server and _process(server))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _process(content: dict[str, Any]) -> ProcessId:
    return ProcessId(int(content["pid"]), float(content["started"]))


def write(record: Record) -> None:
    """Replace the record in one step: a reader sees the old one or the new one. Raises StateUnwritable."""
    file = record_file()
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        with open_private(temporary, os.O_TRUNC) as stream:
            json.dump({"schema": SCHEMA, **asdict(record)}, stream, indent=2)
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise unwritable(error) from error


def forget() -> None:
    """Remove the record: nothing is served."""
    try:
        record_file().unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error) from error


@contextmanager
def lock() -> Iterator[None]:
    """Be the one service of this state folder. Raises AlreadyServing, StateUnwritable."""
    from filelock import FileLock, Timeout  # 40 ms

    folder = state_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        holder = FileLock(folder / "service.lock", timeout=0, mode=0o600)
        holder.acquire()
    except Timeout:
        raise _already_serving() from None
    except OSError as error:
        raise unwritable(error) from error
    try:
        yield
    finally:
        holder.release()


def open_private(file: Path, flags: int) -> Any:
    """A text file for writing that only its owner can read."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | flags, 0o600), "w", encoding="utf-8")


def _already_serving() -> AlreadyServing:
    situation = observe()
    record = situation.record
    if record is None:
        return AlreadyServing("another service is starting or stopping here", "`llmdeploy status` shows it")
    return AlreadyServing(
        f"`{record.served_name}` is served already on {record.engine} at {record.url} (process {record.service.pid})",
        "`llmdeploy stop` ends it; LLMDEPLOY_STATE_DIR names another folder for a second one",
    )


def unwritable(error: OSError) -> StateUnwritable:
    return StateUnwritable(
        f"the state folder `{state_dir()}` cannot be written: {error.strerror}",
        "free it, or name another: `LLMDEPLOY_STATE_DIR=/tmp/llmdeploy llmdeploy serve`",
    )
