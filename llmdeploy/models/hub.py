"""Files of the Hugging Face Hub: those in the cache of this machine, and fetching the others.

The only file that imports huggingface_hub. That library reads the variables: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HOME
and HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds until a
silent server counts as gone; 10 each).
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdeploy.errors import DownloadFailed, LlmdeployError
from llmdeploy.models.reference import HubFile, HubRepo

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

OnProgress = Callable[[str, int, int], None]
"""Called with file name, bytes so far and bytes in all (0: the server does not say); perhaps from another thread."""

_LOCAL_FILE = "give a file that is here: `llmdeploy serve ./model.gguf`"
_LIST_TIMEOUT_S = 10
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
"""Where the cache keeps the files of one commit."""


def commit_of(files: Iterable[Path]) -> str | None:
    """The commit that files of the Hub's cache are of; None for others."""
    return next((found[1] for file in files if (found := _SNAPSHOT.search(file.as_posix()))), None)


def cached(file: HubFile) -> Path | None:
    """The file in the cache of this machine, or None. Never touches the network."""
    with _quiet():
        from huggingface_hub import try_to_load_from_cache

        try:
            path = try_to_load_from_cache(file.repo, file.file, revision=file.revision)
        except (OSError, ValueError):  # not readable, or a name the Hub does not allow: `download` says so
            return None
    return Path(path) if isinstance(path, str) else None


def download(file: HubFile, on_progress: OnProgress) -> Path:
    """Fetch the file into the cache and return where it lies. Raises DownloadFailed; Ctrl-C ends it at once.

    Refuses before the first byte when the disk has no room for the whole file: the library keeps no part of a
    broken-off download that could be counted.
    """
    with _quiet():
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        try:
            # Asked once without retries, so that a dead network is told within HF_HUB_ETAG_TIMEOUT.
            metadata = get_hf_file_metadata(hf_hub_url(file.repo, file.file, revision=file.revision))
            size = metadata.size or 0
            _check_room(file, size, metadata.etag)
            bar = _progress_bar(file, size, on_progress)
            return Path(hf_hub_download(file.repo, file.file, revision=file.revision, tqdm_class=bar))
        except LlmdeployError:
            raise
        except Exception as error:  # httpx, hf_xet, filelock and the system all raise their own
            raise explain(file, error) from error


def files_of(repo: HubRepo) -> list[str]:
    """The files of a repository at its revision, by the Hub's own word. Raises DownloadFailed."""
    with _quiet():
        from huggingface_hub import HfApi

        try:
            return list(HfApi().list_repo_files(repo.repo, revision=repo.revision))
        except Exception as error:  # as in `download`
            raise explain(HubFile(repo.repo, "", repo.revision), error) from error


def explain(file: HubFile, error: Exception) -> DownloadFailed:
    """What a failure of huggingface_hub means, in a sentence and with a way on."""
    from huggingface_hub import errors

    chain = _chain(error)
    for cause in chain:
        if isinstance(cause, errors.HfHubHTTPError):
            return _explain_answer(file, cause)
    return _explain_system(chain) or _explain_network(file, chain)


# --- The parts of a download


@contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub warns on stderr by two ways; what matters of it becomes an exception of ours."""
    # It would ask the Hub for a list of programs to report in its user agent, and wait 3 s for that when it is away.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from logging import CRITICAL

        from huggingface_hub.utils import logging as hub_logging

        before = hub_logging.get_verbosity()
        hub_logging.set_verbosity(CRITICAL + 1)
        try:
            yield
        finally:
            hub_logging.set_verbosity(before)


def _check_room(file: HubFile, size: int, etag: str | None) -> None:
    import shutil

    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(HF_HUB_CACHE).expanduser()
    blob = cache / repo_folder_name(repo_id=file.repo, repo_type="model") / "blobs" / (etag or "-")
    if blob.exists():
        return
    folder = next(path for path in [cache, *cache.absolute().parents] if path.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DownloadFailed(
            f"`{file.file}` needs {size / 1e9:.2f} GB and the disk of `{cache}` has {free / 1e9:.2f} GB left",
            "free some space, or set `HF_HOME` to a folder on another disk",
        )


def _progress_bar(file: HubFile, size: int, on_progress: OnProgress) -> type[Any]:
    """A class with the part of tqdm's interface that huggingface_hub uses; it draws nothing."""

    class Bar:
        def __init__(self, *_: object, total: int | None = None, initial: int = 0, **__: object) -> None:
            self.total, self.n = total, initial
            self.update(0)

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            on_progress(file.file, self.n, size)

        def update_transfer(self, n: float) -> None:
            """Bytes on the network: with this method there is no second bar for them."""

        def set_postfix_str(self, *_: object, **__: object) -> None: ...

        set_transfer_postfix_str = refresh = close = set_postfix_str

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar


def _gguf_names(file: HubFile) -> list[str]:
    """The GGUF files of the repository, those with a like name first; empty when the Hub does not tell."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(file.repo, revision=file.revision, timeout=_LIST_TIMEOUT_S)
    except Exception:  # this only makes a hint better
        return []
    names = [entry.rfilename for entry in info.siblings or [] if entry.rfilename.endswith(".gguf")]
    near = difflib.get_close_matches(file.file, names, n=5)
    return [*near, *(name for name in names if name not in near)][:5]


# --- What a failure means


def _explain_answer(file: HubFile, error: HfHubHTTPError) -> DownloadFailed:
    """The Hub answered, and not with the file."""
    from huggingface_hub import errors

    page = f"{_endpoint()}/{file.repo}"
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return DownloadFailed(
            f"`{file.repo}` is gated: its terms must be accepted first",
            f"accept them at `{page}`, then set `HF_TOKEN` to an access token of that account",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadFailed(
            f"there is no repository `{file.repo}`, or it is private",
            "check the name; for a private repository set `HF_TOKEN` to an access token",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadFailed(
            f"`{file.repo}` has no revision `{file.revision}`",
            f"`{HubFile(file.repo, file.file)}` names its main branch",
        )
    if isinstance(error, errors.EntryNotFoundError):
        names = ", ".join(f"`{name}`" for name in _gguf_names(file))
        hint = f"it has {names}" if names else f"its files are listed at {page}/tree/{file.revision}"
        return DownloadFailed(f"`{file.repo}` has no file `{file.file}`", hint)
    message, hint = _ANSWERS.get(status, (f"the Hub answered with status {status}", "try again later"))
    return DownloadFailed(message.format(repo=file.repo), hint)


_TOKEN_HINT = "set `HF_TOKEN` to a valid access token, or unset it for a public repository"
_ANSWERS = {
    401: ("the Hub does not know the access token", _TOKEN_HINT),
    403: ("the Hub refuses access to `{repo}`", "set `HF_TOKEN` to an access token that may read it"),
    429: ("the Hub refuses for now: too many requests", "wait some minutes; with `HF_TOKEN` set the limit is higher"),
}


def _explain_system(chain: list[BaseException]) -> DownloadFailed | None:
    """This machine is the cause: its settings or its disk. None when it is not."""
    from huggingface_hub import constants, errors

    for error in chain:
        if isinstance(error, errors.OfflineModeIsEnabled):
            variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
            return DownloadFailed(
                f"`{variable}` is set, so nothing is downloaded", f"`unset {variable}`, or {_LOCAL_FILE}"
            )
        if isinstance(error, errors.HFValidationError):
            return DownloadFailed("the Hub allows no such repository name", "the form is `hf://owner/repo/file.gguf`")
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EFBIG:
            return DownloadFailed(
                f"the file system of `{constants.HF_HUB_CACHE}` takes no file of this size",
                "set `HF_HOME` to a folder on another disk",
            )
        if number in {errno.ENOSPC, errno.EDQUOT} or "(os error 28)" in str(error):
            return DownloadFailed(
                f"the disk of `{constants.HF_HUB_CACHE}` became full",
                "free some space, or set `HF_HOME` to a folder on another disk",
            )
        # A file has a name; the same numbers without one come from a connection.
        if isinstance(error, OSError) and error.filename and number:
            return DownloadFailed(
                f"`{constants.HF_HUB_CACHE}` cannot be used: {error.strerror}",
                "set `HF_HOME` to a folder that you may write to",
            )
    return None


def _explain_network(file: HubFile, chain: list[BaseException]) -> DownloadFailed:
    """The Hub was not reached, or it broke off."""
    import socket
    import ssl

    from huggingface_hub import errors

    endpoint = _endpoint()
    proxy = _proxy(endpoint)
    where = f"`{endpoint}`" + (f" through the proxy `{proxy}`" if proxy else "")
    hint = f"check the network, set `HF_ENDPOINT` to a mirror, or {_LOCAL_FILE}"
    if proxy:
        hint = f"check the proxy variables (`env | grep -i proxy`), or {_LOCAL_FILE}"
    names = {type(error).__name__ for error in chain}
    if any(isinstance(error, ssl.SSLError) for error in chain):
        hint = f"behind a proxy that opens TLS set `SSL_CERT_FILE` to its certificate; or {_LOCAL_FILE}"
        return DownloadFailed(f"no safe connection to {where}: {_reason(chain, ssl.SSLError)}", hint)
    if any(isinstance(error, socket.gaierror) for error in chain):
        return DownloadFailed(f"the address of {where} cannot be looked up", hint)
    if any(isinstance(error, ConnectionRefusedError) for error in chain):
        return DownloadFailed(f"{where} refuses the connection", hint)
    if any(isinstance(error, TimeoutError) for error in chain) or any("Timeout" in name for name in names):
        return DownloadFailed(f"{where} did not answer in time", hint)
    if any(isinstance(error, errors.FileMetadataError) for error in chain):
        return DownloadFailed(f"{where} does not answer as a Hub does", f"check `HF_ENDPOINT`, or {_LOCAL_FILE}")
    return DownloadFailed(f"`{file.file}` could not be downloaded from {where}: {_reason(chain, Exception)}", hint)


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what caused it, what caused that."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _reason(chain: list[BaseException], kind: type[BaseException]) -> str:
    """The first line of the first error of that kind that says something."""
    texts = (str(error).strip() for error in chain if isinstance(error, kind))
    return next((text.splitlines()[0].rstrip(".") for text in texts if text), type(chain[0]).__name__)


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return str(ENDPOINT)


def _proxy(endpoint: str) -> str | None:
    """The proxy on the way to the Hub, without its password."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(endpoint)
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if address is None or url.hostname is None or proxy_bypass(url.hostname):
        return None
    return address.rpartition("@")[2].rpartition("//")[2]
