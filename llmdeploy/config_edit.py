"""One value of a configuration file changed in place: comments, order and formatting stay."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmdeploy import paths
from llmdeploy.config import (
    check,
    help_hint,
    key_named,
    leaves,
    must_be,
    not_in_project,
    parse,
    permissions_hint,
    plain,
    read,
)
from llmdeploy.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmdeploy.config import Words


def set_value(key: str, text: str, file: Path) -> None:
    """Set one key in a file, which keeps its comments and its formatting; the file is replaced whole or not at all."""
    entry = key_named(key)
    try:
        value = entry.read(text)
    except ValueError:
        raise UsageError(must_be(f"`{key}`", entry.rule, f"`{plain(text)}`"), help_hint(entry)) from None
    if file == paths.PROJECT_CONFIG.absolute() and (problem := not_in_project(entry)):
        raise UsageError(*problem)
    if os.path.exists(file) and not os.path.isfile(file):
        raise ConfigError(f"`{file}` is not a file that can be replaced")  # /dev/null, a pipe, a folder
    before = read(file, str(file)) or ""
    document = parse(before, str(file))
    found = dict(leaves(document))
    for words, old in found.items():
        # A wrong value is replaced, but a table is not, and what is no table cannot hold the key.
        if words == entry.words[: len(words)] and (words != entry.words or isinstance(old, dict)):
            check(words, old, before, str(file))
    wanted = _with(document, entry.words, value)
    after = None if entry.words in found else _inserted(before, entry.words[-1:], value, wanted)
    after = after or _edited(before, entry.words, value, wanted) or _inserted(before, entry.words, value, wanted)
    if after is None:
        raise ConfigError(f"`{file}` is written in a way that cannot be edited here", f"set `{key}` in it by hand")
    _replace(file, after)


def _inserted(text: str, words: Words, value: object, wanted: dict[str, object]) -> str | None:
    """The text with a line for a new key, `words` of it, after the last line of its table; None if there is no place.

    tomlkit would put the line below the comment that introduces the next table.
    """
    import tomllib

    import tomlkit

    lines = text.split("\n")
    for index in reversed(range(len(lines))):
        if lines[index].strip() and not lines[index].lstrip().startswith("#"):
            new = f"{'.'.join(words)} = {tomlkit.item(value).as_string()}" + "\r" * lines[index].endswith("\r")
            after = "\n".join([*lines[: index + 1], new, *lines[index + 1 :]])
            # The line is in the right place exactly where it changes nothing else.
            with suppress(ValueError):
                if tomllib.loads(after) == wanted:
                    return after
    return None


def _edited(text: str, words: Words, value: object, wanted: dict[str, object]) -> str | None:
    """The text with the value of a key replaced, or with a new table; None if tomlkit cannot do it."""
    import tomllib

    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    with suppress(TOMLKitError, ValueError, RecursionError):
        document = tomlkit.parse(text)
        table: Any = document
        for word in words[:-1]:
            if word not in table:
                table[word] = tomlkit.table(is_super_table=True)  # no header unless it gets values of its own
            table = table[word]
        table[words[-1]] = value
        after = tomlkit.dumps(document)
        if tomllib.loads(after) == wanted:
            return after
    return None


def _with(table: Mapping[str, Any], words: Words, value: object) -> dict[str, object]:
    head, *rest = words
    return {**table, head: _with(table.get(head, {}), tuple(rest), value) if rest else value}


def _nearest(folder: str) -> str:
    """The folder, or the first above it that is there."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def _replace(file: Path, text: str) -> None:
    import stat
    import tempfile

    target = os.path.realpath(file)  # a link stays a link
    folder = os.path.dirname(target)
    temporary = None
    try:
        with suppress(FileExistsError):
            os.makedirs(folder)
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o600
        descriptor, temporary = tempfile.mkstemp(prefix=".config-", dir=folder)
        with open(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = "free some space: `df -h` shows what is full" if full else permissions_hint(_nearest(folder))
        raise ConfigError(f"`{file}` cannot be written: {error.strerror}", hint) from None
    finally:
        if temporary:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
