"""What a service that was killed may have left behind, and how it is cleared away."""

from __future__ import annotations

from contextlib import suppress

from llmdeploy import engines
from llmdeploy.config import ENGINE_NAMES, Settings
from llmdeploy.errors import LlmdeployError, NotPermitted, TimedOut
from llmdeploy.service.process import kill_group, kill_orphans, wait_gone
from llmdeploy.service.state import Situation

SECONDS = 10.0
"""For a server to end once it was killed."""


def end_leftover(situation: Situation) -> None:
    """End a server whose guard was killed too, and have a daemon let go what it loaded. Raises TimedOut."""
    record = situation.record
    if record is None or situation.state != "crashed":
        return
    if record.server is not None and situation.leftover:
        with suppress(NotPermitted):  # then it is not ours
            kill_group(record.server)
            kill_orphans(record.server)
            if not wait_gone(record.server, SECONDS):  # its port and its memory are free then
                raise TimedOut(f"process {record.server.pid} does not end", f"`kill -9 {record.server.pid}`")
    elif record.engine in ENGINE_NAMES:
        with suppress(LlmdeployError):  # the daemon may be gone too
            engines.get(record.engine, Settings()).release(record.url, record.served_name)
