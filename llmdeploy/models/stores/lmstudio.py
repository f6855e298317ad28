"""LM Studio's models: GGUF files, each in a folder named after its repository: <publisher>/<repository>/<file>.

`~/.lmstudio-home-pointer` has the path of LM Studio's folder; without that file it is `~/.lmstudio`, and before version
0.3 it was `~/.cache/lm-studio`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from llmdeploy import bounded_file
from llmdeploy.models.reference import HubRepo
from llmdeploy.models.stores.installed import InstalledModel, StoreListing, last_used, walk
from llmdeploy.models.stores.repository import models_in

POINTER = ".lmstudio-home-pointer"


def roots() -> tuple[Path, ...]:
    """Return the folders that may have models."""
    home = Path.home()
    places = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    with suppress(OSError, UnicodeDecodeError):
        places.insert(0, Path(bounded_file.read(home / POINTER).decode().strip()))
    return tuple(dict.fromkeys(place / "models" for place in places if place.is_absolute()))


def read(root: Path) -> StoreListing:
    """Return the models in one of these folders."""
    return StoreListing(
        tuple(model for repo in sorted(root.glob("*/*")) if repo.is_dir() for model in _repository(root, repo))
    )


def _repository(root: Path, folder: Path) -> list[InstalledModel]:
    files = {file.relative_to(folder).as_posix(): file for file in walk(folder) if file.suffix == ".gguf"}
    repo = HubRepo(folder.relative_to(root).as_posix())
    return [
        InstalledModel(
            files[group.files[0]],
            "lmstudio",
            root,
            tuple(files[path] for path in group.files),
            group.formats,
            last_used(files[path] for path in group.files),
            detail=group.detail,
        )
        for group in models_in(repo, list(files))
    ]
