"""The import of GGUF files into Ollama: once for each content, and without a copy if possible.

If the store belongs to this user and is on the same disk, the files are linked into it and a manifest is written, which
Ollama sees at once. Otherwise the files are uploaded, and Ollama creates a model from them.
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
"""The name of one part of a model in several files."""


@dataclass(frozen=True)
class Import:
    """GGUF files that become a model of Ollama."""

    daemon: Daemon
    store: Path
    """The folder of the daemon's store, if it is on this machine."""
    model: GgufModel

    def name(self, on_progress: OnProgress = lambda name, done, total: None) -> str:
        """Return the model's name in Ollama: the file's name and a digest of all files. Raises as `digests` does."""
        content = hashlib.sha256("+".join(self.digests(on_progress).values()).encode()).hexdigest()
        return f"{NAMESPACE}/{served_name(self.model.paths()[0]).lower()}:{content[:12]}"

    def is_there(self) -> bool:
        """Return whether the model exists in Ollama. False if the digests are unknown: computing them takes a while."""
        known = self.model.is_present() and all(digest.known(path) for path in self.files)
        return known and any(same_name(one.name, self.name()) for one in self.daemon.models())

    def make(self, on_progress: OnProgress) -> None:
        """Create the model in Ollama if it does not exist yet."""
        before = {path: digest.earlier(path) for path in self.files}
        files, name = self.digests(on_progress), self.name()
        self._drop_overwritten(before, files)
        if self.is_there():
            return
        # Ollama cannot load a model in several files from links: it has to join them.
        if len(facts.parts(self.model.paths()[0])) == 1 and self._linked(files):
            try:
                _write_manifest(self.store, name, files)
                return
            except OSError as error:  # usually Ollama can create it, or reports why it cannot
                if error.errno == errno.ENOSPC:  # Ollama would report that the file is damaged
                    raise failures.explain(f"write {self.store}: {error.strerror}") from error
        for path, sha256 in files.items():
            if not self.daemon.has_blob(f"sha256:{sha256}"):
                self.daemon.push_blob(path, f"sha256:{sha256}", on_progress)
        self.daemon.create_from_files(name, {path.name: f"sha256:{sha256}" for path, sha256 in files.items()})

    def can_link(self, need: Requirements) -> bool:
        """Return whether the files of the model can be linked into the store, once they are downloaded."""
        if any(_PART.search(file.name) for file in need.files):
            return False
        here = [*self.model.local_files(), need.folder or self.store]
        try:
            store = existing(self.store).stat()
            is_ours = self.daemon.is_local and store.st_uid == os.geteuid()
            return is_ours and existing(here[0]).stat().st_dev == store.st_dev
        except (OSError, AttributeError):  # a system without user ids
            return False

    def digests(self, on_progress: OnProgress = lambda name, done, total: None) -> dict[Path, str]:
        """Return the SHA-256 of each file: all parts of the weights, and the projector.

        Raises ModelNotFound, ModelInvalid.
        """
        return {path: digest.sha256(path, on_progress) for path in self.files}

    @property
    def files(self) -> list[Path]:
        """All parts of the weights, and the projector. Raises ModelNotFound, ModelInvalid."""
        weights, mmproj = self.model.paths()
        return [*facts.parts(weights), *([mmproj] if mmproj else [])]

    def _drop_overwritten(self, before: dict[Path, str | None], files: dict[Path, str]) -> None:
        """Remove links to files that were overwritten in place: their content no longer matches their name."""
        for path, sha256 in files.items():
            with suppress(OSError):  # usually no such link exists
                link = self._blob(before[path] or "")
                if before[path] != sha256 and path.samefile(link):
                    link.unlink()

    def _blob(self, sha256: str) -> Path:
        return self.store / "blobs" / f"sha256-{sha256}"

    def _linked(self, files: dict[Path, str]) -> bool:
        """Link the files into the store. Return whether that worked and the daemon sees them."""
        try:
            if not self.daemon.is_local or self.store.stat().st_uid != os.geteuid():
                return False
            (self.store / "blobs").mkdir(exist_ok=True)
            made = [link for path, sha256 in files.items() if (link := _link(path, self._blob(sha256)))]
        except (OSError, AttributeError):  # no store, another disk, or a system without user ids
            return False
        if all(self.daemon.has_blob(f"sha256:{sha256}") for sha256 in files.values()):
            return True
        for link in made:  # the store belongs to another Ollama
            link.unlink(missing_ok=True)
        return False


def _link(path: Path, link: Path) -> Path | None:
    """Create a hard link. Return it, or None if it exists already."""
    with suppress(FileExistsError):
        checked = digest.verified(path)
        os.link(path.resolve(), link)
        if checked:  # a new link changes the status of the file, and nothing in it
            digest.save(path, checked)
        return link
    return None


def _write_manifest(store: Path, name: str, files: dict[Path, str]) -> None:
    """Write the manifest that Ollama 0.33 itself would write for these files."""
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
    """Write a file of the store in one step."""
    temporary = store / f".{file.name}"  # not among the blobs and manifests, where Ollama would read it
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _layer(kind: str, path: Path, files: dict[Path, str]) -> dict[str, Any]:
    return {"mediaType": LAYER + kind, "digest": f"sha256:{files[path]}", "size": path.stat().st_size}
