"""The messages of the service: bounded, each kind of error once in full, and without texts of requests."""

from __future__ import annotations

import io
import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest

from llmdeploy.engines.log_filter import REMOVED, no_client_texts
from llmdeploy.service import service_log
from llmdeploy.service.service_log import LogFile, Messages

SECRET = "ZZSECRET"


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(written: io.StringIO) -> logging.Logger:
    logger = logging.Logger("service")
    logger.addHandler(Messages(stream=written))
    return logger


def taken(written: io.StringIO) -> str:
    """Return what was written since the last call."""
    text = written.getvalue()
    written.seek(0)
    written.truncate()
    return text


def fail(log: logging.Logger, error: Exception, text: str = "a request failed") -> None:
    try:
        try:
            raise error
        except Exception as cause:
            raise KeyError(SECRET) from cause
    except Exception:
        log.exception(text)


def test_a_repeated_traceback_is_written_once(log: logging.Logger, written: io.StringIO) -> None:
    fail(log, ValueError())
    first = taken(written)
    assert first.splitlines()[0] == "a request failed"
    assert "then:" in first
    assert first.splitlines()[-1] == "KeyError"
    for _ in range(3000):
        fail(log, ValueError())
    rest = taken(written).splitlines()
    assert [line.split(", ")[1] for line in rest] == ["10 times so far", "100 times so far", "1000 times so far"]


def test_texts_of_requests_do_not_reach_the_log(log: logging.Logger, written: io.StringIO) -> None:
    fail(log, ValueError(SECRET), f"it failed\nfuture: <Task exception={SECRET}>")
    log.error("it failed", exc_info=OSError(28, "No space left on device"))
    text = taken(written)
    assert "OSError: No space left on device" in text
    # The lines of the code are written, and the constant's name is one of them.
    assert SECRET not in text.replace("KeyError(SECRET)", "").replace("ValueError(SECRET)", "")


def test_the_number_of_kinds_is_bounded(
    log: logging.Logger, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_log, "MOST_KINDS", 3)
    for number in range(50):
        error = type(f"Error{number}", (Exception,), {})()
        log.error("failed", exc_info=error)
    assert len(taken(written).splitlines()) == 2 * 4 + 1  # four kinds in full, and that there were ten more


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a file that is always full")
def test_a_log_that_cannot_be_written_ends_nothing(log: logging.Logger) -> None:
    handler = log.handlers[0]
    assert isinstance(handler, Messages)
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it writes what is left
        handler.setStream(full)
        log.warning("a word")
        fail(log, ValueError())


@pytest.fixture
def file(tmp_path: Path) -> LogFile:
    descriptor = os.open(tmp_path / "service.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    return LogFile(tmp_path / "service.log", descriptor)


def test_the_file_is_rotated(file: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_log, "MAX_BYTES", 10)
    for text in ("first message", "second message", "third"):
        os.write(file._descriptor, text.encode())
        file.check()
    found = {it.name: it.read_text() for it in tmp_path.iterdir() if it.is_file()}
    assert found == {"service.log": "third", "service.log.1": "second message"}


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_was_removed_is_opened_again(file: LogFile, tmp_path: Path, how: str) -> None:
    place = tmp_path / "service.log"
    place.unlink()
    if how == "replaced":
        place.write_text("theirs ")
    file.check()
    os.write(file._descriptor, b"a word")
    assert place.read_text().endswith("a word")
    place.unlink()
    place.mkdir()
    file.check()  # a folder cannot be opened: the old file goes on
    os.write(file._descriptor, b"another")


GRAMMAR = [
    "parse: error parsing grammar: expecting name at ZZSECRET",
    "",
    'root ::= "ZZSECRET" [',
    "ZZSECRET ::= x",
    "0.01.603.161 E failed to parse grammar",
]


@pytest.mark.parametrize(
    ("lines", "written"),
    [
        (["0.01.1 I slot release: id  2"], ["0.01.1 I slot release: id  2"]),
        (GRAMMAR, [f"parse: error parsing grammar: {REMOVED}", GRAMMAR[-1]]),
        ([*GRAMMAR[:3], *GRAMMAR], [f"parse: error parsing grammar: {REMOVED}"] * 2 + GRAMMAR[-1:]),
        (
            ['0.0 W srv    operator(): got exception: {"error":{"message":"$ref http://ZZSECRET"}}'],
            [f"0.0 W srv    operator(): got exception: {REMOVED}"],
        ),
        (["ValidationError: [input_value='ZZSECRET', input_type=str]"], [f"ValidationError: [input_value= {REMOVED}"]),
        (["terminate called", "  what():  std::bad_alloc"], ["terminate called", "  what():  std::bad_alloc"]),
    ],
)
def test_what_servers_quote_of_requests_is_removed(lines: list[str], written: list[str]) -> None:
    filtered = no_client_texts()
    assert [it for it in map(filtered, lines) if it is not None] == written
