"""A model's name as it was typed, and what it is taken for."""

from __future__ import annotations

import os

from llmdeploy.cli.output import out
from llmdeploy.models.reference import CatalogName, ModelRef, parse
from llmdeploy.service.state import TICKET


def understood(text: str) -> ModelRef:
    """The reference; a spelling that the catalog knows by another name is told. Raises UsageError, ConfigError."""
    reference = parse(text)
    if isinstance(reference, CatalogName) and TICKET not in os.environ:  # in the background nobody listens
        from llmdeploy.models.catalog import lookup

        entry = lookup.get(reference.name)
        if entry is not None and str(entry) != reference.name:
            out.note(f"`{reference.name}` is `{entry}`")
    return reference
