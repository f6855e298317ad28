"""ModelRef: what the user names.

    selftest, qwen3:8b                  a name of the catalog
    ./x.gguf, /models/x.gguf, ~/x.gguf  a file on this machine
    hf://owner/repo/x.gguf[@revision]   a file in a repository of the Hub

A text is a file when it ends in `.gguf`, begins with `.`, `~` or `/`, or is the path of something that exists.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmdeploy.errors import UsageError

HUB_SCHEME = "hf://"
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?::[\w.-]+)?")


@dataclass(frozen=True)
class HubFile:
    """One file of a Hub repository at a revision (a branch, a tag or a commit)."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repo}/{self.file}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class CatalogName:
    name: str

    def __str__(self) -> str:
        return self.name


ModelRef = CatalogName | Path | HubFile


def parse(text: str) -> ModelRef:
    """The reference that `text` names; `str()` of it, parsed again, is the same reference.

    Raises UsageError when it is none of the three forms.
    """
    if text.startswith(HUB_SCHEME):
        return _parse_hub(text)
    if "://" in text:
        raise UsageError(f"`{text}` is no address of a model", "the form is `hf://owner/repo/file.gguf`")
    if text.endswith(".gguf") or text[:1] in {".", "~", "/"} or _names_a_path(text):
        return Path(os.path.expanduser(text)).absolute()  # Path.expanduser raises for a user there is none of
    if _NAME.fullmatch(text):
        return CatalogName(text)
    raise UsageError(
        f"`{text}` is not a model name, a GGUF file or a `hf://` address",
        "`llmdeploy models` lists the names",
    )


def served_name(reference: ModelRef) -> str:
    """The model name applications send: the catalog's name, or the file's without its ending."""
    if isinstance(reference, CatalogName):
        return reference.name
    name = reference.name if isinstance(reference, Path) else Path(reference.file).name
    # A leading dash would read as a flag of the server's.
    return name.removesuffix(".gguf").lstrip("-") or "model"


def _parse_hub(text: str) -> HubFile:
    match = _HUB.fullmatch(text)
    if match is None or not match["file"].endswith(".gguf"):
        raise UsageError(f"`{text}` does not name a GGUF file of the Hub", "the form is `hf://owner/repo/file.gguf`")
    return HubFile(match["repo"], match["file"], match["revision"] or "main")


def _names_a_path(text: str) -> bool:
    return ("/" in text or "\\" in text) and os.path.exists(text)  # which never raises
