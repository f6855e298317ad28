"""Folders that only their owner can change: whatever lies in another one may have been put there by a stranger.

What is read from such a folder would be believed, or run: the record names processes to end, an environment is started.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llmdeploy.errors import StateUnwritable
from llmdeploy.paths import state_dir

ELSEWHERE = "name another: `LLMDEPLOY_STATE_DIR=/tmp/llmdeploy-$USER llmdeploy serve`"


def require_own_state() -> None:
    """Raise StateUnwritable for a state folder that is not this user's alone; a missing one is fine."""
    if problem := problem_of(state_dir()):
        raise StateUnwritable(f"the state folder `{state_dir()}` {problem}", _mend(state_dir()))


def problem_of(folder: Path, *, of_administrator: bool = False) -> str:
    """Return why others can change what is in a folder; empty if they cannot, or if it does not exist.

    `of_administrator`: whether the folder may belong to the administrator, who can change everything anyway.
    """
    if os.name != "posix":
        return ""
    try:
        status = os.stat(folder)
    except OSError:  # whoever reads it reports that
        return ""
    owners = {os.geteuid(), 0} if of_administrator else {os.geteuid()}
    if status.st_uid not in owners:
        return "belongs to another user"
    if status.st_mode & stat.S_IWOTH:
        return "may be written to by everyone"
    if status.st_mode & stat.S_IWGRP and not _is_alone_in(status.st_gid, status.st_uid):
        return "may be written to by others of its group"
    return ""


def _mend(folder: Path) -> str:
    """Return the hint for a state folder that others can change: its owner can close it."""
    import shlex

    if os.stat(folder).st_uid != os.geteuid():
        return ELSEWHERE
    return f"`{shlex.join(['chmod', 'go-w', str(folder)])}` if nobody else has used it, or {ELSEWHERE}"


def stranger(*folders: Path) -> str:
    """Return the first of these folders that a stranger can change, as the problem in words; empty if there is none."""
    for folder in folders:
        if problem := problem_of(folder, of_administrator=True):
            return f"`{folder}` {problem}"
    return ""


def _is_alone_in(group: int, owner: int) -> bool:
    """Return whether a group is the private one of a user, as most Linux systems make one for each user."""
    import grp
    import pwd

    try:
        name, found = pwd.getpwuid(owner).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
