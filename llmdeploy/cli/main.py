"""The entry point. Exit statuses: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from llmdeploy import __version__
from llmdeploy.cli.stdio import make_safe

if TYPE_CHECKING:
    from llmdeploy.errors import LlmdeployError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

COMPLETE_VARIABLE = "_LLMDEPLOY_COMPLETE"


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    make_safe()
    try:
        return _run(list(arguments))
    except BrokenPipeError:
        # The reader has gone (`| head`): also the interpreter's last flush must not write to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(arguments: list[str]) -> int:
    as_json = "--json" in takewhile(lambda word: word != "--", arguments)
    try:
        return _answer(arguments, as_json=as_json)
    except BrokenPipeError:
        raise
    except Exception as error:
        from llmdeploy.cli.output import out

        told = _told(error)
        if out.verbose or told.code == "internal":
            out.traceback(error)
        out.error(told, as_json=as_json)
        return told.exit_status


def _answer(arguments: list[str], *, as_json: bool) -> int:
    """Answer `--version` and completion before Typer is loaded, since these must be instant; run other commands."""
    if "--version" in takewhile(lambda word: word.startswith("-"), arguments):
        print(f"llmdeploy {__version__}", flush=True)
        return OK
    if os.environ.get(COMPLETE_VARIABLE, "").startswith("complete_"):
        from llmdeploy.cli.complete import answer

        return answer(os.environ)
    from llmdeploy.cli.app import invoke
    from llmdeploy.cli.output import out
    from llmdeploy.errors import LlmdeployError

    if not arguments:
        return invoke(["--help"]) or USAGE
    _require_text(arguments)
    _require_no_shell(arguments)
    status = invoke(arguments)
    if status == INTERRUPTED and as_json:
        out.error(LlmdeployError("interrupted", code="interrupted"), as_json=True)
    return status


def _require_text(arguments: Sequence[str]) -> None:
    """Raise UsageError for arguments that are not text in this locale: they would fail later, in odd places."""
    from llmdeploy.errors import UsageError

    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(
                f"`{argument}` is not text in this locale",
                "rename the file, or choose a UTF-8 locale: `LC_ALL=C.UTF-8`",
            )


def _require_no_shell(arguments: Sequence[str]) -> None:
    """Raise UsageError for a shell's name after a completion option: Typer would ignore it."""
    from llmdeploy.errors import UsageError

    for at, option in enumerate(takewhile(lambda word: word.startswith("-"), arguments)):
        if option in {"--install-completion", "--show-completion"} and arguments[at + 1 :]:
            message = f"`{option}` takes no value: it works for the shell that runs it"
            raise UsageError(message, f"`llmdeploy {option}`")


def _told(error: Exception) -> LlmdeployError:
    """Convert any exception into the error to report."""
    from llmdeploy.errors import LlmdeployError, UsageError, shortage

    if isinstance(error, LlmdeployError):
        return error
    if found := shortage(error):
        return found
    describe = getattr(error, "format_message", None)  # only Typer's usage errors have it; their class is private
    if describe is not None:
        return UsageError(_sentence(describe()) or "a command is missing", _help_hint(error))
    try:
        os.getcwd()
    except OSError:
        return LlmdeployError("the current folder no longer exists", "`cd` into one that does")
    return LlmdeployError(
        f"this is a bug in llmdeploy {__version__}, not in what you typed: {error!r}",
        "report it with the lines on stderr",
        code="internal",
    )


def _sentence(message: str) -> str:
    """Put Typer's message on one line without a final period, as our messages are."""
    return " ".join(message.split()).removesuffix(".")


def _help_hint(error: Exception) -> str:
    """Return the hint to ask for the help of the command or subcommand that was meant."""
    command = getattr(getattr(error, "ctx", None), "command_path", "llmdeploy")
    return f"`{command} --help`"
