"""From the command line to an exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from llmdeploy import __version__

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

COMPLETE_VARIABLE = "_LLMDEPLOY_COMPLETE"


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. What must be instant is answered before Typer is loaded."""
    if arguments[:1] == ["--version"]:
        print(f"llmdeploy {__version__}")
        return OK
    if os.environ.get(COMPLETE_VARIABLE, "").startswith("complete_"):
        from llmdeploy.cli.complete import answer

        return answer(os.environ)
    if not arguments:
        return run(["--help"]) or USAGE
    return _run(list(arguments))


def _run(arguments: list[str]) -> int:
    from llmdeploy.cli.app import invoke
    from llmdeploy.cli.output import out
    from llmdeploy.errors import LlmdeployError, UsageError

    as_json = "--json" in arguments
    try:
        return invoke(arguments)
    except LlmdeployError as error:
        if out.verbose:
            import traceback

            traceback.print_exception(error)
        out.error(error, as_json=as_json)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Nothing more can be said there, not even by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        describe = getattr(error, "format_message", None)  # Typer's usage errors have it; their class is private
        if describe is None:
            return _bug(error)
        out.error(UsageError(_sentence(describe()), _help_hint(arguments)), as_json=as_json)
        return USAGE


def _sentence(message: str) -> str:
    """Typer's words in our form: one line, no period at its end."""
    return " ".join(message.split()).removesuffix(".")


def _help_hint(arguments: Sequence[str]) -> str:
    from llmdeploy.cli.app import COMMANDS, command_of

    command = command_of(arguments)
    return f"`llmdeploy {command} --help`" if command in COMMANDS else "`llmdeploy --help`"


def _bug(error: Exception) -> int:
    import traceback

    traceback.print_exception(error)
    print(f"error: this is a bug in llmdeploy {__version__}, not in what you typed", file=sys.stderr)
    print("hint: report it with the lines above", file=sys.stderr)
    return FAILED
