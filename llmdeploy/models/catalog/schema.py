"""The keys of a catalog file and the rules for them: the same for the shipped file and for the user's."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert

from llmdeploy.config import toml_file
from llmdeploy.errors import ConfigError, UsageError
from llmdeploy.models.catalog.reader import Document, whole
from llmdeploy.models.reference import CatalogName, parse
from llmdeploy.validation_messages import Violation, violation

Text = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+$")]
Count = Annotated[int, Meta(ge=1, le=10**15)]
Repository = Annotated[str, Meta(pattern=r"^[\w.-]+/[\w.-]+$")]
GgufPath = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+\.gguf$")]
RETIRED = frozenset({"layers", "heads", "kv_heads", "head_size", "kv_layers", "latent", "window", "window_layers"})
"""Keys that nothing reads any longer; files that have them stay valid."""


class Gguf(Struct, forbid_unknown_fields=True):
    file: GgufPath
    quants: list[Text] | Text
    repo: Repository | None = None
    bytes: dict[Text, Count] = {}
    mmproj: GgufPath | None = None
    mmproj_bytes: Count | None = None


class Model(Struct, forbid_unknown_fields=True):
    license: Text | None = None
    gated: bool = False
    capabilities: list[Literal["text", "image", "audio", "tools", "thinking"]] = []
    aliases: list[Text] = []
    context: Count | None = None
    ollama: Text | None = None
    ollama_quants: list[Text] = []
    ollama_tags: Text | None = None
    hub: dict[Text, Repository] = {}
    gguf: Gguf | None = None
    shipped: bool = False
    hf_folder: Text | None = None
    parameters: Count | None = None
    active: Count | None = None
    vision: Count | None = None
    embedding: Count | None = None
    vocabulary: Count | None = None
    tied: bool = False


class Family(Model, forbid_unknown_fields=True):
    default: Text | None = None


class File(Struct, forbid_unknown_fields=True):
    models: dict[str, dict[str, Any]] = {}
    families: dict[str, dict[str, Any]] = {}
    quantizations: dict[str, list[Text]] = {}


def read(file: Path) -> Document:
    """Read the user's catalog. Raises ConfigError if it cannot be read or is wrong."""
    document = toml_file.parse(toml_file.read(file, str(file)) or "", str(file))
    check(document, str(file))
    return document


def check(document: Document, shown: str) -> None:
    """Raise ConfigError for the first error, with the file, the entry and the nearest key."""
    _check(document, File, f"`{shown}`")
    for family, table in document.get("families", {}).items():
        _check(table, Family, f'`{shown}`, `families."{family}"`')
    for name, table in document.get("models", {}).items():
        where = f'`{shown}`, `models."{name}"`'
        _check(table, Model, where)
        if wrong := _wrong(name, document):
            raise ConfigError(f"{where}: {wrong[0]}", wrong[1])


def _check(table: Any, kind: type[Struct], where: str) -> None:
    if isinstance(table, dict) and kind is not File:
        table = {key: value for key, value in table.items() if key not in RETIRED}
    try:
        convert(table, kind)
    except ValidationError as error:
        raise _unknown_key(table, kind, where) or _explained(violation(error), where) from None


def _unknown_key(table: Any, kind: type[Struct], where: str, prefix: str = "") -> ConfigError | None:
    """Return the error for the first unknown key, with the nearest key; None if all keys are known."""
    if not isinstance(table, dict):
        return None
    for key, value in table.items():
        if key not in kind.__struct_fields__:
            near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0)
            return ConfigError(f"{where}: unknown key `{prefix}{key}`", f"the nearest is `{near[0]}`")
        if key == "gguf" and (error := _unknown_key(value, Gguf, where, "gguf.")):
            return error
    return None


def _explained(found: Violation, where: str) -> ConfigError:
    """Return the error for a value of the wrong type or form."""
    words = found.text.replace(" | null", "")
    if found.limit and not found.got and "str" in found.expected:
        words = f"expected {_form(found.path)}"
    key = f"`{found.path}`: " if found.path else ""
    return ConfigError(f"{where}: {key}{words[:1].lower()}{words[1:]}", "correct it in that file")


def _form(key: str) -> str:
    """Return the form that a text under this key must have."""
    if key in ("gguf.file", "gguf.mmproj"):
        return "a path that ends in `.gguf`"
    return "`owner/name`" if key.endswith("repo") or key.startswith("hub") else "a text in one line"


def _wrong(name: str, document: Document) -> tuple[str, str] | None:
    """Return an error in the combination of valid keys, as message and hint; None if there is none."""
    table = whole(document, name)
    if not _can_be_typed(name):
        return "this name cannot be typed", "letters, digits, `.`, `-` and one `:`, as in `name:7b`"
    if not any(table.get(key) for key in ("ollama", "hub", "gguf", "hf_folder")):
        return "it names nothing that an engine could take", "add `ollama`, `hub` or `gguf`"
    if "gguf" not in table:
        return None
    gguf, sets = table["gguf"], document.get("quantizations", {})
    quants = sets.get(gguf["quants"]) if isinstance(gguf["quants"], str) else gguf["quants"]
    if not quants:
        return f"`gguf.quants` names no list of `quantizations`: `{gguf['quants']}`", "write the list itself"
    if len(quants) > 1 and "{quant}" not in gguf["file"]:
        return "`gguf.file` is one file for several quantizations", "write `{quant}` where its name has them"
    if stray := set(gguf.get("bytes", {})) - set(quants):
        return f"`gguf.bytes` has `{min(stray)}`, which is not in `gguf.quants`", "add it there"
    return None


def _can_be_typed(name: str) -> bool:
    try:
        return parse(name) == CatalogName(name)
    except UsageError:
        return False
