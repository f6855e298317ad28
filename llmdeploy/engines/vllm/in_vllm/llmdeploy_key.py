"""The lock of a private vLLM: every route needs the key, not only those below `/v1`.

vLLM imports it by `--middleware llmdeploy_key.RequireKey`, in its own Python.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADER = b"authorization"
ANSWER = b'{"error": "Unauthorized"}'


class RequireKey:
    """An ASGI application that answers 401 to every request without the key in `VLLM_API_KEY`."""

    def __init__(self, app: App) -> None:
        """Wrap `app`. Raises KeyError without a key: a server that is open to everyone must not start."""
        self._app = app
        self._wanted = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            kind = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": kind})
            await send({"type": "http.response.body", "body": ANSWER})

    def _has_key(self, scope: Message) -> bool:
        given = [value for name, value in scope["headers"] if name == HEADER]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)
