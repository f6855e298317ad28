"""What a request asks, checked the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from llmdeploy.gateway.errors import Refused
from llmdeploy.gateway.target import Target


@dataclass(frozen=True)
class Prepared:
    body: bytes
    stream: bool


class _Asked(msgspec.Struct):
    model: str
    stream: bool = False


_decode = msgspec.json.Decoder(_Asked).decode


def prepared(path: str, body: bytes, target: Target) -> Prepared:
    """The body as the engine is sent it; the same object where nothing needs changing. Raises Refused."""
    try:
        asked = _decode(body)
    except msgspec.MsgspecError as error:
        raise Refused(400, str(error)) from None
    return Prepared(body, asked.stream)
