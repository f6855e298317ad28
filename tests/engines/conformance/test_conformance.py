"""The same behaviour on every engine: each case gets its expected answer, except for the listed differences."""

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
from tests.engines.conformance.cases import COUNT, QUESTION, RED, REQUESTS, SING, Case, lists_the_model, user
from tests.engines.conformance.conftest import Served
from tests.engines.conformance.differences import DIFFERENCES, ONE_FORM

JSON = {"Content-Type": "application/json"}
OTHERWISE = {(difference.name, difference.engine): difference for difference in DIFFERENCES}
SOON = 10.0
"""Seconds until an engine must be free after eight clients left: their songs would take it half a minute."""


def came(served: Served, case: Case) -> Answer:
    port = served.world(case.model).port
    answer = answers.ask(port, case.method, case.path, case.content(), case.headers)
    assert answer.status != 200 or answer.read.model == case.model
    return answer


@pytest.mark.parametrize("case", REQUESTS, ids=[case.name for case in REQUESTS])
def test_a_request_gets_the_expected_answer(served: Served, case: Case) -> None:
    if case.model != "selftest" and served.engine == "vllm":
        pytest.skip(ONE_FORM)
    cells = matrix.CAME[served.engine]
    cells[case.name] = "?"
    answer = came(served, case)
    cells[case.name] = answer.cell + matrix.WRONG
    otherwise = OTHERWISE.get((case.name, served.engine))
    if otherwise is None:
        check(answer, case)
        cells[case.name] = answer.cell
        return
    assert answer.cell == otherwise.cell, answer.content[:500]
    if otherwise.text is not None:
        assert answer.read.texts[0] == otherwise.text
    with pytest.raises(AssertionError):  # else the difference does not exist any longer
        check(answer, case)
    cells[case.name] = answer.cell + matrix.OTHERWISE


def check(answer: Answer, case: Case) -> None:
    assert answer.cell == case.cell, answer.content[:500]
    if case.text is not None:
        assert answer.read.texts[0] == case.text
    if answer.status != 200:
        assert answer.error["param"] == case.param
    if case.holds is not None:
        case.holds(answer)


def test_the_models(served: Served) -> None:
    answer = answers.ask(served.world().port, "GET", "/v1/models", None, {})
    lists_the_model(answer)
    matrix.CAME[served.engine]["the models"] = str(answer.status)


def test_a_seed_repeats_the_answer(served: Served) -> None:
    body = {"messages": user("sing a song of six pence"), "temperature": 1.9, "seed": 7, "max_tokens": 24}
    case = Case("a seed, twice", body, "")
    first, second = (came(served, case).read.texts for _ in range(2))
    matrix.CAME[served.engine][case.name] = "the same"
    assert first == second


def test_a_hundred_at_once(served: Served) -> None:
    """Assert that each of a hundred requests at once gets its own answer."""

    def count(to: int) -> list[str]:
        body = {"messages": user(f"Count to {to}"), "temperature": 0, "stream": to % 2 == 0}
        return came(served, Case("", body, "")).read.texts

    counts = [1 + at % 20 for at in range(100)]
    served.world()
    with ThreadPoolExecutor(100) as threads:
        texts = list(threads.map(count, counts))
    assert texts == [[" ".join(map(str, range(1, to + 1)))] for to in counts]
    matrix.CAME[served.engine]["a hundred at once"] = "100 x 200 stop"


def in_flight(port: int) -> float:
    metrics = answers.ask(port, "GET", "/metrics", None, {}).content
    found = re.search(rb"^llmdeploy_requests_in_flight\{.*\} (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_a_client_that_leaves_frees_the_engine(served: Served) -> None:
    """`sing` ends only with the context, so an engine that continued would be busy for long."""
    port = served.world().port
    song = json.dumps({"model": "selftest", **SING, "stream": True}).encode()
    began = time.monotonic()
    for _ in range(8):  # more than any engine has slots for
        answers.leave(port, song)
    answer = came(served, Case("", COUNT, ""))
    assert answer.read.texts == ["1 2 3 4 5"]
    soon = 6 * SOON if served.engine == "vllm" else SOON  # its CPU build would sing for minutes
    assert time.monotonic() - began < soon
    until(lambda: in_flight(port) == 0, soon)
    matrix.CAME[served.engine]["left at the first piece"] = answer.cell


def test_openais_client_works(served: Served) -> None:
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
    """Assert that the table in docs/api.md has each difference with its reason, and no other."""
    text = (ROOT / "docs" / "api.md").read_text()
    _, _, table = text.partition("| request | engine | answer | reason |\n| --- | --- | --- | --- |\n")
    rows = table.partition("\n\n")[0].splitlines()
    assert rows == [difference.row for difference in DIFFERENCES]


def test_every_difference_names_a_request() -> None:
    names = [case.name for case in REQUESTS]
    assert len(set(names)) == len(names)
    assert {difference.name for difference in DIFFERENCES} <= set(names)
    assert len(OTHERWISE) == len(DIFFERENCES)


def test_a_wrong_shape_is_detected() -> None:
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
