"""ModelRef: what the user names.

    selftest, qwen3:8b                  a name of the catalog
    ./x.gguf, /models/x.gguf, ~/x.gguf  a file on this machine
    hf://owner/repo/x.gguf[@revision]   a file in a repository of the Hub
    hf://owner/repo[@revision]          a repository of the Hub; `owner/repo` is short for it
    ./folder, /models/folder            a model in Hugging Face form on this machine
    ollama://user/model[:tag]           a model of Ollama's registry
    hf.co/owner/repo[:quantization]     a GGUF repository of the Hub, as Ollama names it

A text is a file when it ends in `.gguf`, begins with `.`, `~` or `/`, or is the path of something that exists. A name
that is not of the catalog is one of Ollama's on that engine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmdeploy.errors import UsageError

HUB_SCHEME = "hf://"
HUB_FORMS = "`hf://owner/repo` and `hf://owner/repo/file.gguf`"
OLLAMA_SCHEME = "ollama://"
HUB_HOSTS = ("hf.co/", "huggingface.co/")
LONGEST_NAME = 80
"""Characters that Ollama allows in a part of a name; the other engines allow more."""
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+?))?(?:@(?P<revision>[\w./-]+))?")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?::[\w.-]+)?")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_HOST, _USER = r"(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}/)?", r"(?:[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?"
_TAG = re.compile(f"{_HOST}{_USER}{_PART}(?::{_PART})?")


@dataclass(frozen=True)
class HubFile:
    """One file of a Hub repository at a revision (a branch, a tag or a commit)."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repo}/{self.file}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class HubRepo:
    """A Hub repository at a revision."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class CatalogName:
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class OllamaTag:
    """A model by its name at Ollama: `[[host/]namespace/]model[:tag]`."""

    name: str

    def __str__(self) -> str:
        return self.name if self.name.startswith(HUB_HOSTS) else OLLAMA_SCHEME + self.name


ModelRef = CatalogName | Path | HubFile | HubRepo | OllamaTag


def parse(text: str) -> ModelRef:
    """The reference that `text` names; `str()` of it, parsed again, is the same reference.

    Raises UsageError when it is none of these forms.
    """
    if text.startswith(HUB_SCHEME):
        return _parse_hub(text)
    if text.startswith((OLLAMA_SCHEME, *HUB_HOSTS)):
        return _parse_tag(text)
    if "://" in text:
        raise UsageError(f"`{text}` is no address of a model", f"the forms are {HUB_FORMS}")
    if text.endswith(".gguf") or text[:1] in {".", "~", "/"} or _names_a_path(text):
        return Path(os.path.expanduser(text)).absolute()  # Path.expanduser raises for a user there is none of
    if _NAME.fullmatch(text):
        return CatalogName(text)
    if _REPO.fullmatch(text):
        return HubRepo(text)
    raise UsageError(
        f"`{text}` is not a model name, a file, a folder or a `hf://` address",
        "`llmdeploy models` lists the names",
    )


def served_name(reference: ModelRef) -> str:
    """The model name applications send, on every engine: the name, or the file's without its ending.

    It holds what every engine allows: letters, digits, `_`, `.` and `-` in each part.
    """
    match reference:
        case CatalogName() | OllamaTag():
            return reference.name
        case HubRepo():
            return reference.repo
        case Path():
            name = reference.name
        case HubFile():
            name = Path(reference.file).name
    # A leading dash would read as a flag of the server's.
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name.removesuffix(".gguf")).strip("-.")[:LONGEST_NAME] or "model"


def _parse_tag(text: str) -> OllamaTag:
    name = text.removeprefix(OLLAMA_SCHEME)
    if not _TAG.fullmatch(name) or (name.startswith(HUB_HOSTS) and name.count("/") != 2):
        raise UsageError(
            f"`{text}` does not name a model as Ollama does",
            "the forms are `ollama://model:tag`, `ollama://user/model:tag` and `hf.co/owner/repo:Q4_K_M`",
        )
    return OllamaTag(name)


def _parse_hub(text: str) -> HubFile | HubRepo:
    match = _HUB.fullmatch(text)
    if match is None or not (match["file"] or "x.gguf").endswith(".gguf"):
        raise UsageError(
            f"`{text}` does not name a repository or a GGUF file of the Hub",
            f"the forms are {HUB_FORMS}",
        )
    revision = match["revision"] or "main"
    return HubFile(match["repo"], match["file"], revision) if match["file"] else HubRepo(match["repo"], revision)


def _names_a_path(text: str) -> bool:
    return ("/" in text or "\\" in text) and os.path.exists(text)  # which never raises
