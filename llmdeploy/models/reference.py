"""References to models, as users write them.

    model    = name | repo | file | tag | path
    name     = word [":" word]                          qwen2.5-vl:7b, qwen3:8b-q8_0   a name of the catalog
    repo     = [scheme] owner "/" name [":" quantization] ["@" revision]
                                                        Qwen/Qwen3-8B, hf://Qwen/Qwen3-8B-GGUF:Q4_K_M@main
    file     = scheme owner "/" name "/" path ".gguf" ["@" revision]
                                                        hf://Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf
    scheme   = "hf://" | "ms://"                        the Hugging Face Hub, ModelScope; no scheme: the Hub
    revision = a branch, a tag or a commit; no revision: the main branch (at ModelScope `master`)
    tag      = "ollama://" [[host "/"] user "/"] word [":" word]    a model of Ollama's registry
             | ("hf.co/" | "huggingface.co/") owner "/" name [":" quantization]    a GGUF repository, as Ollama names it
    path     = ./x.gguf, /models/x.gguf, ~/x.gguf       a file on this machine
             | ./folder, /models/folder                 a model in Hugging Face form on this machine

A text is a path when it ends in `.gguf` without a scheme, begins with `.`, `~` or `/`, or is the path of something that
exists. A quantization names the GGUF files of a repository that hold it (`Q4_K_M`, `IQ4_XS`, `MXFP4`, `BF16`). The
address of a page of huggingface.co, modelscope.cn or ollama.com means the model that the page shows. A name that the
catalog does not have is read by Ollama as a name of its registry.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from llmdeploy.errors import UsageError
from llmdeploy.text import plain

Source = Literal["hf", "ms"]
"""The place of a repository: the Hugging Face Hub or ModelScope."""
MAIN: dict[Source, str] = {"hf": "main", "ms": "master"}
"""The branch of a reference that names no revision."""

HUB_FORMS = "`hf://owner/repo`, `hf://owner/repo:Q4_K_M` and `hf://owner/repo/file.gguf`"
OLLAMA_SCHEME = "ollama://"
HUB_HOSTS = ("hf.co/", "huggingface.co/")
QUANT = r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4\w*|BF16|FP?16|FP?32|FP8)"
"""Pattern of the quantizations of GGUF files; upper and lower case are the same."""
LONGEST_NAME = 80
"""The most characters that Ollama allows in a part of a name; the other engines allow more."""

_REVISION = r"(?:@(?P<revision>[\w./-]+))?"
_REPOSITORY = re.compile(
    rf"(?P<source>hf|ms)://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+?)|:(?P<quant>[\w-]+))?{_REVISION}", re.ASCII
)
_SHORT = re.compile(
    rf"(?P<repo>[A-Za-z0-9][\w.-]{{0,95}}/[A-Za-z0-9_][\w.-]{{0,95}})(?::(?P<quant>{QUANT}))?{_REVISION}",
    re.ASCII | re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?::[\w.-]+)?", re.ASCII)
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_HOST, _USER = r"(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}/)?", r"(?:[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?"
_TAG = re.compile(f"{_HOST}{_USER}{_PART}(?::{_PART})?")
_PAGES = (
    (re.compile(r"https?://(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?!datasets/|spaces/)(.+)"), "hf://"),
    (re.compile(r"https?://(?:www\.)?modelscope\.(?:cn|ai)/models/(.+)"), "ms://"),
    (re.compile(r"https?://ollama\.com/(?:library/)?(.+)"), OLLAMA_SCHEME),
)
_VIEW = re.compile(
    r"(?P<repo>[^/]+/[^/]+)/(?:blob|resolve|raw|tree|file/view|summary)(?:/(?P<revision>[^/]+)(?P<file>/.+)?)?"
)


@dataclass(frozen=True)
class HubRepo:
    """A repository at a revision (a branch, a tag or a commit)."""

    repo: str
    revision: str = "main"
    source: Source = "hf"
    quant: str = ""
    """Quantization of the GGUF files, in capitals; empty if the engine chooses."""

    def __str__(self) -> str:
        quant = f":{self.quant}" if self.quant else ""
        return f"{self.source}://{self.repo}{quant}{_at(self)}"

    @property
    def home(self) -> HubRepo:
        """The same repository without a quantization."""
        return replace(self, quant="")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at a revision."""

    repo: str
    file: str
    revision: str = "main"
    source: Source = "hf"

    def __str__(self) -> str:
        return f"{self.source}://{self.repo}/{self.file}{_at(self)}"

    @property
    def home(self) -> HubRepo:
        """The repository that has the file."""
        return HubRepo(self.repo, self.revision, self.source)


@dataclass(frozen=True)
class CatalogName:
    """A model by its name in the catalog."""

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
    """Return the reference that `text` names; `str()` of it, parsed again, is the same reference.

    Raises UsageError if the text has none of the forms above.
    """
    text = _shown_by(text)
    if not _can_be_a_name(text):
        raise UsageError(f"`{plain(text)}` is not a name that a file or a model can have", _hint(text))
    if text.startswith(tuple(f"{source}://" for source in MAIN)):
        return _parse_repository(text)
    if text.startswith((OLLAMA_SCHEME, *HUB_HOSTS)):
        return _parse_tag(text)
    if "://" in text:
        raise UsageError(f"`{plain(text)}` is not the address of a model", f"the forms are {HUB_FORMS}")
    if text.endswith(".gguf") or text[:1] in {".", "~", "/"} or _names_a_path(text):
        return Path(_expanded(text)).absolute()
    if _NAME.fullmatch(text):
        return CatalogName(text)
    if (match := _SHORT.fullmatch(text)) and ".." not in re.split(r"[/@]", text):
        return HubRepo(match["repo"], match["revision"] or MAIN["hf"], quant=(match["quant"] or "").upper())
    raise UsageError(f"`{plain(text)}` is not a model name, a file, a folder or a `hf://` address", _hint(text))


def served_name(reference: ModelRef) -> str:
    """Return the model name that applications send: the name, or the name of the file without its suffix.

    It has only characters that every engine allows: letters, digits, `_`, `.` and `-` in each part.
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
    # The server would read a leading dash as a flag.
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name.removesuffix(".gguf")).strip("-.")[:LONGEST_NAME] or "model"


def with_quant(reference: ModelRef, quant: str) -> ModelRef:
    """Return the model in another quantization. Raises UsageError if it names one already, or `quant` is not valid."""
    if not re.fullmatch(r"[\w.-]+", quant, re.ASCII):
        raise UsageError(f"`{plain(quant)}` is not a quantization", "such as `Q4_K_M`, `Q8_0`, `awq`, `fp8`")
    match reference:
        case CatalogName():
            return CatalogName(f"{reference.name}-{quant.lower()}")
        case HubRepo(quant=""):
            return replace(reference, quant=quant.upper())
    raise UsageError(f"`{reference}` already names a quantization", "leave `--quant` out")


def with_revision(reference: ModelRef, revision: str) -> ModelRef:
    """Return the repository or file at another revision. Raises UsageError for a model that has no revisions."""
    if not re.fullmatch(r"[\w./-]+", revision, re.ASCII) or ".." in revision.split("/"):
        raise UsageError(f"`{plain(revision)}` is not a revision", "a branch, a tag or a commit of the repository")
    if isinstance(reference, HubRepo | HubFile):
        return replace(reference, revision=revision)
    raise UsageError(
        f"`{reference}` has no revisions", "name a repository: `llmdeploy pull hf://owner/repo --revision main`"
    )


def _at(reference: HubRepo | HubFile) -> str:
    return "" if reference.revision == MAIN[reference.source] else f"@{reference.revision}"


def _shown_by(text: str) -> str:
    """Return the reference to the model that a web page shows; any other text unchanged."""
    for page, scheme in _PAGES:
        if match := page.fullmatch(text):
            rest = unquote(match[1].partition("?")[0].partition("#")[0]).strip("/")
            view = _VIEW.fullmatch(rest)
            if view is None:
                return scheme + rest
            revision = f"@{view['revision']}" if view["revision"] else ""
            return f"{scheme}{view['repo']}{view['file'] or ''}{revision}"
    return text


def _parse_tag(text: str) -> OllamaTag:
    name = text.removeprefix(OLLAMA_SCHEME)
    if not _TAG.fullmatch(name) or (name.startswith(HUB_HOSTS) and name.count("/") != 2):
        raise UsageError(
            f"`{plain(text)}` does not name a model as Ollama does",
            "the forms are `ollama://model:tag`, `ollama://user/model:tag` and `hf.co/owner/repo:Q4_K_M`",
        )
    return OllamaTag(name)


def _parse_repository(text: str) -> HubFile | HubRepo:
    match = _REPOSITORY.fullmatch(text)
    if match is None or not (match["file"] or "x.gguf").endswith(".gguf") or ".." in re.split(r"[/@]", text):
        raise UsageError(
            f"`{plain(text)}` does not name a repository or a GGUF file of the Hub",
            f"the forms are {HUB_FORMS}",
        )
    source: Source = "ms" if match["source"] == "ms" else "hf"
    revision = match["revision"] or MAIN[source]
    if match["file"]:
        return HubFile(match["repo"], match["file"], revision, source)
    return HubRepo(match["repo"], revision, source, (match["quant"] or "").upper())


def _hint(text: str) -> str:
    if re.fullmatch(rf"{_PART}/{_PART}:{_PART}", text):
        return f"a model of Ollama is `{OLLAMA_SCHEME}{text}`; a GGUF repository names its files: `owner/repo:Q4_K_M`"
    return "`llmdeploy models catalog` lists the names"


def _can_be_a_name(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")  # file names may have bytes that are not text
    except UnicodeEncodeError:
        return False


def _expanded(text: str) -> str:
    """Replace `~` by the home folder, unless the user is unknown or this locale cannot encode the folder."""
    try:
        return os.path.expanduser(text)
    except UnicodeEncodeError:
        return text


def _names_a_path(text: str) -> bool:
    return ("/" in text or "\\" in text) and os.path.exists(text)  # which never raises
