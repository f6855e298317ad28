"""The shells that `llmdeploy env` writes for: how each sets a variable, and which one runs this command.

shellingham, which Typer brings, does not know mksh and BusyBox, so the shell is found with psutil.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePath


def _posix(name: str, value: str) -> str:
    return "export {}='{}'".format(name, value.replace("'", r"'\''"))


def _fish(name: str, value: str) -> str:
    # The semicolon is for `eval (llmdeploy env)`, which puts all lines on one.
    return "set -gx {} '{}';".format(name, value.replace("\\", r"\\").replace("'", r"\'"))


def _powershell(name: str, value: str) -> str:
    for quote in "'\u2018\u2019\u201a\u201b":  # PowerShell takes curly quotes for the end of a string too
        value = value.replace(quote, quote * 2)
    return f"$Env:{name} = '{value}'"


ASSIGNMENTS: Mapping[str, Callable[[str, str], str]] = {
    "bash": _posix,
    "zsh": _posix,
    "sh": _posix,
    "fish": _fish,
    "powershell": _powershell,
}

PROGRAMS = {name: name for name in ASSIGNMENTS}
PROGRAMS |= dict.fromkeys(("dash", "ash", "ksh", "mksh", "busybox"), "sh") | {"pwsh": "powershell"}


def applied(shell: str, command: str) -> str:
    """Return the line that runs `command` in this shell and applies the assignments that it prints."""
    if shell == "fish":
        return f"{command} | source"
    return f"{command} | Out-String | Invoke-Expression" if shell == "powershell" else f'eval "$({command})"'


def guess() -> str:
    """Return the nearest shell among the parent processes, or else the user's login shell."""
    import psutil

    with suppress(psutil.Error, OSError):
        for process in psutil.Process().parents():
            names = [process.name()]
            with suppress(psutil.Error, OSError):  # a script has its own name; its executable is the shell
                names.append(process.exe())
            if found := next(filter(None, map(_shell, names)), None):
                return found
    return "powershell" if sys.platform == "win32" else _shell(os.environ.get("SHELL", "")) or "bash"


def _shell(program: str) -> str | None:
    return PROGRAMS.get(PurePath(program).name.lower().removesuffix(".exe").lstrip("-"))
