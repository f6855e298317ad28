"""The API key that applications must send: the sources it is read from, and the addresses that need one."""

from __future__ import annotations

import os
import stat
from shlex import quote
from typing import TYPE_CHECKING

from llmdeploy import bounded_file, paths
from llmdeploy.address import is_loopback
from llmdeploy.errors import ConfigError
from llmdeploy.text import permissions_hint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.config.settings import Settings

VARIABLE = "LLMDEPLOY_API_KEY"
LONGEST = 4096  # characters: servers limit headers to 8 KiB
SHORTEST = 16
"""Characters of the shortest key that nobody guesses, if it is random."""
MAKE = "`openssl rand -hex 32` prints a good one"


def read(settings: Settings) -> str | None:
    """Return the API key: LLMDEPLOY_API_KEY, or the first line of `api_key_file`; None if neither is set.

    The key itself is never an argument or a value in a configuration file, because those are shown. Raises ConfigError.
    """
    if found := os.environ.get(VARIABLE):
        return _usable(found, VARIABLE)
    file = settings.api_key_file
    return None if file is None else _usable(_first_line(file), f"`{file}`")


def require(host: str, key: str | None, origins: Sequence[str] | None = None) -> None:
    """Raise ConfigError if other machines or pages of other origins are let in, and no API key is set."""
    if key is None and not is_loopback(host):
        raise ConfigError(f"others can reach `{host}`, and no API key is set", f"make one: `{make_command()}`")
    if key is None and origins:
        message = "`gateway.origins` lets web pages use the model, and no API key is set"
        raise ConfigError(message, f"make one: `{make_command()}`")


def is_short(key: str) -> bool:
    """Return whether a key is so short that it may be guessed."""
    return len(key) < SHORTEST


def make_command() -> str:
    """Return the command that makes an API key and the setting that names it."""
    folder = paths.user_config_file().absolute().parent
    file = quote(str(folder / "api_key"))
    make = f"mkdir -p {quote(str(folder))} && (umask 077 && openssl rand -hex 32 > {file})"
    return f"{make} && llmdeploy config set api_key_file {file}"


def _first_line(file: str) -> str:
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # a folder, or a pipe, which would block
            raise ConfigError(f"`api_key_file` names `{file}`, which is not a file", MAKE)
        with bounded_file.opened(file) as stream:
            status = os.fstat(stream.fileno())  # of the file that is read, whatever has its name meanwhile
            if os.name == "posix" and status.st_mode & 0o077:
                raise ConfigError(
                    f"others may read or change `{file}`, which holds the API key", f"`chmod 600 {quote(file)}`"
                )
            if os.name == "posix" and status.st_uid not in {os.geteuid(), 0}:
                raise ConfigError(f"`{file}`, which holds the API key, belongs to another user", MAKE)
            return stream.readline(LONGEST + 2).decode("ascii", "replace")
    except FileNotFoundError:
        hint = f"`(umask 077 && openssl rand -hex 32 > {quote(file)})` makes one"
        raise ConfigError(f"`api_key_file` names `{file}`, which does not exist", hint) from None
    except OSError as error:
        raise ConfigError(f"`{file}` cannot be read: {error.strerror}", permissions_hint(file)) from None


def _usable(text: str, source: str) -> str:
    """Return the key without surrounding blanks. Raises ConfigError, which does not show the key."""
    key = text.strip()
    if not key:
        raise ConfigError(f"{source} holds no API key", MAKE)
    if len(key) > LONGEST:
        raise ConfigError(f"the API key in {source} is longer than {LONGEST} characters", MAKE)
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the API key in {source} has characters that cannot stand in a header", MAKE)
    return key
