"""What an application needs to talk to the model: where, with which key, under which name."""

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
"""Where none is needed: the clients of OpenAI's API want one."""


@dataclass(frozen=True)
class Connection:
    """For any client: `OpenAI(base_url=it.base_url, api_key=it.api_key)`, and `it.model` in each request."""

    base_url: str
    api_key: str = field(repr=False)
    model: str


def connect() -> Connection:
    """The connection to the service that runs here. Raises NotServing; ConfigError where the key cannot be read."""
    situation = state.observe()
    if situation.record is None or situation.state != "ready":
        raise _not_serving(situation)
    return to_record(situation.record, config.load())


def to_record(record: Record, settings: Settings) -> Connection:
    return _connection(record.url, record.served_name, settings)


def to_configured(settings: Settings) -> Connection:
    """The connection to what `llmdeploy serve` will serve. Raises UsageError where the model is none."""
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
    error.add_note(f"hint: {error.hint}")  # a traceback shows it too
    return error
