"""Connection data for applications: base URL, API key and model name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmdeploy import config
from llmdeploy.address import local_url
from llmdeploy.config import api_key
from llmdeploy.errors import NotServing
from llmdeploy.models.reference import parse, served_name
from llmdeploy.service import state

if TYPE_CHECKING:
    from llmdeploy.config import Settings
    from llmdeploy.service.state import Record, Situation

NO_KEY = "none"
"""Placeholder if no key is needed, because OpenAI's clients require one."""


@dataclass(frozen=True)
class Connection:
    """Connection for any client: `OpenAI(base_url=it.base_url, api_key=it.api_key)`, with `it.model` in requests."""

    base_url: str
    api_key: str = field(repr=False)
    model: str


def connect() -> Connection:
    """Return the connection to the running service. Raises NotServing; ConfigError if the key cannot be read."""
    situation = state.observe()
    if situation.record is None or situation.state != "ready":
        raise _not_serving(situation)
    return to_record(situation.record, config.load())


def to_record(record: Record, settings: Settings) -> Connection:
    """Return the connection to the service of this record. Raises ConfigError."""
    return _connection(record.url, record.served_name, settings)


def to_configured(settings: Settings) -> Connection:
    """Return the connection that `llmdeploy serve` will provide. Raises UsageError if the model's name is invalid."""
    return _connection(local_url(settings.host, settings.port), served_name(parse(settings.model)), settings)


def _connection(url: str, model: str, settings: Settings) -> Connection:
    return Connection(f"{url}/v1", api_key.read(settings) or NO_KEY, model)


def _not_serving(situation: Situation) -> NotServing:
    record = situation.record
    if record is None:
        error = NotServing("nothing is served", "`llmdeploy serve` serves the configured model")
    elif situation.state == "starting":
        error = NotServing(f"`{record.served_name}` is still starting", "`llmdeploy status` tells how far it is")
    else:
        error = NotServing(f"`{record.served_name}` is no longer served", "`llmdeploy status` tells why")
    error.add_note(f"hint: {error.hint}")  # for tracebacks
    return error
