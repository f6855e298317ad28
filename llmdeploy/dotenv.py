"""Variables in a `.env` file: lines are added or updated, all others are kept byte for byte.

Readers of such files differ. python-dotenv removes quotes and expands variables, Docker's `--env-file` does neither. So
values are written without quotes, and values that readers would read differently are refused.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from llmdeploy import atomic_file, bounded_file
from llmdeploy.errors import LlmdeployError, UsageError
from llmdeploy.text import permissions_hint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_BINDING = re.compile(
    r"""^(?P<before>\ufeff?[ \t]*(?:export[ \t]+)?)   # a byte order mark; `export` for shells
        (?P<name>[A-Za-z_]\w*)[ \t]*=[ \t]*
        (?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")?      # a quoted value may span lines
        [^\r\n]*""",
    re.MULTILINE | re.VERBOSE | re.DOTALL,
)
_READ_DIFFERENTLY = re.compile(r"""^['"`]|\$\{|\#|^\s|\s$|[^ -~\w]""")


def write(file: Path, values: Mapping[str, str], *, secret: bool = False) -> None:
    """Write or update these variables atomically; a new file is private. Raises UsageError, LlmdeployError.

    `secret`: whether a value is one: then the file must be this user's alone, and not a link.
    """
    try:
        if file.exists() and not file.is_file():  # a folder, or a pipe, which would block
            raise UsageError(f"`{file}` is not a file", "name one, such as `.env`")
        _require_no_trap(file, secret=secret)
        before = bounded_file.read(file) if file.exists() else b""
        after = updated(before.decode("utf-8", "surrogateescape"), values).encode("utf-8", "surrogateescape")
        if after != before:
            atomic_file.replace(file, after, private=secret)
    except OSError as error:
        hint = permissions_hint(file.absolute().parent)
        raise LlmdeployError(f"`{file}` cannot be written: {error.strerror}", hint) from None


def _require_no_trap(file: Path, *, secret: bool) -> None:
    """Raise LlmdeployError for a file that came with a folder so that what is written to it gets elsewhere."""
    shown = shlex.quote(str(file))
    if file.is_symlink():
        target = file.resolve()
        if secret or not target.is_relative_to(file.absolute().parent.resolve()):
            raise LlmdeployError(
                f"`{file}` is a link to `{target}`, and "
                + ("the API key" if secret else "nothing")
                + " is written through it",
                f"`rm {shown}`, or name the file that you mean",
            )
    if not secret or os.name != "posix" or not file.exists():
        return
    status = file.lstat()
    if status.st_uid != os.geteuid():
        raise LlmdeployError(f"`{file}` belongs to another user, and the API key would be theirs", f"`rm {shown}`")
    if status.st_mode & 0o077:
        raise LlmdeployError(
            f"others can read `{file}`, so the API key is not written to it", f"`chmod 600 {shown}`, then again"
        )


def updated(text: str, values: Mapping[str, str]) -> str:
    """Return the text with these values; new variables come last. Raises LlmdeployError for unsafe values."""
    for name, value in values.items():
        if _READ_DIFFERENTLY.search(value):
            raise LlmdeployError(
                f"the value of {name} cannot be written so that all readers of a `.env` file read it alike",
                "letters, digits and `_-.:/` are safe: `openssl rand -hex 32` makes a key of them",
            )
    found = set()

    def update(binding: re.Match[str]) -> str:
        name = binding["name"]
        if name not in values:
            return binding[0]
        found.add(name)
        return f"{binding['before']}{name}={values[name]}"

    after = _BINDING.sub(update, text)
    end = "\r\n" if "\r\n" in text else "\n"
    missing = "".join(f"{name}={value}{end}" for name, value in values.items() if name not in found)
    return after + (end if missing and after and not after.endswith("\n") else "") + missing
