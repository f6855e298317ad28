"""Shell completion, answered before Typer is loaded: a Tab must not be felt.

What can be typed stands in `completion_table.py`, made from the Typer app by `scripts/completions.py`. The shells ask
as Typer's own completion scripts have them do (`llmdeploy --show-completion` prints these), so what a user installed
never goes stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llmdeploy.cli.completion_table import GLOBAL_OPTIONS, TABLE


class Candidate(NamedTuple):
    text: str
    help: str = ""


def answer(environment: Mapping[str, str]) -> int:
    """Print the candidates for the line that the shell handed over, in that shell's form; 1 tells fish: take files."""
    shell = environment["_LLMDEPLOY_COMPLETE"].removeprefix("complete_")
    words, current = _line(shell, environment)
    found = [it for it in candidates(words) if it.text.startswith(current)]
    if shell == "bash":  # it replaces only what follows the last colon
        before = current.rpartition(":")[0]
        found = [Candidate(it.text[len(before) + 1 :] if before else it.text) for it in found]
    if environment.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return 0 if found else 1
    text = _FORMATS[shell](found) if shell in _FORMATS else ""
    if text:
        print(text)
    return 0


def candidates(words: list[str]) -> list[Candidate]:
    """What may come after these words. Nothing: the shell offers files."""
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
        else:
            arguments = arguments[1:]
    if waiting:
        return _values(waiting)
    named = [Candidate(name, entry[0]) for name, entry in subcommands.items()]
    return named + (_values(arguments[0]) if arguments else []) + _options(options)


def _options(options: Mapping[str, tuple[str, str]]) -> list[Candidate]:
    return [Candidate(name, help) for name, (help, _) in options.items()]


def _values(kind: str) -> list[Candidate]:
    """What an option or argument takes, by the word that help shows for it."""
    if kind == "MODEL":
        from llmdeploy.models import catalog

        return [Candidate(name) for name in catalog.names()]
    if kind == "ENGINE":
        from llmdeploy.config import ENGINE_NAMES

        return [Candidate(name) for name in ENGINE_NAMES]
    if kind == "KEY":
        from llmdeploy.config import keys

        return [Candidate(key.name, key.help) for key in keys()]
    return []


def _line(shell: str, environment: Mapping[str, str]) -> tuple[list[str], str]:
    """The whole words before the cursor, without the program, and the word at the cursor."""
    if shell == "bash":
        words = _split(environment.get("COMP_WORDS", ""))
        at = int(environment.get("COMP_CWORD", "0"))
        return _rejoined(words[1:at], words[at] if at < len(words) else "")
    text = environment.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(text)[1:]
    if "powershell" in shell or shell == "pwsh":
        current = environment.get("_TYPER_COMPLETE_WORD_TO_COMPLETE", "")
        return words[:-1] if current else words, current
    return (words, "") if text.endswith(" ") or not words else (words[:-1], words[-1])


def _rejoined(words: list[str], current: str) -> tuple[list[str], str]:
    """The same line with the words that bash broke at a colon whole again."""
    while words and (current.startswith(":") or words[-1].endswith(":")):
        *words, last = words
        current = last + current
    return words, current


def _split(text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError:  # a quote that is still open
        return text.split()


def _bash(found: list[Candidate]) -> str:
    return "\n".join(it.text for it in found)


def _zsh(found: list[Candidate]) -> str:
    if not found:
        return "_files"
    lines = [f'"{_zsh_word(it.text)}":"{_zsh_word(it.help)}"' if it.help else f'"{_zsh_word(it.text)}"' for it in found]
    return "_arguments '*: :((" + "\n".join(lines) + "))'"


def _zsh_word(text: str) -> str:
    for character, escaped in (('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", "\\\\:")):
        text = text.replace(character, escaped)
    return text


def _fish(found: list[Candidate]) -> str:
    return "\n".join(f"{it.text}\t{it.help}" if it.help else it.text for it in found)


def _powershell(found: list[Candidate]) -> str:
    return "\n".join(f"{it.text}:::{it.help or ' '}" for it in found)


_FORMATS = {"bash": _bash, "zsh": _zsh, "fish": _fish, "powershell": _powershell, "pwsh": _powershell}
