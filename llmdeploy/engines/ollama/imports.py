"""GGUF files of this machine as a model of Ollama's: made once, by content, and without a copy where that can be.

Where the store is ours and on the same disk, the files are linked into it and a manifest is written beside them, which
Ollama sees at once. Elsewhere they are pushed, and Ollama makes a model of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.engines.ollama import failures
from llmdeploy.engines.ollama.documents import same_name
from llmdeploy.models import digest, facts, gguf_header
from llmdeploy.models.reference import served_name
from llmdeploy.models.requirements import existing
from llmdeploy.models.stores.ollama import LAYER, NAMESPACE, REGISTRY

if TYPE_CHECKING:
    from llmdeploy.engines.ollama.api import Daemon
    from llmdeploy.models.gguf import GgufModel
    from llmdeploy.models.requirements import Requirements
    from llmdeploy.models.source import OnProgress

CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf\b")
"""Of a model in parts Ollama makes one file."""


@dataclass(frozen=True)
class Import:
    daemon: Daemon
    store: Path
    """Where the daemon's store is, if it is ours."""
    model: GgufModel

    def name(self, on_progress: OnProgress = lambda name, done, total: None) -> str:
        """By the file's name for people, by the content of all files for certain. Raises what `digests` raises."""
        content = hashlib.sha256("+".join(self.digests(on_progress).values()).encode()).hexdigest()
        return f"{NAMESPACE}/{served_name(self.model.paths()[0]).lower()}:{content[:12]}"

    def is_there(self) -> bool:
        """Whether it was made. Not where the digests are unknown: they take a while, which `make` tells."""
        known = self.model.present() and all(digest.known(path) for path in self.files)
        return known and any(same_name(one.name, self.name()) for one in self.daemon.models())

    def make(self, on_progress: OnProgress) -> None:
        """Make the model, where it is not there yet."""
        before = {path: digest.earlier(path) for path in self.files}
        files, name = self.digests(on_progress), self.name()
        self._drop_overwritten(before, files)
        if self.is_there():
            return
        # Of a model in parts Ollama makes one file.
        if len(facts.parts(self.model.paths()[0])) == 1 and self._linked(files):
            try:
                _write_manifest(self.store, name, files)
                return
            except OSError as error:  # mostly Ollama can, or tells why it cannot
                if error.errno == errno.ENOSPC:  # it would say that the file is no good
                    raise failures.explain(f"write {self.store}: {error.strerror}") from error
        for path, sha256 in files.items():
            if not self.daemon.has_blob(f"sha256:{sha256}"):
                self.daemon.push_blob(path, f"sha256:{sha256}", on_progress)
        self.daemon.create_from_files(name, {path.name: f"sha256:{sha256}" for path, sha256 in files.items()})

    def can_link(self, need: Requirements) -> bool:
        """Whether what the model needs can be linked into the store, once it is here."""
        if any(_PART.search(file.name) for file in need.files):
            return False
        here = [*self.model.local_files(), need.folder or self.store]
        try:
            store = existing(self.store).stat()
            is_ours = self.daemon.is_local and store.st_uid == os.geteuid()
            return is_ours and existing(here[0]).stat().st_dev == store.st_dev
        except (OSError, AttributeError):  # a system without users
            return False

    def digests(self, on_progress: OnProgress = lambda name, done, total: None) -> dict[Path, str]:
        """The SHA-256 of each file: all parts of the weights, the projector. Raises ModelNotFound, ModelInvalid."""
        return {path: digest.sha256(path, on_progress) for path in self.files}

    @property
    def files(self) -> list[Path]:
        """All parts of the weights, and the projector. Raises ModelNotFound, ModelInvalid."""
        weights, mmproj = self.model.paths()
        return [*facts.parts(weights), *([mmproj] if mmproj else [])]

    def _drop_overwritten(self, before: dict[Path, str | None], files: dict[Path, str]) -> None:
        """A link to a file that was written anew in its place is no longer what its name in the store says."""
        for path, sha256 in files.items():
            with suppress(OSError):  # mostly there is none
                link = self._blob(before[path] or "")
                if before[path] != sha256 and path.samefile(link):
                    link.unlink()

    def _blob(self, sha256: str) -> Path:
        return self.store / "blobs" / f"sha256-{sha256}"

    def _linked(self, files: dict[Path, str]) -> bool:
        """Put links to the files into the store; whether they are there, and it is the daemon's store."""
        try:
            if not self.daemon.is_local or self.store.stat().st_uid != os.geteuid():
                return False
            (self.store / "blobs").mkdir(exist_ok=True)
            made = [link for path, sha256 in files.items() if (link := _link(path, self._blob(sha256)))]
        except (OSError, AttributeError):  # no store there, another disk, a system without users
            return False
        if all(self.daemon.has_blob(f"sha256:{sha256}") for sha256 in files.values()):
            return True
        for link in made:  # it is another Ollama's
            link.unlink(missing_ok=True)
        return False


def _link(path: Path, link: Path) -> Path | None:
    """The link, if it was made now."""
    with suppress(FileExistsError):
        os.link(path.resolve(), link)
        return link
    return None


def _write_manifest(store: Path, name: str, files: dict[Path, str]) -> None:
    """What Ollama itself would write for these files, as its version 0.33 does."""
    weights, *projector = files
    fields = gguf_header.read(weights).fields
    family = str(fields.get("general.architecture", ""))
    size = fields.get("general.size_label")
    config = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": size if isinstance(size, str) else "",
        "architecture": "amd64",
        "os": "linux",
    }
    layers = [_layer("model", weights, files), *(_layer("projector", path, files) for path in projector)]
    content = json.dumps(config).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    _put(store, store / "blobs" / f"sha256-{sha256}", content)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": f"sha256:{sha256}", "size": len(content)},
        "layers": layers,
    }
    model, _, tag = name.partition(":")
    file = store / "manifests" / REGISTRY / model / tag
    file.parent.mkdir(parents=True, exist_ok=True)
    _put(store, file, json.dumps(manifest).encode())


def _put(store: Path, file: Path, content: bytes) -> None:
    """Write a file of the store, whole or not at all."""
    temporary = store / f".{file.name}"  # not among the blobs and manifests, where Ollama would read it
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _layer(kind: str, path: Path, files: dict[Path, str]) -> dict[str, Any]:
    return {"mediaType": LAYER + kind, "digest": f"sha256:{files[path]}", "size": path.stat().st_size}
