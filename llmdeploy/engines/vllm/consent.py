"""The consent to run code that comes with a model: asked for before the start, and valid for one revision."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import NotPermitted
from llmdeploy.paths import state_dir

if TYPE_CHECKING:
    from llmdeploy.engines.python_environment.contents import Environment
    from llmdeploy.models.hf_model import HfModel

CODE = "remote_code"
"""The code of the error by which the command line knows that it can ask the user."""


def given(model: HfModel, environment: Environment, *, trust: bool) -> bool:
    """Return whether to run the model's own code: it has some, and the user has agreed.

    Raises NotPermitted if the user has not agreed, unless vLLM itself supports the architecture: most such models do
    not need their own code. A consent (`trust`) is remembered for this code.
    """
    files = model.remote_code()
    if not files:
        return False
    revision = model.code_revision()
    if revision in _agreed():
        return True
    if not trust:
        if model.facts().architecture in architectures(environment):
            return False
        names = ", ".join(f"`{file.name}`" for file in files)
        raise NotPermitted(
            f"`{model}` runs code of its own: {names} in `{model.folder}`",
            "read it; if you trust it: `llmdeploy serve` again with `--trust-remote-code`, once for this revision",
            code=CODE,
        )
    _agree(revision)
    return True


def architectures(environment: Environment) -> frozenset[str]:
    """Return the architectures that this vLLM supports, as far as the text of its registry lists them."""
    import re

    for folder in environment.contents.folders if environment.contents else ():
        with suppress(OSError):
            text = (Path(folder) / "vllm" / "model_executor" / "models" / "registry.py").read_text()
            return frozenset(re.findall(r'^\s+"(\w+)":\s*\(', text, re.MULTILINE))
    return frozenset()


def _agreed() -> list[str]:
    return _file().read([])


def _agree(revision: str) -> None:
    """Remember a consent. If it cannot be written, the user is asked again the next time."""
    with suppress(OSError):
        _file().write([*_agreed(), revision])


def _file() -> JsonFile:
    return JsonFile(state_dir() / "trusted.json")
