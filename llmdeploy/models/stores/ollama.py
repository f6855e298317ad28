"""The models in Ollama's store, read from its files without its daemon. Its layout:

manifests/<host>/<namespace>/<model>/<tag>     a JSON document that names layers
blobs/sha256-<digest>                          a layer; of the kind `model` it is a GGUF file
blobs/sha256-<digest>-partial…                 the partial file of a pull that runs or was interrupted
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdeploy import bounded_file
from llmdeploy.atomic_file import JsonFile
from llmdeploy.errors import LlmdeployError
from llmdeploy.models import gguf_header, ollama_compat
from llmdeploy.models.reference import OllamaTag
from llmdeploy.models.stores.installed import PLACE_OLLAMA, InstalledModel, StoreListing, is_whole, walk
from llmdeploy.models.weights import GGUF, OLLAMA, Format
from llmdeploy.paths import state_dir
from llmdeploy.units import in_gib

REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
"""Defaults of a name; the registry and the namespace are left out when it is shown."""
LAYER = "application/vnd.ollama.image."
NAMESPACE = "llmdeploy"
"""Namespace of the models that llmdeploy imported, which stay in the store like pulled ones."""
MARK = "llmdeploy: an alias for as long as it is served"
"""Beginning of the license of an alias, which exists only while it is served."""
SYSTEM_STORES = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/models", "/var/lib/ollama/.ollama/models")
"""Stores of the system service, as Ollama's installer and the distributions set it up."""


MOST_STOPS = 100
"""The most stop texts of a model that are read."""
LARGEST_MANIFEST = 4 * 2**20
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")


@dataclass(frozen=True)
class Packed:
    """One model of a store: its manifest and the files of its layers."""

    store: Path
    name: str
    """Name as Ollama shows it: without the default registry, with a tag."""
    manifest: Path
    digest: str
    """SHA-256 of the manifest in 64 hexadecimal digits, which Ollama shows as the digest of the model."""
    layers: tuple[tuple[str, Path], ...]
    """Kind and file of each layer."""
    config: Mapping[str, Any]

    def files(self, *kinds: str) -> tuple[Path, ...]:
        """Return the files of the layers of these kinds; of all layers if no kind is given."""
        return tuple(file for kind, file in self.layers if not kinds or kind in kinds)

    @property
    def model_format(self) -> str:
        return str(self.config.get("model_format") or "gguf")

    @property
    def remote_host(self) -> str:
        """Host that runs a model of Ollama's cloud; else empty."""
        return str(self.config.get("remote_host") or "")

    def stops(self) -> tuple[str, ...]:
        """Return the stop texts in the parameters of the model."""
        found: list[str] = []
        for file in self.files("params"):
            with suppress(OSError, ValueError, AttributeError):
                stops = bounded_file.read_json(file).get("stop")
                found += [str(stop) for stop in stops[:MOST_STOPS]] if isinstance(stops, list) else []
        return tuple(found)


def stores(named: str | None = None) -> tuple[Path, ...]:
    """Return the stores that may exist on this machine. `named`: the store in llmdeploy's configuration."""
    own = named or os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models"
    others = SYSTEM_STORES if sys.platform.startswith("linux") else ()
    return tuple(dict.fromkeys([Path(own), *map(Path, others)]))


def read(store: Path) -> StoreListing:
    """Return the models in a store; the alias of a served model is hidden."""
    try:
        os.scandir(store / "manifests").close()
    except (FileNotFoundError, NotADirectoryError):
        return StoreListing()
    except OSError as error:
        return StoreListing(notes=(f"Ollama's store `{store}` cannot be read: {error.strerror}",))
    verdicts = _verdicts()
    known = len(verdicts)
    models = tuple(_installed(packed, verdicts) for packed in packages(store))
    if len(verdicts) > known:
        _save_verdicts(verdicts)
    parts = [file for file in walk(store / "blobs") if "-partial" in file.name]
    size = sum(_allocated(file) for file in parts)
    if not size:
        return StoreListing(models)
    note = f"Ollama's store `{store}` has {in_gib(size)} of unfinished downloads, which `ollama pull` goes on with"
    return StoreListing(models, (note,))


def packages(store: Path) -> Iterator[Packed]:
    """Yield all models of a store, in the order of their names. Unreadable ones are skipped."""
    for file in walk(store / "manifests"):
        if packed := _package(store, file):
            yield packed


def find(store: Path, *names: str) -> list[Packed]:
    """Return the models of these names, in that order; upper and lower case are the same."""
    manifests = list(walk(store / "manifests"))
    if not manifests:
        return []
    wanted = dict.fromkeys(map(full_name, names))
    files = {name: file for file in manifests if (name := full_name(_name(store, file))) in wanted}
    return [packed for name in wanted if name in files and (packed := _package(store, files[name]))]


def has(name: str, named: str | None = None) -> bool:
    """Return whether a visible store on this machine has a manifest of that name; no file is read.

    `named`: the store that the configuration names.
    """
    host, model, tag = parts(name)
    return any(os.path.isfile(store / "manifests" / host / model / tag) for store in stores(named))


def parts(name: str) -> tuple[str, str, str]:
    """Split a name into host, `namespace/model` and tag, as Ollama does."""
    path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", LATEST)
    *before, model = path.split("/")
    host = before[0] if len(before) > 1 else REGISTRY
    return host, f"{before[-1] if before else LIBRARY}/{model}", tag


def full_name(name: str) -> str:
    """Return the name as Ollama lists it, in lower case: without the default registry, with a tag."""
    name = name.lower().removeprefix("https://").removeprefix(f"{REGISTRY}/").removeprefix(f"{LIBRARY}/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:{LATEST}"


def reason(packed: Packed) -> str | None:
    """Return why upstream llama.cpp cannot run the model (see `ollama_compat`); saved for each manifest.

    Raises ModelNotFound, ModelInvalid if its files cannot be read.
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
    if not (name := _name(store, file)):
        return None
    try:
        content = bounded_file.read(file, LARGEST_MANIFEST)
        manifest = bounded_file.json_value(content)
        layers = tuple(
            (str(one["mediaType"]).removeprefix(LAYER), _blob(store, one["digest"])) for one in manifest["layers"] or ()
        )
        config = bounded_file.read_json(_blob(store, manifest["config"]["digest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    import hashlib

    digest = hashlib.sha256(content).hexdigest()
    return Packed(store, name, file, digest, layers, config if isinstance(config, dict) else {})


def _name(store: Path, file: Path) -> str:
    """Return the name of a manifest's model, as Ollama shows it; empty for another file."""
    parts = file.relative_to(store / "manifests").parts
    if len(parts) != 4:
        return ""
    host, namespace, model, tag = parts
    shown = [*([] if host == REGISTRY else [host]), *([] if (host, namespace) == (REGISTRY, LIBRARY) else [namespace])]
    return "/".join([*shown, f"{model}:{tag}"])


def _installed(packed: Packed, verdicts: dict[str, str | None]) -> InstalledModel:
    """Return the model as it is listed; a new verdict is added to `verdicts`."""
    files = packed.files()
    formats, detail = _formats(packed, verdicts)
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


def _formats(packed: Packed, verdicts: dict[str, str | None]) -> tuple[tuple[Format, ...], str]:
    """Return the formats in which the model can be loaded, and the reason if GGUF is not one of them."""
    if not all(is_whole(file) for file in packed.files()):
        return (), "some of its files are missing or may not be read"
    try:
        if packed.digest not in verdicts:
            verdicts[packed.digest] = _reason(packed)
        why = verdicts[packed.digest]
    except LlmdeployError as error:
        why = error.message
    return ((OLLAMA,), f"not on llama.cpp: {why}") if why else ((OLLAMA, GGUF), "")


def _blob(store: Path, digest: str) -> Path:
    """Return the file of a layer. Raises ValueError for a digest that would be the path of another file."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(digest)
    return store / "blobs" / digest.replace(":", "-")


def _begins(file: Path, text: str) -> bool:
    with suppress(OSError), bounded_file.opened(file) as stream:
        return stream.read(len(text)) == text.encode()
    return False


def _allocated(file: Path) -> int:
    """Return the bytes of a file on the disk: Ollama gives a partial file its full length at once."""
    with suppress(OSError):
        status = file.stat()
        return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
    return 0


# --- Saved reasons: reading a header with a vocabulary of 150,000 tokens takes a tenth of a second


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
