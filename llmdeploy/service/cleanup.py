"""Cleaning up after a service that was killed."""

from __future__ import annotations

from contextlib import suppress

from llmdeploy.config import ENGINE_NAMES, Settings
from llmdeploy.engines import registry
from llmdeploy.errors import LlmdeployError, NotPermitted, TimedOut
from llmdeploy.service import scratch, state
from llmdeploy.service.process import kill_group, kill_orphans, wait_gone
from llmdeploy.service.state import Situation

SECONDS = 10.0
"""Seconds that a server may take to end once it was killed."""


def end_leftover(situation: Situation) -> None:
    """End a server whose watchdog was killed too, and make a daemon release the model it loaded. Raises TimedOut."""
    record = situation.record
    if record is None:
        scratch.remove_all()
        return
    for server in state.servers(record) if situation.leftover else ():
        with suppress(NotPermitted):  # then it belongs to another user
            kill_group(server)
            kill_orphans(server)
            if not wait_gone(server, SECONDS):  # its port and its memory are free then
                raise TimedOut(f"process {server.pid} does not end", f"`kill -9 {server.pid}`")
    scratch.remove_all()
    if situation.state != "crashed":
        return  # a service that put its end on record has released its model
    if record.server is None:
        _release(record.engine, record.server_url, record.served_name)
    if record.switch and not record.switch.get("server"):
        _release(*(str(record.switch.get(name, "")) for name in ("engine", "url", "model")))


def _release(engine: str, url: str, served_name: str) -> None:
    """Make an external daemon release the model."""
    if engine in ENGINE_NAMES and url:
        daemon = registry.get(engine, Settings()).daemon
        with suppress(LlmdeployError):  # the daemon may be gone too
            if daemon is not None:
                daemon.release(url, served_name)
