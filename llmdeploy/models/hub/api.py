"""What a repository of the Hub holds."""

from __future__ import annotations

from typing import Any

from llmdeploy.models.hub.failures import explaining
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.models.source import Listing, RemoteFile


def listing(repo: HubRepo) -> Listing:
    """Two requests: for the commit that the revision names, and for its files. Raises DownloadFailed."""
    with explaining(HubFile(repo.repo, "", repo.revision)):
        from urllib.parse import quote

        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._pagination import paginate

        # Asked once without retries, so that a dead network is told within HF_HUB_ETAG_TIMEOUT.
        wait = constants.HF_HUB_ETAG_TIMEOUT
        commit = HfApi().model_info(repo.repo, revision=repo.revision, timeout=wait).sha
        assert commit is not None
        tree = f"{constants.ENDPOINT}/api/models/{repo.repo}/tree/{quote(commit)}"
        entries = paginate(tree, params={"recursive": True}, headers=build_hf_headers(), timeout=wait)
        return Listing(repo, commit, tuple(_file(entry) for entry in entries if entry["type"] == "file"))


def _file(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs") or {}
    return RemoteFile(
        entry["path"],
        lfs.get("size", entry["size"]),
        sha256=lfs.get("oid", ""),
        git_oid="" if lfs else entry["oid"],
        xet=entry.get("xetHash") or "",
    )
