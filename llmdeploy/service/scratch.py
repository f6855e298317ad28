"""The folder for the temporary files of one server, which is removed with the server.

vLLM leaves sockets there at every end, and shared memory when it is killed. `watchdog.py` notes the shared memory in
the folder and removes both; if it was killed itself, the service does, or the next `serve` or `stop`.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from llmdeploy.paths import state_dir

WATCHDOG = Path(__file__).with_name("watchdog.py")
CLEAN = "--clean"
"""The argument with which `watchdog.py` removes what a server has left."""
SECONDS = 10.0
"""Seconds that removing may take."""
LONGEST = 60
"""Length of the folder's path up to which the sockets in it have names that the system takes: 107 bytes at most."""
PREFIX = "run-"


def create() -> Path | None:
    """Make a folder for one server; None if that cannot be done: then it uses the common one."""
    place, prefix = _place()
    with suppress(OSError):
        return Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    return None


def _place() -> tuple[Path, str]:
    """Return where the folders are, and how their names begin: in the state folder, unless its path is too long."""
    folder = state_dir().absolute()
    if len(os.fsencode(folder)) + len(PREFIX) + 9 <= LONGEST:
        return folder, PREFIX
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()), f"llmdeploy-{name}-"


def environment(folder: Path | None) -> dict[str, str]:
    """Return the variables that make a server use the folder."""
    if folder is None:
        return {}
    variables = {"LLMDEPLOY_SCRATCH": str(folder), "TMPDIR": str(folder)}
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # what torch has compiled is for the next start too
        with suppress(OSError, KeyError, ImportError):  # a user without a name
            cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
            variables["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return variables


def remove(folder: Path | None) -> None:
    """Remove the folder, and the shared memory that is noted in it and that nobody uses."""
    if folder is not None and folder.exists():
        with suppress(OSError, subprocess.TimeoutExpired):
            command = [sys.executable, "-I", "-S", str(WATCHDOG), CLEAN, str(folder)]
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=SECONDS)


def remove_all() -> None:
    """Remove the folders of all servers of this state folder. None of them may run."""
    place, prefix = _place()
    with suppress(OSError):
        for entry in os.scandir(place):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False) and _is_ours(entry):
                remove(Path(entry.path))


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Return whether the folder is this user's: the common folder for temporary files is everyone's."""
    return os.name != "posix" or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
