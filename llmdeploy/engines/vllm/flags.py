"""The flags of the installed vLLM, read from its source code, and the configuration file that it is started with."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import ConfigError

if TYPE_CHECKING:
    from llmdeploy.engines.python_environment.contents import Environment

SOURCES = ("engine/arg_utils.py", "entrypoints/**/cli_args.py", "entrypoints/cli/serve.py", "config/*.py")
OURS = ("model", "served-model-name", "host", "port", "uds", "api-key")
"""The flags that the user may not set: the service finds the server by their values."""
HEAD = "# Written by llmdeploy at each start. By hand: `vllm serve --config` and this file."
ENOUGH = 50
"""The number of flags below which the source code has an unknown structure, and nothing is checked."""


def check(settings: Iterable[str], arguments: Iterable[str], environment: Environment) -> None:
    """Raise ConfigError for a setting or an argument that vLLM does not have, or that llmdeploy sets itself."""
    for word in arguments:
        name = _name(word)
        if word.startswith("--") and name and any(flag.startswith(name) for flag in OURS):
            message = f"`--{name}` is for llmdeploy to choose, and `engines.vllm.extra_args` has it"
            raise ConfigError(message, "take it out: `llmdeploy config show` tells where it is set")
    known = of(environment)
    if len(known) < ENOUGH:
        return
    for name in map(_name, (*settings, *(word for word in arguments if word.startswith("--")))):
        # The beginning of a name is enough: vLLM itself recommends `--kv-cache-memory`.
        if any(flag.startswith((name, name.removeprefix("no-"))) for flag in known):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `--{near[0]}`?" if near else "`vllm serve --help=all` lists them"
        raise ConfigError(f"vLLM {environment.version} has no flag `--{name}`", hint)


def _name(word: str) -> str:
    return word.removeprefix("--").partition("=")[0].partition(".")[0].replace("_", "-")


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """Return the value that the last of these arguments gives to a flag; empty if it is not among them."""
    value = ""
    for at, word in enumerate(arguments):
        if word.startswith("--") and _name(word) == flag:
            following = arguments[at + 1] if at + 1 < len(arguments) else ""
            value = word.partition("=")[2] if "=" in word else following
    return value


def of(environment: Environment) -> frozenset[str]:
    """Return the names of vLLM's flags, without leading dashes; empty if the source code is not found."""
    found: set[str] = set()
    for folder in environment.contents.folders if environment.contents else ():
        for pattern in SOURCES:
            for file in (Path(folder) / "vllm").glob(pattern):
                with suppress(OSError):
                    text = file.read_text(errors="replace")
                    found.update(re.findall(r'"--([a-z][a-z0-9-]+)"', text))
                    found.update(name.replace("_", "-") for name in re.findall(r"^    ([a-z]\w+):", text, re.MULTILINE))
    return frozenset(found)


def yaml(content: Mapping[str, Any]) -> str:
    """Return a file for `vllm serve --config`. JSON values are YAML values too, except for pairs of surrogates."""
    lines = [f"{name.replace('_', '-')}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items()]
    return "\n".join([HEAD, *lines, ""]).encode(errors="backslashreplace").decode()
