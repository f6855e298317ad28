"""Shell completion, answered without loading Typer, so that Tab feels instant.

`completion_table.py` lists what can be typed; `scripts/completions.py` generates it from the Typer app. The shells call
llmdeploy through Typer's own completion scripts (`llmdeploy --show-completion` prints them), so an installed script
never goes out of date.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llmdeploy.cli.completion_table import GLOBAL_OPTIONS, TABLE

BREAKS = (":", "=")
"""Characters in our words at which bash splits a word in two."""


class Completion(NamedTuple):
    """One word that can be typed at the cursor, with its help."""

    text: str
    help: str = ""


class CommandLine(NamedTuple):
    """The command line up to the cursor."""

    words: list[str]
    """Complete words before the cursor, without the program name."""
    current: str
    """The word at the cursor."""
    kept: int = 0
    """Number of leading characters of `current` that the shell keeps and an answer must not repeat."""


def answer(environment: Mapping[str, str]) -> int:
    """Print the completions of the command line in the shell's own form. Exit status 1 makes fish offer files."""
    shell = environment["_LLMDEPLOY_COMPLETE"].removeprefix("complete_")
    line = _line(shell, environment)
    found = [
        Completion(it.text[line.kept :], it.help)
        for it in candidates(line.words, line.current)
        if it.text.startswith(line.current)
    ]
    if environment.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return 0 if found else 1
    text = _FORMATS[shell](found) if shell in _FORMATS else ""
    if text:
        print(text)
    return 0


def candidates(words: list[str], current: str) -> list[Completion]:
    """List the completions of `current`: options after a dash or if nothing else fits. If empty, shells offer files."""
    options, subcommands = GLOBAL_OPTIONS, TABLE
    arguments: list[str] = []
    waiting = ""
    for word in words:
        if waiting:
            waiting = ""
        elif word.startswith("-"):
            waiting = options.get(word, ("", ""))[1]
        elif word in subcommands:
            _, options, arguments, subcommands = subcommands[word]
        elif not (arguments and arguments[0].endswith("...")):
            arguments = arguments[1:]
    if waiting:
        return _values(waiting)
    option, equals, _ = current.partition("=")
    if equals and option in options:
        return [Completion(f"{option}={it.text}", it.help) for it in _values(options[option][1])]
    found = []
    if not current.startswith("-"):
        found += [Completion(name, entry[0]) for name, entry in subcommands.items()]
        found += _values(arguments[0]) if arguments else []
    if not found:
        found += [Completion(name, help) for name, (help, _) in options.items()]
    return found


def _values(kind: str) -> list[Completion]:
    """List the values of an option or argument by the metavar that help shows for it."""
    if kind.startswith("MODEL"):
        return [Completion(name) for name in _names()]
    if kind == "ENGINE":
        from llmdeploy.config import ENGINE_NAMES

        return [Completion(name) for name in ENGINE_NAMES]
    if kind == "SHELL":
        from llmdeploy.cli.shells import ASSIGNMENTS

        return [Completion(name) for name in ASSIGNMENTS]
    if kind == "KEY":
        from llmdeploy.config import keys

        return [Completion(key.name, key.help) for key in keys()]
    return []


def _names() -> list[str]:
    """List the catalog's model names; empty if the user's own catalog file is invalid, which commands report."""
    from llmdeploy.models.catalog import names

    if not names.user_file().exists():
        return names.shipped()
    from llmdeploy.errors import ConfigError
    from llmdeploy.models.catalog import lookup

    try:
        return lookup.names()
    except ConfigError:
        return []


def _line(shell: str, environment: Mapping[str, str]) -> CommandLine:
    if shell == "bash":
        return _bash_line(environment.get("COMP_WORDS", ""), environment.get("COMP_CWORD", ""))
    text = environment.get("_TYPER_COMPLETE_ARGS", "")
    if "powershell" in shell or shell == "pwsh":
        words, current = _split(text)[1:], environment.get("_TYPER_COMPLETE_WORD_TO_COMPLETE", "")
        return CommandLine(words[:-1] if current else words, current)
    cursor = "\0"  # becomes a word of its own after a blank, else part of the last word
    *words, current = _split(text + cursor)
    return CommandLine(words[1:], current.removesuffix(cursor))


def _bash_line(lines: str, position: str) -> CommandLine:
    """Parse bash's COMP_WORDS: one word on each line, also split at colons and equals signs."""
    words = ["".join(_split(word)) for word in lines.split("\n")]
    at = int(position) if position.isdecimal() else len(words)
    broken = words[at] if at < len(words) else ""
    whole: list[str] = []
    for word in [*words[1:at], broken]:
        if whole and word and (word[0] in BREAKS or whole[-1].endswith(BREAKS)):
            whole[-1] += word
        else:
            whole.append(word)
    *before, current = whole
    kept = 0 if current == broken else max(current.rfind(mark) for mark in BREAKS) + 1
    return CommandLine(before, current, kept)


def _split(text: str) -> list[str]:
    """Split a line into words; a quote that is still open ends with the line."""
    import shlex

    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(iter(lexer.get_token, None))
    except ValueError:
        words.append(lexer.token)
    return words


def _bash(found: list[Completion]) -> str:
    return "\n".join(it.text for it in found)


def _zsh(found: list[Completion]) -> str:
    if not found:
        return "_files"
    lines = [f'"{_zsh_word(it.text)}":"{_zsh_word(it.help)}"' if it.help else f'"{_zsh_word(it.text)}"' for it in found]
    return "_arguments '*: :((" + "\n".join(lines) + "))'"


def _zsh_word(text: str) -> str:
    for character, escaped in (("\\", "\\\\"), ('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", "\\\\:")):
        text = text.replace(character, escaped)
    return text


def _fish(found: list[Completion]) -> str:
    return "\n".join(f"{it.text}\t{it.help}" if it.help else it.text for it in found)


def _powershell(found: list[Completion]) -> str:
    return "\n".join(f"{it.text}:::{it.help or ' '}" for it in found)


_FORMATS = {"bash": _bash, "zsh": _zsh, "fish": _fish, "powershell": _powershell, "pwsh": _powershell}
