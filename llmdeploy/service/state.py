"""The record of what is served: the state folder, its lock, and the one file that the service writes.

The record is a claim of the process that wrote it; `observe` compares it with what really runs.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmdeploy import bounded_file
from llmdeploy.errors import AlreadyServing, LlmdeployError, StateUnwritable
from llmdeploy.ownership import ELSEWHERE, require_own_state
from llmdeploy.paths import state_dir
from llmdeploy.service.process import ProcessId, alive, boot_id, orphans

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = 1
"""The version of the record's form."""
TICKET = "LLMDEPLOY_TICKET"
"""An environment variable; the command that started a service in the background knows the record by its value."""

Claim = Literal["starting", "ready", "failed"]
State = Literal["stopped", "starting", "ready", "failed", "crashed"]


@dataclass(frozen=True)
class Record:
    """The deployment, as its service last wrote it."""

    state: Claim
    phase: str
    """The phase of the start, or the phase in which it failed."""
    model: str
    """The model as the user named it: a name, a path or an address."""
    served_name: str
    """The model name that applications send."""
    engine: str
    url: str
    """The address, without `/v1`."""
    since: str
    """The time at which the service started, ISO 8601 in UTC."""
    service: ProcessId
    ticket: str = ""
    """The value of `TICKET` in the service's environment."""
    engine_version: str | None = None
    server: ProcessId | None = None
    server_url: str = ""
    """The address that the server itself listens on, behind the gateway."""
    log: str = ""
    """The server's log file."""
    settings: dict[str, Any] | None = None
    """The settings that it was asked for, as `config.document` returns them."""
    switch: dict[str, Any] | None = None
    """The switch that is under way: `engine`, `model`, `step`; once its server runs also `url`, `server`."""
    receipt: dict[str, Any] | None = None
    """The receipt of what serves: see service/provenance.py."""
    progress: str = ""
    """The progress of the phase, if it is known: the percentage of a download, the last line of the server's log."""
    notes: tuple[str, ...] = ()
    """Remarks: that a download was not needed, that a setting was changed."""
    plan: dict[str, Any] | None = None
    detail: str = ""
    """The size of the model in memory and its processor, if the engine tells."""
    capabilities: tuple[str, ...] = ()
    """The capabilities of the model: `text`, `image`, and others that the engine knows."""
    down: str = ""
    """The reason for which a deployment that has served does not serve at the moment."""
    boot: str = field(default_factory=boot_id)
    """The boot of the system in which the processes run: later their ids and start times may be those of others."""
    error: dict[str, Any] | None = None
    """The error that ended it, as `LlmdeployError.as_document` returns it."""


@dataclass(frozen=True)
class Situation:
    """The state of the service, as seen from outside."""

    state: State
    record: Record | None = None
    leftover: bool = False
    """Whether the service is gone and one of its servers still runs."""


def record_file() -> Path:
    """Return the file of the record."""
    return state_dir() / "deployment.json"


def server_log() -> Path:
    """Return the log of the server that runs; if none runs, the log of the next one."""
    with suppress(LlmdeployError):
        if (record := read()) and record.log:
            return Path(record.log)
    return server_logs()[0]


def server_logs() -> tuple[Path, Path]:
    """Return the two log files, which servers take in turns: a switch starts a server beside the one that serves."""
    return state_dir() / "server.log", state_dir() / "server-2.log"


def token_file() -> Path:
    """Return the file of the token with which commands give orders to the service."""
    return state_dir() / "token"


def service_log() -> Path:
    """Return the log of a service in the background."""
    return state_dir() / "service.log"


def observe() -> Situation:
    """Return what runs now. Raises StateUnwritable if this user may not read the record."""
    record = read()
    if record is None:
        return Situation("stopped")
    if is_of_this_boot(record) and alive(record.service):
        return Situation(record.state, record)
    state: State = "failed" if record.state == "failed" else "crashed"
    return Situation(state, record, leftover=any(alive(it) or orphans(it) for it in servers(record)))


def is_of_this_boot(record: Record) -> bool:
    """Return whether the processes on record can still run: the system was not started again since."""
    now = boot_id()
    return not (record.boot and now) or record.boot == now


def servers(record: Record) -> list[ProcessId]:
    """Return the processes of the servers on record: the one that serves, and the one that a switch has started."""
    if not is_of_this_boot(record):
        return []
    started = (record.switch or {}).get("server")
    other = None
    with suppress(KeyError, TypeError, ValueError):
        other = _process(started) if started else None
    return [it for it in (record.server, other) if it is not None]


def read() -> Record | None:
    """Return the record; None if it is missing or damaged. Raises StateUnwritable if this user may not read it."""
    try:
        require_own_state()
        content = bounded_file.read_json(record_file(), bounded_file.STATE)
        if content["state"] not in get_args(Claim):
            content["state"] = "starting"  # a newer version has more states; it lives, and can be stopped
        content["service"] = _process(content["service"])
        content["server"] = content["server"] and _process(content["server"])
        for name in ("plan", "switch", "receipt", "settings"):
            content[name] = content.get(name) if isinstance(content.get(name), dict) else None
        content.setdefault("boot", "")
        content["error"] = _error(content["error"])
        for name in ("capabilities", "notes"):
            content[name] = tuple(map(str, content.get(name) or ()))
        # A newer version may have written it: what is not known here is left out, so that its service can be stopped.
        known = {field.name for field in fields(Record)}
        return Record(**{name: value for name, value in content.items() if name in known})
    except PermissionError as error:
        raise unwritable(error, "read") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _error(content: Any) -> dict[str, Any] | None:
    """Return the document of an error; None if it has another form."""
    try:
        LlmdeployError.from_document(content)
    except (KeyError, TypeError):
        return None
    found: dict[str, Any] = content
    return found


def _process(content: dict[str, Any]) -> ProcessId:
    """Return the process. Raises ValueError for a pid that means many processes, or none."""
    pid = int(content["pid"])
    if not 0 < pid < 2**31:
        raise ValueError(pid)
    return ProcessId(pid, float(content["started"]))


def write(record: Record) -> None:
    """Replace the record in one step: a reader sees the old one or the new one. Raises StateUnwritable."""
    file = record_file()
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open_private(temporary, os.O_TRUNC) as stream:
            json.dump({"schema": SCHEMA, **asdict(record)}, stream, indent=2)
        _replace(temporary, file)
    except OSError as error:
        raise unwritable(error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(temporary: Path, file: Path) -> None:
    for _ in range(20):
        try:
            temporary.replace(file)
            return
        except PermissionError:  # Windows, while a reader has it open
            if os.name == "posix":
                raise
            time.sleep(0.05)
    temporary.replace(file)


def forget() -> None:
    """Remove the record: nothing is served."""
    try:
        record_file().unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error) from error


@contextmanager
def lock() -> Iterator[None]:
    """Hold the lock of the state folder: it has one service. Raises AlreadyServing, StateUnwritable."""
    from filelock import FileLock, Timeout  # 40 ms

    folder = state_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        require_own_state()
        holder = FileLock(folder / "service.lock", timeout=0, mode=0o600)
        holder.acquire()
    except Timeout:
        raise _already_serving() from None
    except OSError as error:
        raise unwritable(error) from error
    try:
        if observe().state in {"starting", "ready"}:  # the lock's file was deleted under a service
            raise _already_serving()
        yield
    finally:
        holder.release()


def write_token(token: str) -> None:
    """Write the token, unless it is there. Raises StateUnwritable."""
    file = token_file()
    try:
        if file.is_file() and file.read_text(errors="replace") == token:
            return
        file.unlink(missing_ok=True)
        with open_private(file, os.O_EXCL) as stream:
            stream.write(token)
    except OSError as error:
        raise unwritable(error) from error


def open_private(file: Path, flags: int) -> Any:
    """Open a text file for writing that only its owner can read."""
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


def unwritable(error: OSError, use: Literal["read", "written"] = "written") -> StateUnwritable:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    hint = "free some space: `df -h` shows what is full" if full else ELSEWHERE
    return StateUnwritable(f"the state folder `{state_dir()}` cannot be {use}: {error.strerror}", hint)
