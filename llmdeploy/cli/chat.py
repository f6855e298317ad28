"""`llmdeploy chat [PROMPT]`: one question and one streamed answer."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdeploy import config
from llmdeploy.background import start
from llmdeploy.cli import options
from llmdeploy.cli.output import out
from llmdeploy.config import api_key
from llmdeploy.errors import AlreadyServing, LlmdeployError, TimedOut, UsageError
from llmdeploy.models.reference import parse, served_name
from llmdeploy.service import state

if TYPE_CHECKING:
    from llmdeploy.client import Answer, Conversation
    from llmdeploy.config import Settings
    from llmdeploy.service.state import Record

EPILOG = """Examples:

llmdeploy chat --image photo.png "What is this?"

cat notes.txt | llmdeploy chat "Summarise\""""

PATIENCE = 1.0
"""Seconds to wait for the end of stdin before saying so."""


def register(app: typer.Typer, summary: str) -> None:
    app.command("chat", help=f"{summary} If nothing is served, the configured model is started.", epilog=EPILOG)(chat)


def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The question. Text on stdin is added.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", metavar="FILE|URL|-", help="An image; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.", show_default=False)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End the answer after N tokens.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, metavar="T", help="0 answers the same every time.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed of the sampler.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model to ask.", show_default=False)
    ] = None,
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    from llmdeploy.client import Conversation, Question, sees_no_images
    from llmdeploy.images import load

    settings = config.load({"timeout": timeout})
    if temperature is not None and not isfinite(temperature):
        raise UsageError(f"`--temperature` must be a number, not `{temperature}`", "0 answers the same every time")
    sources = image or []
    if "" in sources:
        raise UsageError("`--image` is empty", "give a file, an address, or `-` for stdin")
    if sources.count("-") > 1:
        raise UsageError("stdin can hold only one image", "give `--image -` once")
    # Every mistake of the user is found before a model is started.
    text = _prompt(prompt, stdin_is_image="-" in sources, timeout=settings.timeout)
    if not text and not sources:
        raise UsageError("no prompt was given", '`llmdeploy chat "Hello"`')
    images = [load(source, sys.stdin.buffer if source == "-" else None) for source in sources]
    record = _served(model, settings)
    if images and record.capabilities and "image" not in record.capabilities:
        raise sees_no_images()
    question = Question(text, images, system, max_tokens, temperature, seed)
    body = question.body(record.served_name)
    conversation = Conversation(record.url, body, settings.timeout, api_key.read(settings))
    if json:
        for _ in conversation:
            pass
        out.document(_document(conversation.answer, record))
    else:
        _print(conversation)
        _remark(conversation.answer)


def _print(conversation: Conversation) -> None:
    """Print the answer as it arrives, and end its line before anything else is printed, errors included."""
    begun = False
    try:
        for piece in conversation:
            out.data(piece.text, end="")
            begun = begun or bool(piece.text)
    except LlmdeployError:
        if begun:
            out.data("")
        raise
    out.data("")


def _served(model: str | None, settings: Settings) -> Record:
    """Return the record of the running service; if there is none, start the configured model."""
    record = _found(settings)
    if record is None:
        try:
            return _start(model, settings)
        except LlmdeployError as error:
            # Another command may have started a service at the same moment: then that one is asked.
            record = _found(settings) if error.code == AlreadyServing.code else None
            if record is None:
                raise
    if model is not None and served_name(parse(model)) != record.served_name and str(parse(model)) != record.model:
        raise AlreadyServing(
            f"`{record.served_name}` is served, not `{model}`",
            f"`llmdeploy switch --model {quote(model)}` serves it; leave out `--model` to ask `{record.served_name}`",
            code="another_model",
        )
    if record.switch and record.server is None:
        out.note(f"a switch to {record.switch.get('engine')} is in progress: the answer waits for it")
    return record


def _found(settings: Settings) -> Record | None:
    """Return the record of the running service, waiting while it starts; None if nothing is served."""
    from llmdeploy.cli.phases import say_phase
    from llmdeploy.service.client import Watch

    deadline = time.monotonic() + settings.timeout
    watch = Watch(say_phase)
    situation = state.observe()
    while situation.state == "starting" and situation.record is not None:
        if time.monotonic() > deadline:
            raise TimedOut(
                f"`{situation.record.served_name}` is still {situation.record.phase}", "wait longer with `--timeout`"
            )
        watch.update(situation.record)
        time.sleep(0.05)
        situation = state.observe()
    return situation.record if situation.state == "ready" else None


def _start(model: str | None, settings: Settings) -> Record:
    from llmdeploy.cli.serve import start
    from llmdeploy.service.order import Order

    reference = options.resolve_model(settings.model if model is None else model)
    out.note(f"nothing is served; starting `{served_name(reference)}` on {settings.engine} in the background")
    record = start(Order(reference, settings))
    out.note(f"`{record.served_name}` stays up at {record.url}/v1; `llmdeploy stop` ends it")
    if model is None and settings.source("model") == "default":
        out.hint("this is the self-test model; `llmdeploy config set model qwen3:8b` chooses a real one")
    return record


def _prompt(prompt: str | None, *, stdin_is_image: bool, timeout: float) -> str:
    """Join the prompt argument and the text on stdin."""
    if stdin_is_image or sys.stdin.isatty():
        return prompt or ""
    try:
        piped = _read_stdin(timeout).decode().strip()
    except UnicodeDecodeError:
        raise UsageError("stdin is not text", "an image is given as `--image -`") from None
    return "\n\n".join(part for part in (prompt, piped) if part)


def _read_stdin(timeout: float) -> bytes:
    """Return all of stdin. The other end may never be closed, so the wait is reported and has a limit."""

    def read() -> bytes:
        content = bytearray()
        # Not sys.stdin.buffer: a thread that waits in it holds a lock, and the interpreter could not exit.
        with suppress(OSError):  # stdin may be open for writing only
            while piece := os.read(sys.stdin.fileno(), 2**16):
                content += piece
        return bytes(content)

    reading = start(read)
    with suppress(TimeoutError):
        return reading.result(PATIENCE)
    out.note(f"waiting up to {timeout:g} s for the end of stdin; add `< /dev/null` to skip it")
    try:
        return reading.result(timeout)
    except TimeoutError:
        raise TimedOut(f"stdin did not end within {timeout:g} s", "add `< /dev/null` to skip it") from None


def _document(answer: Answer, record: Record) -> dict[str, Any]:
    fields = asdict(answer)
    return {
        "model": record.served_name,
        "engine": record.engine,
        "content": fields["text"],
        "reasoning": fields["reasoning"] or None,
        "finish_reason": fields["finish_reason"],
        "usage": fields["usage"],
        "ttft_seconds": round(answer.ttft, 4),
        "duration_seconds": round(answer.duration, 4),
    }


def _remark(answer: Answer) -> None:
    if answer.finish_reason == "length":
        out.note("the answer was cut off: it reached the limit of tokens")
    elif not answer.text and answer.reasoning:
        out.note("the model produced only reasoning and no answer; `--json` shows the reasoning")
