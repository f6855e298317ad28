"""Removing files and repositories from the Hub's cache, by huggingface_hub's own rules."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from llmdeploy.errors import LlmdeployError
from llmdeploy.models.hub import library
from llmdeploy.models.hub.cache import cache


def remove(files: Collection[Path], repositories: Collection[Path]) -> None:
    """Remove files of snapshots, and whole repositories (their folders), from the cache.

    A blob that another file needs stays. Raises LlmdeployError where something cannot be removed.
    """
    library.keep_still()
    from huggingface_hub import scan_cache_dir

    real = {path.parent.resolve() / path.name for path in files}
    folders = {folder.resolve() for folder in repositories}
    found = scan_cache_dir(cache())
    for repo in found.repos:
        if repo.repo_path in folders:
            # Alone: a repository that is a copy of another may have its commits too.
            alone = replace(found, repos=frozenset({repo}))
            alone.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
        elif gone := [it for revision in repo.revisions for it in revision.files if it.file_path in real]:
            found.delete_files(*gone).execute()
    for folder in folders - {repo.repo_path for repo in found.repos}:  # it has no snapshot, or a broken one
        shutil.rmtree(folder)
    if left := [path for path in (*files, *repositories) if os.path.lexists(path)]:
        raise LlmdeployError(
            f"`{left[0]}` could not be removed", "see who owns it: `ls -ld` shows that", code="not_removed"
        )
