"""`llmdeploy models show MODEL...`. Works offline, and quickly for many models at once."""

from __future__ import annotations

import sys
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmdeploy import config
from llmdeploy.cli import options
from llmdeploy.cli.output import columns, one_line, out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmdeploy.engines.availability import Availability
    from llmdeploy.engines.base import Engine
    from llmdeploy.models.catalog.entry import CatalogEntry

Names = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Catalog names, repositories, Ollama tags, files or folders.")
]


def show(names: Names, json: options.Json = False) -> None:
    from llmdeploy.engines import registry

    engines = registry.every(config.load())
    shown = [document(name, engines) for name in names]
    if json:
        out.document({"models": shown})
        return
    for model in shown:
        _print(model)


def document(asked: str, engines: Sequence[Engine]) -> dict[str, Any]:
    """Return the JSON document of a model. Raises UsageError, ModelNotFound, ConfigError."""
    from llmdeploy.engines.availability import availability
    from llmdeploy.models.catalog import lookup
    from llmdeploy.models.reference import CatalogName, parse

    reference = parse(asked)
    entry = lookup.find(reference.name) if isinstance(reference, CatalogName) else None
    return {
        "name": str(entry or reference),
        "asked": asked,
        **(_facts(entry) if entry else {}),
        "engines": {offer.engine: _fields(offer) for offer in availability(reference, engines)},
    }


def _facts(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "capabilities": list(entry.capabilities),
        "context": entry.context or None,
        "license": entry.license or None,
        "gated": entry.gated,
        "parameters": entry.parameters or None,
        "active_parameters": entry.active or entry.parameters or None,
    }


def _fields(offer: Availability) -> dict[str, Any]:
    fields = {name: value for name, value in vars(offer).items() if name != "engine"}
    return fields | {"bytes": offer.bytes or None, "quant": offer.quant or None, "lacks": offer.lacks or None}


# On screen


def _print(model: dict[str, Any]) -> None:
    if model["asked"] != model["name"] and "capabilities" in model:
        out.note(f"`{model['asked']}` is `{model['name']}`")
    out.line(model["name"])
    if "capabilities" in model:
        _wrapped(2, [", ".join(model["capabilities"]), *_sizes(model), model["license"] or "license unknown"])
    for engine, offer in model["engines"].items():
        _engine(engine, offer)


def _sizes(model: dict[str, Any]) -> list[str]:
    from llmdeploy.units import in_words

    sizes = []
    if count := model["parameters"]:
        used = model["active_parameters"]
        active = f" ({used / 1e9:.2g} used for a token)" if used < count else ""
        sizes.append(f"{in_words(count)} parameters{active}")
    if model["context"]:
        sizes.append(f"context {model['context']}")
    return sizes


def _engine(engine: str, offer: dict[str, Any]) -> None:
    if offer["lacks"]:
        _wrapped(2, [f"{engine}: none; {offer['lacks']}"])
    else:
        _wrapped(2, [f"{engine}: {_known(offer)}"])
    for reference in offer["artefact"]:
        out.line(f"    {reference}")  # not wrapped, so that it can be copied
    if offer["others"]:
        other = "there is" if offer["lacks"] else "also"
        _wrapped(4, [f"{other} {', '.join(one.lower() for one in offer['others'])}"])


def _known(offer: dict[str, Any]) -> str:
    from llmdeploy.units import in_gib

    size = ("" if offer["exact"] else "about ") + in_gib(offer["bytes"]) if offer["bytes"] else "size not known here"
    facts = [offer["quant"] or "", size, "here" if offer["here"] else "not here", "gated" if offer["gated"] else ""]
    return ", ".join(fact for fact in facts if fact)


def _wrapped(indent: int, facts: list[str]) -> None:
    """Print facts on one line, or wrapped on a terminal that is narrower."""
    text = one_line("; ".join(facts))
    width = columns() if sys.stdout.isatty() else 10_000
    margin = " " * indent
    for line in wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False):
        out.line(line)
