"""Ollama's store, read from its files: it needs no daemon.

manifests/<host>/<namespace>/<model>/<tag>     a JSON document that names layers
blobs/sha256-<digest>                          a layer; of the kind `model` it is a GGUF file
blobs/sha256-<digest>-partial…                 what a pull that goes on, or was broken off, has so far
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import LlmdeployError
from llmdeploy.models import gguf_header, ollama_compat
from llmdeploy.models.reference import OllamaTag
from llmdeploy.models.stores.installed import PLACE_OLLAMA, InstalledModel, StoreListing, is_whole, walk
from llmdeploy.models.weights import GGUF, OLLAMA, Format
from llmdeploy.paths import state_dir
from llmdeploy.units import in_gib

REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
"""Of a name that does not say another; the first two are left out where it is shown."""
LAYER = "application/vnd.ollama.image."
NAMESPACE = "llmdeploy"
"""Of the models that we imported: they stay, as pulled ones do."""
MARK = "llmdeploy: an alias for as long as it is served"
"""How the license begins that goes with a name that is there only while it is served."""
SYSTEM_STORES = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/models", "/var/lib/ollama/.ollama/models")
"""Of the service, as Ollama's installer and the distributions set it up."""


@dataclass(frozen=True)
class Packed:
    """One model of a store: its manifest and where its layers are."""

    store: Path
    name: str
    """As Ollama shows it: without its own registry, with a tag."""
    manifest: Path
    digest: str
    """Of the manifest, 64 hexadecimal digits: what Ollama shows as the model's."""
    layers: tuple[tuple[str, Path], ...]
    """Kind and file."""
    config: Mapping[str, Any]

    def files(self, *kinds: str) -> tuple[Path, ...]:
        """Those layers; all without a kind."""
        return tuple(file for kind, file in self.layers if not kinds or kind in kinds)

    @property
    def model_format(self) -> str:
        return str(self.config.get("model_format") or "gguf")

    @property
    def remote_host(self) -> str:
        """Where it really runs, for a model of Ollama's cloud; else empty."""
        return str(self.config.get("remote_host") or "")

    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer, by its parameters."""
        found: list[str] = []
        for file in self.files("params"):
            with suppress(OSError, ValueError, AttributeError, TypeError):
                found += [str(stop) for stop in json.loads(file.read_bytes()).get("stop") or ()]
        return tuple(found)


def stores(named: str | None = None) -> tuple[Path, ...]:
    """The stores that there may be on this machine. `named`: by our configuration."""
    own = named or os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models"
    others = SYSTEM_STORES if sys.platform.startswith("linux") else ()
    return tuple(dict.fromkeys([Path(own), *map(Path, others)]))


def read(store: Path) -> StoreListing:
    """The models in a store; a name of ours for what is served now is hidden."""
    try:
        os.scandir(store / "manifests").close()
    except (FileNotFoundError, NotADirectoryError):
        return StoreListing()
    except OSError as error:
        return StoreListing(notes=(f"Ollama's store `{store}` cannot be read: {error.strerror}",))
    models = tuple(_held(packed) for packed in packages(store))
    parts = [file for file in walk(store / "blobs") if "-partial" in file.name]
    size = sum(_allocated(file) for file in parts)
    if not size:
        return StoreListing(models)
    note = f"Ollama's store `{store}` has {in_gib(size)} of unfinished downloads, which `ollama pull` goes on with"
    return StoreListing(models, (note,))


def packages(store: Path) -> Iterator[Packed]:
    """All models of a store, in the order of their names. What cannot be read is passed over."""
    for file in walk(store / "manifests"):
        if packed := _package(store, file):
            yield packed


def find(store: Path, *names: str) -> list[Packed]:
    """The models of these names that are there, in that order; names are the same in any case."""
    found = {full_name(packed.name): packed for packed in packages(store)}
    return [found[name] for name in dict.fromkeys(map(full_name, names)) if name in found]


def has(name: str, named: str | None = None) -> bool:
    """Return whether a store on this machine has a model of that name, as far as it can be seen, by its name alone.

    `named`: the store that the configuration names.
    """
    host, model, tag = parts(name)
    return any(os.path.isfile(store / "manifests" / host / model / tag) for store in stores(named))


def parts(name: str) -> tuple[str, str, str]:
    """Host, `namespace/model` and tag, as Ollama reads a name."""
    path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", LATEST)
    *before, model = path.split("/")
    host = before[0] if len(before) > 1 else REGISTRY
    return host, f"{before[-1] if before else LIBRARY}/{model}", tag


def full_name(name: str) -> str:
    """The name as Ollama lists it, in small letters: without its own registry, with a tag."""
    name = name.lower().removeprefix("https://").removeprefix(f"{REGISTRY}/").removeprefix(f"{LIBRARY}/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:{LATEST}"


def reason(packed: Packed) -> str | None:
    """Why upstream llama.cpp does not run it as it is (see `upstream`); remembered for each manifest.

    Raises ModelNotFound, ModelInvalid where its files cannot be read.
    """
    known = _verdicts()
    if packed.digest not in known:
        verdict = _reason(packed)
        known[packed.digest] = verdict
        _save_verdicts(known)
    return known[packed.digest]


def _reason(packed: Packed) -> str | None:
    if packed.remote_host:
        return f"it runs at {packed.remote_host}"
    models = packed.files("model")
    if len(models) != 1:
        return "it is not one GGUF file"
    header = gguf_header.read(models[0])
    kinds = {kind for kind, _ in packed.layers}
    found = ollama_compat.reason(header, kinds, packed.model_format, packed.stops())
    projectors = (gguf_header.read(file) for file in packed.files("projector"))
    return found or next(filter(None, map(ollama_compat.projector_reason, projectors)), None)


def _package(store: Path, file: Path) -> Packed | None:
    parts = file.relative_to(store / "manifests").parts
    if len(parts) != 4:
        return None
    host, namespace, model, tag = parts
    shown = [*([] if host == REGISTRY else [host]), *([] if (host, namespace) == (REGISTRY, LIBRARY) else [namespace])]
    try:
        content = file.read_bytes()
        manifest = json.loads(content)
        layers = tuple(
            (str(one["mediaType"]).removeprefix(LAYER), _blob(store, one["digest"])) for one in manifest["layers"] or ()
        )
        config = json.loads(_blob(store, manifest["config"]["digest"]).read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = "/".join([*shown, f"{model}:{tag}"])
    digest = hashlib.sha256(content).hexdigest()
    return Packed(store, name, file, digest, layers, config if isinstance(config, dict) else {})


def _held(packed: Packed) -> InstalledModel:
    files = packed.files()
    formats, detail = _formats(packed)
    imported = packed.name.startswith(f"{NAMESPACE}/")
    return InstalledModel(
        OllamaTag(packed.name),
        PLACE_OLLAMA,
        packed.store,
        files,
        formats,
        max((file.stat().st_mtime for file in (packed.manifest, *files) if file.exists()), default=0.0),
        (packed.digest,),
        detail="imported from a GGUF file" if imported else detail,
        hidden=any(_begins(file, MARK) for file in packed.files("license")),
    )


def _formats(packed: Packed) -> tuple[tuple[Format, ...], str]:
    """Return the formats that it can be loaded in as it is, and why not as a GGUF file."""
    if not all(is_whole(file) for file in packed.files()):
        return (), "not all its files are here, or may be read"
    try:
        why = reason(packed)
    except LlmdeployError as error:
        why = error.message
    return ((OLLAMA,), f"not on llama.cpp: {why}") if why else ((OLLAMA, GGUF), "")


def _blob(store: Path, digest: str) -> Path:
    return store / "blobs" / digest.replace(":", "-")


def _begins(file: Path, text: str) -> bool:
    with suppress(OSError), file.open("rb") as stream:
        return stream.read(len(text)) == text.encode()
    return False


def _allocated(file: Path) -> int:
    """What it takes on the disk: Ollama gives a partial file its full length at once."""
    with suppress(OSError):
        status = file.stat()
        return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
    return 0


# --- Verdicts that are known: to read a header with a vocabulary of 150,000 takes a tenth of a second


def _verdict_file() -> JsonFile:
    return JsonFile(state_dir() / "upstream.json")


def _verdicts() -> dict[str, str | None]:
    """Return the verdicts of earlier runs: digest of a manifest -> the reason, or None."""
    content: dict[str, Any] = _verdict_file().read({})
    verdicts = content.get("verdicts")
    return verdicts if content.get("rules") == ollama_compat.RULES and isinstance(verdicts, dict) else {}


def _save_verdicts(verdicts: dict[str, str | None]) -> None:
    """Write the verdicts. A failure is ignored: it costs only the time to read the headers again."""
    with suppress(OSError):
        _verdict_file().write({"rules": ollama_compat.RULES, "verdicts": verdicts})
