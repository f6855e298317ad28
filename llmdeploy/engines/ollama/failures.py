"""The errors of llmdeploy for Ollama's error messages, and for an Ollama that does not answer.

The text of an error may be nested JSON; it is unwrapped before the rules see it.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmdeploy.engines.ollama.failure_rules_download import AGAIN, DOWNLOAD
from llmdeploy.engines.ollama.failure_rules_model import LOAD, MEMORY, REQUEST, SERVE
from llmdeploy.engines.ollama.hints import hints
from llmdeploy.errors import DownloadFailed, EngineMissing, LlmdeployError, RequestFailed, TimedOut
from llmdeploy.models.catalog import lookup
from llmdeploy.rules import LONGEST, ErrorRule, first_match

RULES = (*DOWNLOAD, *MEMORY, *LOAD, *SERVE, *REQUEST)
DEEPEST = 8
"""Levels of errors inside errors that are followed."""
_LONGEST = 300
"""The longest quotation of Ollama in a message, in characters: a crash writes pages."""


@dataclass(frozen=True)
class Context:
    """The facts that make a message more precise. Each may be unknown."""

    model: str = ""
    known: Sequence[str] = ()
    """The names of the models that the server has."""
    server_version: str | None = None
    program_version: str | None = None
    """The version of the installed `ollama`, which may be newer than the running server."""
    missing_bytes: int = 0
    """The bytes that were still to be downloaded."""
    host: str = ""
    """The address of the server if it is another machine; empty for this machine."""
    platform: str = sys.platform


def explain(
    words: object, context: Context | None = None, *, otherwise: type[LlmdeployError] = RequestFailed
) -> LlmdeployError:
    """Return the error for a message of Ollama: a text, or the value of `error` in its JSON.

    `otherwise` is the class of the error for a message that no rule matches.
    """
    context = context or Context()
    text = one_line(unwrap(words)[:LONGEST])
    found = find_rule(text)
    if found is None:
        fields = _fields({}, text, context)
        return otherwise(f"Ollama says: {_shortened(text)}", "{log} tells more".format(**fields))
    rule, match = found
    fields = _fields(match.groupdict(), text, context)
    return rule.error(rule.cause.format(**fields), rule.fix.format(**fields))


def find_rule(text: str) -> tuple[ErrorRule, re.Match[str]] | None:
    """Return the first rule that matches a message on one line, with its match."""
    return first_match(RULES, text, ignore_case=True)


def unwrap(error: object, depth: int = DEEPEST) -> str:
    """Return the message of an error, taken out of nested JSON: `{"error": "{\\"error\\": {\\"message\\": ...}}"}`."""
    if isinstance(error, Mapping):
        inner = next((error[key] for key in ("error", "message") if error.get(key)), None)
        if inner is not None and depth:
            return unwrap(inner, depth - 1)
        try:
            return json.dumps(dict(error), default=str)
        except RecursionError:
            return "an error that is nested too deeply"
    text = str(error)
    start = text.find("{")
    if start < 0 or not depth:
        return text
    try:
        inner = json.loads(text[start:])
    except (ValueError, RecursionError):
        return text
    return text[:start] + (unwrap(inner, depth - 1) if inner.get("error") or inner.get("message") else text[start:])


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def is_newer(version: str | None, than: str | None) -> bool:
    """Return whether a version is known to be newer than another. Builds from source report `0.0.0`: unknown."""
    one, other = _numbers(version), _numbers(than)
    return bool(one and other) and one > other


# --- Failures without a message of Ollama


def not_running(url: str, context: Context) -> EngineMissing:
    """Return the error for a refused connection."""
    return EngineMissing(f"no Ollama answers at `{url}`", "{on}start it: {start}".format(**_fields({}, "", context)))


def silent(url: str, context: Context) -> TimedOut:
    """Return the error for a server that does not answer in time."""
    return TimedOut(f"Ollama at `{url}` does not answer in time", "{log} tells why".format(**_fields({}, "", context)))


def broken_off(url: str, context: Context, otherwise: type[LlmdeployError]) -> LlmdeployError:
    """Return the error for an answer that ended early."""
    hint = (AGAIN if otherwise is DownloadFailed else "run it again") + "; {log} tells why"
    return otherwise(f"Ollama at `{url}` broke off its answer", hint.format(**_fields({}, "", context)))


def not_ollama(url: str, why: str) -> RequestFailed:
    """Return the error for an answer that is not Ollama's."""
    return RequestFailed(
        f"the program at `{url}` does not answer like Ollama: {_shortened(one_line(why))}",
        "set `OLLAMA_HOST` to the address of Ollama",
    )


def unreachable(url: str, why: str) -> EngineMissing:
    """Return the error for an address that cannot be reached from this machine."""
    return EngineMissing(
        f"`{url}` cannot be reached: {_shortened(one_line(why))}",
        "check `OLLAMA_HOST`, and the proxy variables: `env | grep -i proxy`",
    )


# --- The fields of the messages


def _fields(groups: Mapping[str, str | None], text: str, context: Context) -> dict[str, str]:
    """Return the values for the fields in the messages of the rules."""
    model = groups.get("model") or context.model
    words = groups.get("words") or "no reason"
    path = groups.get("path") or ""
    here = hints(context.platform)
    on = f"on `{context.host}`: " if context.host else ""
    return {
        **{name: value or "" for name, value in groups.items()},
        "words": _shortened(words),
        "model": f"`{model}`" if model else "the model",
        "name": shlex.quote(model) if model else "NAME",
        "repo": re.sub(r":[^/:]*$", "", model) or "hf.co/owner/repo",
        "near": _near(model, context.known),
        "fetch": _fetch(model, context.known),
        "on": on,
        "registry": _registry(text, model),
        "store": _store(text),
        "folder": shlex.quote(re.split(r"[/\\]blobs[/\\]", path)[0]),
        "room": f": {context.missing_bytes / 1e9:.2f} GB are still to come" if context.missing_bytes > 0 else "",
        "keys_page": "https://huggingface.co/settings/keys" if _on_hub(model) else "https://ollama.com/settings/keys",
        **_versions(context),
        **here,
        "log": on + here["log"],
    }


def _versions(context: Context) -> dict[str, str]:
    """Return the versions, and the hint for the old part: the running server, or the installation."""
    server, program = context.server_version, context.program_version
    on = f"on `{context.host}`: " if context.host else ""
    here = hints(context.platform)
    if server and program and is_newer(program, server):
        versions = f" (it is {server}; the installed program is {program})"
        return {"versions": versions, "newer": f"{on}restart the server: {here['restart']}"}
    upgrade = f"{on}install the newest Ollama and restart its server: {here['install']}"
    return {"versions": f" ({server})" if server else "", "newer": upgrade}


def _fetch(model: str, known: Sequence[str]) -> str:
    """Return a hint for a model that the server lacks: how to download it, or names that are similar."""
    in_registry = any(model in {entry.tag, *entry.tags.values()} for entry in lookup.load().values())
    return f"fetch it: `ollama pull {model}`" if in_registry else _near(model, known)


def _near(model: str, known: Sequence[str]) -> str:
    """Return a hint with names similar to a missing one, from the catalog and from the server's models."""
    meant = lookup.get(model)
    if meant and meant.tag and not meant.quant and meant.tag != model:
        return f"did you mean `{meant.tag}`?"
    names = [] if meant else [entry.tag for entry in lookup.load().values() if entry.tag]
    candidates = dict.fromkeys(name.removesuffix(":latest") for name in [*names, *known])
    candidates.pop(model, None)
    near = difflib.get_close_matches(model.lower().removesuffix(":latest"), candidates, n=3, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(f'`{name}`' for name in near)}?"
    if _on_hub(model):
        return "check the repository and the name behind the `:`, which is a quantization or a file of it"
    return "https://ollama.com/search lists the names; `ollama list` those that are here"


def _on_hub(model: str) -> bool:
    return model.startswith(("hf.co/", "huggingface.co/"))


def _registry(text: str, model: str) -> str:
    """Return the host that Ollama's server tried to reach, as its message names it."""
    if match := re.search(r"https?://([^/\s\"]+)", text):
        return f"`{match[1]}`"
    return "the Hub" if _on_hub(model) else "Ollama's registry"


def _store(text: str) -> str:
    """Return the folder of the store, from the path of a file that could not be written."""
    match = re.search(r"(?:write|open|mkdir|truncate|fallocate) (\S+?)(?:[/\\](?:blobs|manifests)\b\S*)?: ", text)
    return f" `{match[1]}`" if match else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _numbers(version: str | None) -> tuple[int, ...]:
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version or "")
    numbers = tuple(map(int, match.groups())) if match else ()
    return numbers if any(numbers) else ()
