"""Aliases: the names under which Ollama serves models for llmdeploy, marked by a text in their license."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from llmdeploy import paths
from llmdeploy.engines.ollama.documents import same_name
from llmdeploy.errors import AlreadyServing, LlmdeployError, ModelInvalid
from llmdeploy.models.stores.ollama import MARK, full_name

if TYPE_CHECKING:
    from llmdeploy.engines.base import ServerSpec
    from llmdeploy.engines.ollama.api import Daemon


def create(daemon: Daemon, spec: ServerSpec) -> None:
    """Make the served name of the model, with the plan's context."""
    mark = _mark(spec.served_name)
    daemon.create_alias(spec.served_name, spec.model, {"num_ctx": spec.context}, license=mark)


def require_free(daemon: Daemon, spec: ServerSpec) -> None:
    """Raise AlreadyServing or ModelInvalid if the served name belongs to another model."""
    name = spec.served_name
    if not any(same_name(one.name, name) for one in daemon.models()):
        return
    license = daemon.show(name).license
    # A model that Ollama has under this name is served as it is, unless a llmdeploy made the name as an alias.
    free = _beginning(name) not in license if same_name(name, spec.model) else _mark(name) in license
    if not free:
        raise _taken(name, license)


def delete_all(daemon: Daemon) -> None:
    """Remove the aliases of this service: the present one, and those that a crash has left."""
    for one in daemon.models():
        if one.parent and _mark(one.name) in daemon.show(one.name).license:
            daemon.delete(one.name)


def _taken(name: str, license: str) -> LlmdeployError:
    if _beginning(name) in license:
        where = license.partition(_beginning(name))[2].removesuffix(".")
        return AlreadyServing(
            f"another llmdeploy serves `{name}` on this Ollama ({where})",
            f"stop that one; where it is gone: `ollama rm {name}`",
        )
    return ModelInvalid(
        f"Ollama has another model that is called `{name}`, and llmdeploy overwrites none",
        f"give that one another name: `ollama cp {name} {name}-mine && ollama rm {name}`",
    )


def _mark(alias: str) -> str:
    """Return the text that goes with an alias of this service: there is one service for each state folder.

    It names the alias and has an end: what the user copied or made from the alias has the text too, and is the user's.
    """
    return f"{_beginning(alias)}state folder {paths.state_dir()} of {socket.gethostname()}."


def _beginning(alias: str) -> str:
    return f"{MARK} as {full_name(alias)}, "
