"""Load of clients that stream without pause and check that each answer is complete."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from types import TracebackType

WORDS = " ".join(map(str, range(1, 21)))
QUESTION = "Count to 20"
PATIENCE = 300
"""Seconds for an answer, which may have to wait for a switch on a busy machine."""


@dataclass
class Load:
    """Clients that run during a `with` block. Collects failures as messages, and the engine of each answer."""

    port: int
    clients: int = 16
    pause: float = 0.0
    """Seconds between an answer and the next question of the same client."""
    model: str = "selftest"
    failures: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client waits for its answer still"

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def _ask_on(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        while not self._over.is_set():
            try:
                engine = self._ask(connection)
            except (OSError, HTTPException, ValueError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
            else:
                self.answers[engine] += 1
            self._over.wait(self.pause)
        connection.close()

    def _ask(self, connection: HTTPConnection) -> str:
        """Stream one answer, check that it is complete and from one engine, and return the engine."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()  # raises IncompleteRead if the end is missing
        assert response.status == 200, f"{response.status} {content[:500]!r}"
        events = [line.removeprefix(b"data: ") for line in content.split(b"\n") if line.startswith(b"data: ")]
        assert events[-1] == b"[DONE]", f"no end: {events[-1]!r}"
        chunks = [json.loads(event) for event in events[:-1]]
        assert len({chunk["id"] for chunk in chunks}) == 1, "pieces of two answers"
        assert {chunk["model"] for chunk in chunks} == {self.model}
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == WORDS
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        engine = response.getheader("x-llmdeploy-engine")
        assert engine is not None
        return engine
