"""The consent to run code that comes with a model: asked for before the start, and valid for one content."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmdeploy.atomic_file import JsonFile
from llmdeploy.engines.vllm.advisories import ADVISORIES
from llmdeploy.errors import NotPermitted
from llmdeploy.paths import state_dir

if TYPE_CHECKING:
    from llmdeploy.engines.advisories import Advisory
    from llmdeploy.engines.python_environment.contents import Environment
    from llmdeploy.models.hf_model import HfModel
    from llmdeploy.models.remote_code import RemoteCode

CODE = "remote_code"
"""The code of the error by which the command line knows that it can ask the user."""
TRUST = "`llmdeploy serve` again with `--trust-remote-code`, once for this revision"


def given(model: HfModel, environment: Environment, *, trust: bool, code: RemoteCode | None = None) -> bool:
    """Return whether to run the model's own code: it has some, and the user has agreed.

    Raises NotPermitted if the user has not agreed, unless vLLM itself supports the architecture: most such models do
    not need their own code. A consent (`trust`) is remembered for this code. `code`: the model's, if read already.
    """
    code = model.remote_code() if code is None else code
    if not code:
        return trust and bool(code.files)  # the user knows better whether something names it
    if code.digest in _agreed():
        return True
    if trust:
        _agree(code.digest)
        return True
    if unsafe := runs_unasked(environment):
        raise NotPermitted(
            f"vLLM {environment.version} would run the code of `{model}` without consent ({unsafe.name}): "
            f"{code} in `{model.folder}`",
            f"`llmdeploy engines install vllm` installs a safe one; or read it, and if you trust it: {TRUST}",
            code=CODE,
        )
    if model.facts().architecture in architectures(environment):
        return False
    raise NotPermitted(
        f"`{model}` runs code of its own: {code} in `{model.folder}`",
        f"read it; if you trust it: {TRUST}",
        code=CODE,
    )


def remark(model: HfModel, code: RemoteCode, *, runs: bool) -> tuple[str, ...]:
    """Return what the user is to know about the code of a model that is started."""
    if runs:
        return (f"`{model}` runs code of its own: {code}",)
    if code:
        does_not = "vLLM has its own for this architecture; `--trust-remote-code` runs the model's"
        return (f"`{model}` comes with code that is not run, {code}: {does_not}",)
    return ()


def runs_unasked(environment: Environment) -> Advisory | None:
    """Return the vulnerability by which this vLLM runs a model's code without consent; None if it does not."""
    return next((it for it in ADVISORIES if it.runs_code and it.affects(environment.version)), None)


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
