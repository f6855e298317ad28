"""Changes of a configuration file in place: comments, order and formatting stay.

An `Edit` has the text of a file before and after the changes; `write` writes it. If another command has changed the
file in the meantime, the same changes are made to its new content, so that no change is lost.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmdeploy import atomic_file, paths
from llmdeploy.config.check import check, help_hint, leaves, not_in_project
from llmdeploy.config.settings import key_named
from llmdeploy.config.toml_file import line_of, parse, read
from llmdeploy.errors import ConfigError, UsageError
from llmdeploy.text import must_be, permissions_hint, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from llmdeploy.config_types import Words

    Values = dict[Words, object]

PATIENCE = 10.0
"""Seconds to wait while others write the file. A write takes milliseconds, but on a slow disk several may wait."""
LONGEST_VALUE = 500
"""The number of lines of a value up to which it is removed line by line."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Edit:
    """Changes of one file, with its text before and after them."""

    file: Path
    before: str
    """The text of the file; empty if the file does not exist."""
    after: str
    changes: Mapping[str, str | None]
    """The new values as texts, by their keys; None removes the key."""


def set_value(key: str, text: str, file: Path) -> None:
    """Set one key in a file. Raises UsageError, ConfigError."""
    write(edited(file, {key: text}))


def edited(file: Path, changes: Mapping[str, str | None]) -> Edit:
    """Return the edit that makes all of these changes; nothing is written. Raises UsageError, ConfigError."""
    values = {key_named(key).words: None if text is None else _value(key, text, file) for key, text in changes.items()}
    if os.path.exists(file) and not os.path.isfile(file):
        raise ConfigError(f"`{file}` is not a file that can be replaced")  # /dev/null, a pipe, a folder
    before = read(file, str(file)) or ""
    for found, old in leaves(parse(before, str(file))):
        for words in values:
            # A wrong value is replaced, but a table is not; a value in place of a table cannot contain the key.
            if found == words[: len(found)] and (found != words or isinstance(old, dict)):
                check(found, old, before, str(file))
    after = before
    # Keys are removed last: until then their lines show how the lines of this file end.
    for words, value in sorted(values.items(), key=lambda item: item[1] is None):
        changed = _without(after, words) if value is None else _with(after, words, value)
        if changed is None:
            key = ".".join(words)
            by_hand = f"take `{key}` out of it by hand" if value is None else f"set `{key}` in it by hand"
            raise ConfigError(f"`{file}` is written in a way that cannot be edited here", by_hand)
        after = changed
    return Edit(file, before, after, dict(changes))


def diff(edit: Edit) -> str:
    """Return the changes as a unified diff, which `patch` reads; empty if nothing changes."""
    from difflib import unified_diff

    lines = unified_diff(_lines(edit.before), _lines(edit.after), str(edit.file), str(edit.file))
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def write(edit: Edit) -> Edit:
    """Replace the file in one step, and return the edit that was made. Raises ConfigError.

    If the file has changed since the edit was made, the same changes are made to its new content.
    """
    _require_no_trap(edit.file)
    folder = os.path.dirname(os.path.realpath(edit.file))  # a link stays a link
    try:
        if edit.after != edit.before:
            with suppress(FileExistsError):
                os.makedirs(folder)
        with _alone(folder):
            if (read(edit.file, str(edit.file)) or "") != edit.before:
                edit = edited(edit.file, edit.changes)
            if edit.after != edit.before:
                atomic_file.replace(edit.file, _mark(edit.file) + edit.after.encode())
    except OSError as error:
        raise _unwritable(edit.file, error) from None
    return edit


def _require_no_trap(file: Path) -> None:
    """Raise ConfigError for the file of a folder that is a link out of it: another file would be changed."""
    target = os.path.realpath(file)
    folder = os.path.realpath(os.path.dirname(os.path.abspath(file)))
    if file.name == paths.PROJECT_CONFIG.name and file.is_symlink() and not target.startswith(folder + os.sep):
        raise ConfigError(f"`{file}` is a link to `{target}`, which would be changed", f"`rm {shlex.quote(str(file))}`")


def require_writable(file: Path) -> None:
    """Raise ConfigError if no file can be written in its folder: `write` would fail too."""
    import tempfile

    _require_no_trap(file)
    try:
        with tempfile.TemporaryFile(dir=_nearest(os.path.dirname(os.path.realpath(file)))) as probe:
            probe.write(b"#")
            probe.flush()
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> ConfigError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    folder = os.path.dirname(os.path.realpath(file))
    hint = "free some space: `df -h` shows what is full" if full else permissions_hint(_nearest(folder))
    return ConfigError(f"`{file}` cannot be written: {error.strerror}", hint)


def texts(file: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Return the values of keys as `edited` takes them; None for a key that is not set. Raises ConfigError."""
    import shlex

    found = dict(leaves(parse(read(file, str(file)) or "", str(file))))

    def text(value: object) -> str | None:
        match value:
            case None:
                return None
            case bool():
                return str(value).lower()
            case list():
                return shlex.join(map(str, value))
            case _:
                return str(value)

    return {name: text(found.get(key_named(name).words)) for name in names}


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Hold a lock on the folder, which leaves no file behind, so that one command writes at a time; not on Windows."""
    with ExitStack() as undo:
        with suppress(ImportError, OSError):  # a disk without locks
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            undo.callback(os.close, descriptor)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.005)
        yield


def _mark(file: Path) -> bytes:
    """Return the byte order mark of a file, which `read` leaves out; empty if it has none."""
    with suppress(FileNotFoundError), file.open("rb") as stream:
        return BYTE_ORDER_MARK if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else b""
    return b""


def _value(key: str, text: str, file: Path) -> object:
    entry = key_named(key)
    try:
        value = entry.read(text)
    except ValueError:
        raise UsageError(must_be(f"`{key}`", entry.rule, f"`{plain(text)}`"), help_hint(entry)) from None
    if file == paths.PROJECT_CONFIG.absolute() and (problem := not_in_project(entry, value)):
        raise UsageError(*problem)
    return value


# Each way to change a text is tried, and accepted only if the result has the wanted values and no others.


def _values(text: str) -> Values:
    import tomllib

    return dict(leaves(tomllib.loads(text)))


def _says(text: str, wanted: Values) -> bool:
    try:
        return _values(text) == wanted
    except (ValueError, RecursionError):
        return False


def _with(text: str, words: Words, value: object) -> str | None:
    """Return the text with a value for a key; None if it cannot be edited."""
    found = _values(text)
    wanted = {**found, words: value}
    after = None if words in found else _inserted(text, words[-1:], value, wanted)
    return after or _by_tomlkit(text, words, value, wanted) or _inserted(text, words, value, wanted)


def _without(text: str, words: Words) -> str | None:
    """Return the text without a key; None if it cannot be edited."""
    wanted = _values(text)
    if words not in wanted:
        return text
    del wanted[words]
    after = _without_lines(text, words, wanted)
    return _by_tomlkit(text, words, None, wanted) if after is None else after


def _inserted(text: str, words: Words, value: object, wanted: Values) -> str | None:
    """Return the text with a line for a new key after the last line of its table; None if no such place exists.

    `words` are the words of the key that the line has. tomlkit would put the line below the comment that introduces
    the next table.
    """
    import tomlkit

    new = f"{'.'.join(words)} = {tomlkit.item(value).as_string()}"
    lines = _lines(text)
    for at in reversed(range(len(lines))):
        line = lines[at]
        if line.strip() and not line.lstrip().startswith("#"):
            end = "\r\n" if "\r\n" in (line if line.endswith("\n") else text) else "\n"
            both = line + new + end if line.endswith("\n") else line + end + new
            # The line is in the right place if it changes nothing else.
            if _says(after := "".join([*lines[:at], both, *lines[at + 1 :]]), wanted):
                return after
    return None


def _without_lines(text: str, words: Words, wanted: Values) -> str | None:
    """Return the text without the lines of a key, whose value may span several; None if they are not found."""
    start = line_of(text, words)
    if start is None:
        return None
    lines = _lines(text)
    for end in range(start, min(len(lines), start + LONGEST_VALUE) + 1):
        if _says(after := "".join(lines[: start - 1] + lines[end:]), wanted):
            return after
    return None


def _by_tomlkit(text: str, words: Words, value: object, wanted: Values) -> str | None:
    """Return the text with another value of a key, or without the key if `value` is None; None if tomlkit cannot."""
    import re

    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    with suppress(TOMLKitError, ValueError, RecursionError):
        document = tomlkit.parse(text)
        table: Any = document
        for word in words[:-1]:
            if word not in table:
                table[word] = tomlkit.table(is_super_table=True)  # without a header until it has values
            table = table[word]
        if value is None:
            del table[words[-1]]
        else:
            table[words[-1]] = value
        after = tomlkit.dumps(document)
        if "\r\n" in text and not re.search(r"(?<!\r)\n", text):  # tomlkit ends new lines as on Unix
            after = re.sub(r"(?<!\r)\n", "\r\n", after)
        if _says(after, wanted):
            return after
    return None


def _lines(text: str) -> list[str]:
    """Return the lines of a text with their line endings. str.splitlines would split at more characters than TOML."""
    import re

    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _nearest(folder: str) -> str:
    """Return the folder, or its nearest parent that exists."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder
