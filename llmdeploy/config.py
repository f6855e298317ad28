"""What the user wishes, and where each wish comes from.

Flag > `LLMDEPLOY_*` > `./llmdeploy.toml` > the user's `config.toml` > default. Each field of `Settings` is one key:
its name in the files, its variable, its flag, its check and its messages follow from that one entry.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

from llmdeploy import paths
from llmdeploy.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Words = tuple[str, ...]  # a dotted key, split

# Written out: importing the engines to ask them would load them all.
ENGINE_NAMES = ("llamacpp",)

LARGEST = 2**63 - 1  # TOML promises no larger integer


class Whole:
    def __init__(self, low: int, high: int = LARGEST) -> None:
        self.low, self.high = low, high

    def __str__(self) -> str:
        return f"a whole number from {self.low} " + ("up" if self.high == LARGEST else f"to {self.high}")

    def accepts(self, value: object) -> bool:
        return type(value) is int and self.low <= value <= self.high  # True is an int too, but not of this type

    def read(self, text: str) -> int:
        return int(text)


class Positive:
    def __str__(self) -> str:
        return "a number above 0"

    def accepts(self, value: object) -> bool:
        return type(value) in (int, float) and 0 < cast("float", value) <= LARGEST

    def read(self, text: str) -> float:
        try:
            return int(text)
        except ValueError:
            return float(text)


class Text:
    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __str__(self) -> str:
        return " or ".join(f"`{choice}`" for choice in self.choices) or "a non-empty printable string"

    def accepts(self, value: object) -> bool:
        # No control characters: a value may become an argument of a server, and a line on a terminal.
        usable = isinstance(value, str) and value != "" and value.isprintable()
        return usable and (not self.choices or value in self.choices)

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Key:
    name: str
    attribute: str
    rule: Whole | Positive | Text
    default: object
    help: str

    @property
    def words(self) -> Words:
        return tuple(self.name.split("."))

    @property
    def variable(self) -> str:
        return "LLMDEPLOY_" + self.name.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.words[-1].replace("_", "-")

    def read(self, text: str) -> object:
        """The value that a text on the command line or in a variable stands for; ValueError if it stands for none."""
        value = self.rule.read(text)
        if not self.rule.accepts(value):
            raise ValueError(text)
        return value


@dataclass(frozen=True)
class Value:
    value: object
    source: str


def _key(name: str, rule: Whole | Positive | Text, default: object, help: str) -> Any:
    return field(default=default, metadata={"name": name, "rule": rule, "help": help})


@dataclass(frozen=True)
class Settings:
    engine: str = _key("engine", Text(*ENGINE_NAMES), "llamacpp", "the engine that runs the model")
    model: str = _key("model", Text(), "selftest", "the model to serve")
    port: int = _key("port", Whole(1, 65535), 11435, "the port of the address that applications use")
    context: int | None = _key(
        "context", Whole(1), None, "the tokens that one request can hold (none: the plan chooses)"
    )
    parallel: int | None = _key("parallel", Whole(1), None, "the requests answered at once (none: the plan chooses)")
    timeout: float = _key("timeout", Positive(), 600, "the seconds to wait for a server's start")
    threads: int | None = _key(
        "engines.llamacpp.threads", Whole(1), None, "the CPU threads of llama.cpp (none: the plan chooses)"
    )
    gpu_layers: int | None = _key(
        "engines.llamacpp.gpu_layers",
        Whole(-1),
        None,
        "the layers on the GPU, -1 for all that fit (none: the plan chooses)",
    )
    server: str | None = _key(
        "engines.llamacpp.server",
        Text(),
        None,
        "the path of a `llama-server` program (none: one on PATH, or the embedded one)",
    )
    sources: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> Value:
        return Value(getattr(self, _by_name()[name].attribute), self.sources.get(name, "default"))

    def source(self, name: str) -> str:
        return self.value(name).source


def keys() -> tuple[Key, ...]:
    return tuple(Key(attribute=it.name, default=it.default, **it.metadata) for it in fields(Settings) if it.metadata)


def key_named(name: str) -> Key:
    """Raises UsageError for a name that is no key."""
    if (found := _by_name().get(name)) is None:
        raise UsageError(f"unknown key `{_plain(name)}`", _keys_hint(name))
    return found


def load(flags: Mapping[str, object] | None = None) -> Settings:
    """Every key's value and source. `flags` maps dotted keys to values; None is a flag that was not given."""
    user_file = paths.user_config_file()
    values = (
        _from_file(user_file, str(user_file), required=bool(os.environ.get("LLMDEPLOY_CONFIG")))
        | _from_file(paths.PROJECT_CONFIG, f"./{paths.PROJECT_CONFIG}")
        | _from_environment(os.environ)
        | _from_flags(flags or {})
    )
    found: dict[str, Any] = {_by_name()[name].attribute: value.value for name, value in values.items()}
    return Settings(**found, sources={name: value.source for name, value in values.items()})


def set_value(key: str, text: str, file: Path) -> None:
    """Set one key in a file, which keeps its comments and its formatting; the file is replaced whole or not at all."""
    entry = key_named(key)
    try:
        value = entry.read(text)
    except ValueError:
        raise UsageError(_must_be(f"`{key}`", entry.rule, f"`{_plain(text)}`"), _help_hint(entry)) from None
    if os.path.exists(file) and not os.path.isfile(file):
        raise ConfigError(f"`{file}` is not a file that can be replaced")  # /dev/null, a pipe, a folder
    before = _read(file, str(file)) or ""
    document = _parse(before, str(file))
    leaves = dict(_leaves(document))
    for words, old in leaves.items():
        # A wrong value is replaced, but a table is not, and what is no table cannot hold the key.
        if words == entry.words[: len(words)] and (words != entry.words or isinstance(old, dict)):
            _check(words, old, before, str(file))
    wanted = _with(document, entry.words, value)
    after = None if entry.words in leaves else _inserted(before, entry.words, value, wanted)
    after = after or _edited(before, entry.words, value, wanted)
    if after is None:
        raise ConfigError(f"`{file}` is written in a way that cannot be edited here", f"set `{key}` in it by hand")
    _replace(file, after)


def line_of(text: str, words: Words) -> int | None:
    """The line, from 1, where a key of a valid TOML text is set first; None if unsure.

    Text that is cut inside a value does not parse, so the statement that adds the key starts on the line after the
    longest start of the text that parses without it.
    """
    import tomllib

    lines = text.replace("\r\n", "\n").split("\n")
    complete = 0
    for count in range(1, min(len(lines), 500) + 1):  # each step parses all lines before it
        try:
            found: object = tomllib.loads("\n".join(lines[:count]))
        except (ValueError, RecursionError):
            continue
        for word in words:
            found = found.get(word) if isinstance(found, dict) else None
        if found is not None:
            return complete + 1
        complete = count
    return None


def _by_name() -> dict[str, Key]:
    return {key.name: key for key in keys()}


def _tables() -> set[Words]:
    return {key.words[:depth] for key in keys() for depth in range(1, len(key.words))}


def _from_file(file: Path, shown: str, *, required: bool = False) -> dict[str, Value]:
    text = _read(file, shown)
    if text is None:
        if required:
            raise ConfigError(f"LLMDEPLOY_CONFIG names `{shown}`, which does not exist", "`unset LLMDEPLOY_CONFIG`")
        return {}
    values = {}
    for words, value in _leaves(_parse(text, shown)):
        _check(words, value, text, shown)
        values[".".join(words)] = Value(value, shown)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    values = {}
    for key in keys():
        if text := environment.get(key.variable):
            try:
                values[key.name] = Value(key.read(text), key.variable)
            except ValueError:
                message = _must_be(key.variable, key.rule, f"`{_plain(text)}`")
                raise ConfigError(message, f"`unset {key.variable}`") from None
    return values


def _from_flags(flags: Mapping[str, object]) -> dict[str, Value]:
    values = {}
    for name, value in flags.items():
        key = _by_name()[name]
        if value is None:
            continue
        if not key.rule.accepts(value):
            raise UsageError(_must_be(f"`{key.flag}`", key.rule, f"`{_plain(str(value))}`"), _help_hint(key))
        values[name] = Value(value, key.flag)
    return values


def _leaves(table: Mapping[str, object], prefix: Words = ()) -> Iterator[tuple[Words, object]]:
    """Everything in a document that is not one of our tables: values, and what should not be there."""
    for word, value in table.items():
        words = (*prefix, word)
        if words in _tables() and isinstance(value, dict):
            yield from _leaves(value, words)
        else:
            yield words, value


def _check(words: Words, value: object, text: str, shown: str) -> None:
    """ConfigError, with the place in the file, unless a key is known and its value is right."""
    if problem := _problem(words, value):
        message, hint = problem
        line = line_of(text, words)
        raise ConfigError(f"`{shown}`" + (f", line {line}" if line else "") + f": {message}", hint)


def _problem(words: Words, value: object) -> tuple[str, str] | None:
    """What is wrong with a value in a file, as message and hint."""
    name = _dotted(words)
    key = next((key for key in keys() if key.words == words), None)
    if words in _tables():
        return _must_be(f"`{name}`", "a table", _toml(value)), f"write `[{name}]` on a line, and its keys below it"
    if key is None:
        return f"unknown key `{name}`", _keys_hint(name)
    if not key.rule.accepts(value):
        return _must_be(f"`{name}`", key.rule, _toml(value)), _help_hint(key)
    return None


def _permissions_hint(path: str | Path) -> str:
    import shlex

    return f"look at its owner and mode: `ls -ld {shlex.quote(str(path))}`"


def _must_be(subject: str, rule: object, shown: str) -> str:
    return f"{subject} must be {rule}, not {shown}"


def _help_hint(key: Key) -> str:
    return f"`{key.name}` is {key.help}"


def _keys_hint(name: str) -> str:
    from difflib import get_close_matches

    full = {key.name: key.name for key in keys()} | {name: name for name in map(_dotted, _tables())}
    # A key that was written outside its table is near too.
    meant = {key.words[-1]: key.name for key in keys()} | full
    listed = "the keys are " + ", ".join(f"`{key.name}`" for key in keys())
    near = get_close_matches(name, meant, n=1)
    return f"did you mean `{meant[near[0]]}`? ({listed})" if near else listed


def _dotted(words: Words) -> str:
    """A key as TOML writes it."""
    return ".".join(
        _plain(word) if word.isascii() and word.replace("_", "a").replace("-", "a").isalnum() else f'"{_plain(word)}"'
        for word in words
    )


def _toml(value: object) -> str:
    """A value as TOML writes it, short enough for a message."""
    match value:
        case dict():
            return "a table"
        case list():
            return "an array"
        case bool():
            return str(value).lower()
        case int():
            return _plain(str(value) if abs(value) <= LARGEST else hex(value))  # Python refuses to write huge decimals
        case str():
            return f'"{_plain(value)}"'
        case _:
            return str(value)


def _plain(text: str) -> str:
    """Text from outside, safe on a terminal and short enough for a message."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in short)


def _read(file: Path, shown: str) -> str | None:
    """The text of a file; None if there is no such file."""
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"`{shown}` cannot be read: {error.strerror}", _permissions_hint(file)) from None
    try:
        return content.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"`{shown}`, line {line}: not UTF-8 text", "save it as UTF-8 in an editor") from None


def _parse(text: str, shown: str) -> dict[str, object]:
    import re
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"`{shown}` is nested too deeply", "the file needs no arrays inside arrays") from None
    except ValueError as error:  # also what Python says to an integer of thousands of digits
        reason, place = str(error), ""
        if match := re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", reason, re.DOTALL):
            reason, place = match[1], f", {match[2]}"
        message = f"`{shown}`{place}: {_plain(reason[:1].lower() + reason[1:])}"
        raise ConfigError(message, "the file is TOML: `key = value` lines, texts in double quotes") from None


def _inserted(text: str, words: Words, value: object, wanted: dict[str, object]) -> str | None:
    """The text with a line for a new key after the last line of its table; None if there is no such place.

    tomlkit would put the line below the comment that introduces the next table.
    """
    import tomllib

    import tomlkit

    lines = text.split("\n")
    for index in reversed(range(len(lines))):
        if lines[index].strip() and not lines[index].lstrip().startswith("#"):
            new = f"{words[-1]} = {tomlkit.item(value).as_string()}" + "\r" * lines[index].endswith("\r")
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
        raise ConfigError(f"`{file}` cannot be written: {error.strerror}", _permissions_hint(folder)) from None
    finally:
        if temporary:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
