"""One behaviour on every engine: each request gets what `asked.py` says, but for what `differences.py` tells."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.conftest import ROOT, until
from tests.engines.conformance import answers, matrix
from tests.engines.conformance.answers import Answer, Read
from tests.engines.conformance.asked import COUNT, QUESTION, RED, REQUESTS, SING, Asked, lists_the_model, user
from tests.engines.conformance.conftest import Served
from tests.engines.conformance.differences import DIFFERENCES, ONE_FORM

JSON = {"Content-Type": "application/json"}
OTHERWISE = {(difference.name, difference.engine): difference for difference in DIFFERENCES}
SOON = 10.0
"""Seconds in which an engine must be free again that eight have left: their songs would take it half a minute."""


def came(served: Served, asked: Asked) -> Answer:
    port = served.world(asked.model).port
    answer = answers.ask(port, asked.method, asked.path, asked.content(), asked.headers)
    assert answer.status != 200 or answer.read.model == asked.model
    return answer


@pytest.mark.parametrize("asked", REQUESTS, ids=[asked.name for asked in REQUESTS])
def test_what_comes_of_a_request(served: Served, asked: Asked) -> None:
    if asked.model != "selftest" and served.engine == "vllm":
        pytest.skip(ONE_FORM)
    cells = matrix.CAME[served.engine]
    cells[asked.name] = "?"
    answer = came(served, asked)
    cells[asked.name] = answer.cell + matrix.WRONG
    otherwise = OTHERWISE.get((asked.name, served.engine))
    if otherwise is None:
        check(answer, asked)
        cells[asked.name] = answer.cell
        return
    assert answer.cell == otherwise.cell, answer.content[:500]
    if otherwise.text is not None:
        assert answer.read.texts[0] == otherwise.text
    with pytest.raises(AssertionError):  # else it is a difference no more
        check(answer, asked)
    cells[asked.name] = answer.cell + matrix.OTHERWISE


def check(answer: Answer, asked: Asked) -> None:
    assert answer.cell == asked.cell, answer.content[:500]
    if asked.text is not None:
        assert answer.read.texts[0] == asked.text
    if answer.status != 200:
        assert answer.error["param"] == asked.param
    if asked.holds is not None:
        asked.holds(answer)


def test_the_models(served: Served) -> None:
    answer = answers.ask(served.world().port, "GET", "/v1/models", None, {})
    lists_the_model(answer)
    matrix.CAME[served.engine]["the models"] = str(answer.status)


def test_a_seed_gives_the_same_again(served: Served) -> None:
    body = {"messages": user("sing a song of six pence"), "temperature": 1.9, "seed": 7, "max_tokens": 24}
    asked = Asked("a seed, twice", body, "")
    first, second = (came(served, asked).read.texts for _ in range(2))
    matrix.CAME[served.engine][asked.name] = "the same"
    assert first == second


def test_a_hundred_at_once(served: Served) -> None:
    """Each gets its own answer."""

    def count(to: int) -> list[str]:
        body = {"messages": user(f"Count to {to}"), "temperature": 0, "stream": to % 2 == 0}
        return came(served, Asked("", body, "")).read.texts

    asked = [1 + at % 20 for at in range(100)]
    served.world()
    with ThreadPoolExecutor(100) as threads:
        texts = list(threads.map(count, asked))
    assert texts == [[" ".join(map(str, range(1, to + 1)))] for to in asked]
    matrix.CAME[served.engine]["a hundred at once"] = "100 x 200 stop"


def in_flight(port: int) -> float:
    metrics = answers.ask(port, "GET", "/metrics", None, {}).content
    found = re.search(rb"^llmdeploy_requests_in_flight\{.*\} (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_who_leaves_frees_the_engine(served: Served) -> None:
    """`sing` has no end but the context's: an engine that went on would sing for long."""
    port = served.world().port
    song = json.dumps({"model": "selftest", **SING, "stream": True}).encode()
    began = time.monotonic()
    for _ in range(8):  # more than any of them has slots for
        answers.leave(port, song)
    answer = came(served, Asked("", COUNT, ""))
    assert answer.read.texts == ["1 2 3 4 5"]
    soon = 6 * SOON if served.engine == "vllm" else SOON  # its CPU build would sing for minutes
    assert time.monotonic() - began < soon
    until(lambda: in_flight(port) == 0, soon)
    matrix.CAME[served.engine]["left at the first piece"] = answer.cell


def test_openai_s_client_understands(served: Served) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{served.world().port}/v1", api_key="none", max_retries=0)

    def create(messages: Any, **fields: Any) -> Any:
        return client.chat.completions.create(**{"model": "selftest", "messages": messages, "temperature": 0, **fields})

    with client:
        assert create(user("Count to 3")).choices[0].message.content == "1 2 3"
        pieces = create(user([RED, QUESTION]), stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "The image is red."
        with pytest.raises(NotFoundError) as unknown:
            create(user("x"), model="gpt-4")
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(BadRequestError) as long:
            create(user("a b c " * 9000), stream=True)
        assert (long.value.code, long.value.type) == ("context_length_exceeded", "invalid_request_error")
    matrix.CAME[served.engine]["openai's client"] = "understands"


def test_the_documentation_has_the_differences() -> None:
    """Each with its reason, in the table of docs/api.md, and no other."""
    text = (ROOT / "docs" / "api.md").read_text()
    _, _, table = text.partition("| request | engine | what comes | why |\n| --- | --- | --- | --- |\n")
    rows = table.partition("\n\n")[0].splitlines()
    assert rows == [difference.row for difference in DIFFERENCES]


def test_no_difference_is_told_of_a_request_that_there_is_not() -> None:
    names = [asked.name for asked in REQUESTS]
    assert len(set(names)) == len(names)
    assert {difference.name for difference in DIFFERENCES} <= set(names)
    assert len(OTHERWISE) == len(DIFFERENCES)


def test_a_shape_that_is_not_openai_s_is_seen() -> None:
    head: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    role = {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}]}
    end = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    def read(*events: object, end: str = "data: [DONE]\n\n") -> Read:
        content = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
        return Answer(200, {"content-type": "text/event-stream"}, content.encode()).read

    assert read(role, end).texts == ["a"]
    assert read({**role, "choices": [*role["choices"], *end["choices"]]}).finishes == ["stop"]
    for events in ([role], [end], [role, end, role], [role, {**end, "id": "y"}], [{**role, "object": "x"}, end]):
        with pytest.raises(AssertionError):
            read(*events)
    with pytest.raises(AssertionError):
        read(role, end, end="")
