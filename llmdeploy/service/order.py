"""Orders: a deployment that a command asks for, in the form in which it is sent to the service."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy import config
from llmdeploy.errors import UsageError
from llmdeploy.models.reference import ModelRef, parse, served_name
from llmdeploy.plan import Wishes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmdeploy.config import Settings

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Order:
    """A model to serve, with the user's settings."""

    model: ModelRef
    settings: Settings
    repair: bool = True
    """Whether a start that fails is tried again with what the engine asks for."""

    @property
    def served_name(self) -> str:
        return served_name(self.model)

    @property
    def wishes(self) -> Wishes:
        return Wishes(self.settings.context, self.settings.parallel)

    @property
    def timeout(self) -> float:
        """Seconds the server may take to become ready, once it is started."""
        return self.settings.timeout

    def document(self) -> dict[str, Any]:
        """Return the order as `from_document` takes it."""
        return {"settings": config.document(self.settings), "model": str(self.model), "repair": self.repair}

    def to_json(self) -> bytes:
        """Return the order as `from_json` takes it."""
        return json.dumps(self.document()).encode()

    @classmethod
    def from_document(cls, content: Mapping[str, Any]) -> Order:
        """Return the order of a document. Raises UsageError, ConfigError."""
        try:
            return cls(parse(content["model"]), config.from_document(content["settings"]), bool(content["repair"]))
        except MALFORMED:
            raise _not_understood() from None

    @classmethod
    def from_json(cls, body: bytes) -> Order:
        """Return the order that another process wrote. Raises UsageError, ConfigError."""
        return cls.from_document(_parsed(body))


@dataclass(frozen=True)
class SwitchOrder:
    """An order for a service that serves already, and what is written once it is carried out."""

    order: Order
    file: Path
    """The configuration file."""
    changes: dict[str, str | None]
    """The keys of the file that change; None for a key that is removed."""
    hold: bool = True
    """Whether requests that cannot be answered during the switch wait; otherwise they are refused."""
    beside: bool = True
    """Whether the new server may start beside the old one."""

    def to_json(self) -> bytes:
        """Return the order as `from_json` takes it."""
        content = {
            **self.order.document(),
            "hold": self.hold,
            "beside": self.beside,
            "file": str(self.file),
            "changes": self.changes,
        }
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, body: bytes) -> SwitchOrder:
        """Return the order that a command sent. Raises UsageError, ConfigError."""
        content = _parsed(body)
        order = Order.from_document(content)
        try:
            file, changes = Path(content["file"]), dict(content["changes"])
            return cls(order, file, changes, bool(content["hold"]), bool(content["beside"]))
        except MALFORMED:
            raise _not_understood() from None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except MALFORMED:
        raise _not_understood() from None
    if not isinstance(content, dict):
        raise _not_understood()
    return content


def _not_understood() -> UsageError:
    return UsageError("the service does not understand this order", "`llmdeploy stop`, then serve again")
