"""Serve the tests' Hub with its Xet storage, for `pull.py`.

python benchmarks/pull_hub.py FOLDER serves FOLDER/OWNER/REPO/... until the end of stdin and prints its URL first.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.blobs import Content, blob, in_lfs
from tests.hub_server import Hub, serve
from tests.xet_server import serve_xet


def main() -> None:
    folder = Path(sys.argv[1])
    repos = [repo for repo in folder.glob("*/*") if repo.is_dir()]
    hub = Hub(files={str(repo.relative_to(folder)): files(repo) for repo in repos})
    with serve(hub), serve_xet(hub) as cas:
        for tree in hub.files.values():
            for name, content in tree.items():  # hashed and stored before anything is measured
                _ = cas.file_id(content) if in_lfs(name, content) else blob(content)
        print(hub.url, flush=True)
        sys.stdin.read()


def files(repo: Path) -> dict[str, Content]:
    """Map names to contents. Large files stay paths, so that the kernel sends them from the disk."""
    every = {str(path.relative_to(repo)): path for path in repo.rglob("*") if path.is_file()}
    return {name: path if in_lfs(name, path) else path.read_bytes() for name, path in every.items()}


if __name__ == "__main__":
    main()
