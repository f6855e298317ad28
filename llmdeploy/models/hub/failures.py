"""Explanations of huggingface_hub's errors: a sentence and a hint for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmdeploy.errors import DownloadFailed, LlmdeployError
from llmdeploy.models import network
from llmdeploy.models.hub import library
from llmdeploy.models.hub.failure_rules import ELSEWHERE, LOCAL_FILE, RULES
from llmdeploy.models.reference import HubFile, HubRepo
from llmdeploy.rules import first_match
from llmdeploy.units import in_time

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


@contextmanager
def explaining(file: HubFile) -> Iterator[None]:
    """Raise DownloadFailed for every error in the block, except those of llmdeploy and Ctrl-C."""
    library.silence()
    try:
        yield
    except LlmdeployError:
        raise
    except Exception as error:  # httpx, hf_xet and the system all raise their own
        raise explain(file, error) from error


def explain(file: HubFile, error: Exception) -> DownloadFailed:
    """Return the error for that file, or for its repository if the file has no name."""
    from huggingface_hub import errors

    chain = network.chain(error)
    for cause in chain:
        if isinstance(cause, errors.HfHubHTTPError):
            return _explain_answer(file, cause)
    return _explain_settings(chain) or _explain_network(file, chain)


# --- Causes


def _explain_answer(file: HubFile, error: HfHubHTTPError) -> DownloadFailed:
    """Return the error for an HTTP status with which the Hub answered."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return _explain_gate(file.repo, status)
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadFailed(
            f"there is no repository `{file.repo}`, or it is private",
            "check the name; for a private repository set `HF_TOKEN` to an access token that may read it",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        main = HubFile(file.repo, file.file) if file.file else HubRepo(file.repo)
        return DownloadFailed(f"`{file.repo}` has no revision `{file.revision}`", f"`{main}` names its main branch")
    if isinstance(error, errors.EntryNotFoundError):
        what = f"no file `{file.file}`" if file.file else "no files"
        return DownloadFailed(
            f"`{file.repo}` has {what}", f"see `{_endpoint()}/{file.repo}/tree/{file.revision}` for what it has"
        )
    found = first_match(RULES, "", status=status)
    if found is None:
        return DownloadFailed(f"the Hub answered with status {status}", f"try again later, {ELSEWHERE}")
    rule, _ = found
    wait = error.response.headers.get("Retry-After", "")
    hint = rule.fix.replace("some minutes", in_time(int(wait))) if re.fullmatch(r"[0-9]{1,9}", wait) else rule.fix
    return DownloadFailed(rule.cause.format(repo=file.repo), hint)


def _explain_gate(repo: str, status: int) -> DownloadFailed:
    page = f"{_endpoint()}/{repo}"
    if status == 403:  # the Hub knows the token
        return DownloadFailed(
            f"`{repo}` is gated, and the account of the access token is not let in yet",
            f"accept its terms at `{page}` with that account; some owners look at each request",
        )
    return DownloadFailed(
        f"`{repo}` is gated: its terms must be accepted first",
        f"accept them at `{page}`, then set `HF_TOKEN` to an access token of that account",
    )


def _explain_settings(chain: list[BaseException]) -> DownloadFailed | None:
    """Return the error if a setting or a name that the user gave is the cause, else None."""
    from huggingface_hub import errors

    for error in chain:
        if isinstance(error, errors.OfflineModeIsEnabled):
            variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
            return DownloadFailed(
                f"`{variable}` is set, so nothing is downloaded", f"`unset {variable}`, or {LOCAL_FILE}"
            )
        if isinstance(error, errors.HFValidationError):
            return DownloadFailed("the Hub allows no such repository name", "the form is `hf://owner/repo/file.gguf`")
        if isinstance(error, OSError) and error.filename:  # errors of connections name no file
            hint = "set `HF_HOME` to a folder that you may write to"
            return DownloadFailed(f"`{error.filename}` cannot be used: {error.strerror}", hint)
    return None


def _explain_network(file: HubFile, chain: list[BaseException]) -> DownloadFailed:
    """Return the error for a Hub that was not reached, or whose answer ended early."""
    from huggingface_hub import errors

    endpoint = _endpoint()
    if not endpoint.startswith(("http://", "https://")):
        return DownloadFailed(
            f"`HF_ENDPOINT` is `{endpoint}`, which is not an address", "such as `https://huggingface.co`"
        )
    proxy = network.proxy_to(endpoint)
    where = f"`{endpoint}`" + (f" through the proxy `{proxy}`" if proxy else "")
    hint = f"check the network, {ELSEWHERE}"
    if proxy:
        hint = f"check the proxy variables (`env | grep -i proxy`), {ELSEWHERE}"
    names = {type(error).__name__ for error in chain}
    if failure := network.explain(chain, where, hint, f"{network.TLS_HINT}; or {LOCAL_FILE}"):
        return failure
    if any(isinstance(error, TimeoutError) for error in chain) or any("Timeout" in name for name in names):
        return DownloadFailed(f"{where} did not answer in time", hint)
    not_the_hubs = ValueError | TypeError | KeyError | AttributeError | RecursionError | errors.FileMetadataError
    if isinstance(chain[0], not_the_hubs):  # not JSON, other JSON, or other headers
        return DownloadFailed(f"{where} does not answer as a Hub does", f"check `HF_ENDPOINT`, or {LOCAL_FILE}")
    what = f"`{file.file or file.repo}`"
    return DownloadFailed(f"{what} could not be downloaded from {where}: {network.reason(chain)}", hint)


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return str(ENDPOINT)
