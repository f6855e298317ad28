"""`llmdeploy logs`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llmdeploy.cli.output import harmless, out
from llmdeploy.errors import NotServing
from llmdeploy.service import state

EPILOG = """Examples:

llmdeploy logs --follow

llmdeploy logs -n 20"""

POLL_SECONDS = 0.2
"""Seconds between two looks at the file."""


def register(app: typer.Typer, summary: str) -> None:
    app.command("logs", help=summary, epilog=EPILOG)(logs)


def logs(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines as they are written, until Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="The number of last lines to print.")
    ] = 100,
) -> None:
    file = state.server_log()
    try:
        text, position = _read(file, 0)
    except FileNotFoundError:
        raise NotServing(f"`{file}` does not exist yet", "`llmdeploy serve` writes the log") from None
    except OSError as error:
        raise state.unwritable(error, "read") from error
    for line in text.splitlines()[-lines:] if lines else []:
        out.line(line)
    if follow:
        for text in _growth(file, position):
            out.data(harmless(text), end="")


def _growth(file: Path, position: int) -> Iterator[str]:
    """Yield what is appended to the log from `position` on; after a switch, to the new server's log.

    When the file was rotated or another server took over, the rest of the old file comes first.
    """
    identity = file.stat().st_ino
    while True:
        time.sleep(POLL_SECONDS)
        rotated = file.with_name(f"{file.name}.1")
        try:
            if (now := state.server_log()) != file and now.exists():
                yield _read(file, position)[0]
                file, identity, position = now, now.stat().st_ino, 0
            status = file.stat()
            if status.st_ino != identity:
                if rotated.exists() and rotated.stat().st_ino == identity:
                    yield _read(rotated, position)[0]
                identity, position = status.st_ino, 0
            if status.st_size < position:
                position = 0
            if status.st_size > position:
                text, position = _read(file, position)
                yield text
        except FileNotFoundError:
            continue  # a rotation is in progress


def _read(file: Path, position: int) -> tuple[str, int]:
    with file.open("rb") as stream:
        stream.seek(position)
        content = stream.read()
    return content.decode(errors="replace"), position + len(content)
