"""The part of ModelScope's API that a download needs: three GETs below `<endpoint>/api/v1/models/<owner>/<name>`.

    commits?Ref=<revision>&PageNumber=1&PageSize=1    Data.Commit[0].Id; empty for an unknown revision
    repo/files?Revision=<commit>&Recursive=True       Data.Files[]: Path, Type, Size, Sha256; 3000 at most
    repo?Revision=<commit>&FilePath=<path>            the file, or a redirect to a store, which has ranges

The official client, modelscope-hub, would bring 50 MB of other packages for these, and has its own way of downloading.
The routes, the token and the variables are those of its source (0.5.1: `_legacy_api.py`, `config.py`; `commits` is the
`list_repo_commits` of modelscope 1.3x). The numbers of the errors, in `Code` of a body, are as reported by others: most
failures have the status 404, and only the number distinguishes them. A range may be answered with the status 200
(github.com/modelscope/modelscope_hub/issues/50), and a small file as a whole: Content-Range decides.

MODELSCOPE_ENDPOINT (or MODELSCOPE_DOMAIN) names another address, MODELSCOPE_API_TOKEN a token,
MODELSCOPE_DOWNLOAD_TIMEOUT the seconds until a silent server is given up. The token is sent to that address only, never
to the storage. A login of the library is not read, because it is a pickle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from llmdeploy import __version__, bounded_file, tls
from llmdeploy.errors import DownloadFailed
from llmdeploy.models import network
from llmdeploy.models.reference import HubFile

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10
READ_SECONDS = 30
LARGEST_BYTES = 16 * 2**20
"""The most bytes of a JSON answer: a list of 3000 files has about 2 MB."""

NO_REPOSITORY, NO_ACCESS, NO_REVISION, NO_FILE = 10010205001, 10010200001, 10990101004, 10990101007
"""Values of `Code` in the body of an error."""

_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_TOKEN_HINT = "set `MODELSCOPE_API_TOKEN` to an access token (`{endpoint}/my/access/token`)"


class BrokenOff(DownloadFailed):
    """The connection ended before the answer; another try may resume."""


def endpoint() -> str:
    """Return the address of ModelScope, without a slash at its end."""
    address = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "https://modelscope.cn"
    return (address if "://" in address else f"https://{address}").rstrip("/")


def document(file: HubFile, route: str, query: Mapping[str, str]) -> dict[str, Any]:
    """Return the `Data` of a JSON answer. Raises DownloadFailed."""
    with answer(file, route, query) as response:
        try:
            content = _content(response)
            body = bounded_file.json_value(content)
            data, code = body.get("Data"), body.get("Code", 200)
        except (ValueError, AttributeError):
            raise stranger() from None
        if code != 200:
            raise _refusal(file, response, content)
        if not isinstance(data, dict):
            raise stranger()
        return data


@contextmanager
def answer(
    file: HubFile, route: str, query: Mapping[str, str], start: int = 0, end: int | None = None
) -> Iterator[httpx.Response]:
    """Send a GET, for a range of bytes if one is given, and yield the answer before its body is read.

    Raises DownloadFailed, and BrokenOff if the connection ends too early.
    """
    import httpx

    headers = _headers()
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    try:
        with (
            _client() as client,
            client.stream("GET", f"/api/v1/models/{file.repo}/{route}", params=query, headers=headers) as response,
        ):
            if response.status_code >= 400 and response.status_code != 416:
                raise _refusal(file, response, _content(response))
            yield response
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise _unreached(error) from error


def content(file: HubFile, start: int = 0, end: int | None = None) -> AbstractContextManager[httpx.Response]:
    """Send a GET for a file or a range of its bytes; `extent` reads from the answer which bytes it has."""
    return answer(file, "repo", {"Revision": file.revision, "FilePath": file.file}, start, end)


def extent(response: httpx.Response) -> tuple[int, int | None]:
    """Return the offset of the first byte of an answer, and the size of the whole file; None if it is not stated."""
    if match := _RANGE.fullmatch(response.headers.get("Content-Range", "").strip()):
        return int(match[1]), None if match[2] == "*" else int(match[2])
    size = response.headers.get("Content-Length", "")
    return 0, int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None


def stranger() -> DownloadFailed:
    """Return the error for an answer that ModelScope would not send."""
    return DownloadFailed(f"`{endpoint()}` does not answer as ModelScope does", "check `MODELSCOPE_ENDPOINT`")


def _content(response: httpx.Response) -> bytes:
    """Return the body of an answer. Raises DownloadFailed if it is larger than any that ModelScope sends."""
    content = bytearray()
    for block in response.iter_bytes():
        content += block
        if len(content) > LARGEST_BYTES:
            raise stranger()
    return bytes(content)


def _client() -> httpx.Client:
    """Return an HTTP client. Raises DownloadFailed if proxies or certificates of the environment are malformed."""
    import httpx

    address = endpoint()
    try:
        return httpx.Client(
            base_url=address,
            verify=tls.trusting(),
            follow_redirects=True,
            timeout=httpx.Timeout(_read_seconds(), connect=CONNECT_SECONDS),
        )
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        raise DownloadFailed(f"`{address}` cannot be asked: {error}", _proxy_hint()) from error


def _read_seconds() -> float:
    try:
        return float(os.environ.get("MODELSCOPE_DOWNLOAD_TIMEOUT") or READ_SECONDS)
    except ValueError:
        return READ_SECONDS


def _headers() -> dict[str, str]:
    """Return the headers of a request, with the token twice: the older routes read the cookie.

    httpx sends neither of the two to another host. Raises DownloadFailed if the token is not valid in a header: the
    error of httpx would show it.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": f"llmdeploy/{__version__}"}
    if token := os.environ.get("MODELSCOPE_API_TOKEN", "").strip():
        if not re.fullmatch(r"[!-:<-~]+", token):
            raise DownloadFailed(
                "`MODELSCOPE_API_TOKEN` has a blank or a letter that is not ASCII, which no access token has",
                "set it again: `export MODELSCOPE_API_TOKEN=ms-...`",
            )
        headers |= {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    return headers


# --- Causes of failures


def _refusal(file: HubFile, response: httpx.Response, content: bytes) -> DownloadFailed:
    """Return the error for an answer that is a refusal."""
    status, code = response.status_code, _code(content)
    token = _TOKEN_HINT.format(endpoint=endpoint())
    if code == NO_REVISION:
        return no_revision(file)
    if code == NO_FILE:
        return DownloadFailed(
            f"`{file.repo}` has no file `{file.file}` at ModelScope", f"its files are listed at {_page(file)}/files"
        )
    if code == NO_ACCESS or status == 403:
        return DownloadFailed(
            f"ModelScope gives no access to `{file.repo}`: it is private, or its terms must be accepted first",
            f"accept them at `{_page(file)}`, and {token}",
        )
    if status == 401:
        return DownloadFailed("ModelScope does not know the access token", f"{token}, or unset it")
    if code == NO_REPOSITORY or status == 404:
        name = file.repo.partition("/")[2]
        return DownloadFailed(
            f"there is no repository `{file.repo}` at ModelScope, or it is private",
            f"search its owner at `{endpoint()}/models?name={name}`; for a private one {token}",
        )
    if status == 429:
        return DownloadFailed("ModelScope refuses for now: too many requests", f"wait some minutes{_after(response)}")
    return DownloadFailed(f"ModelScope answered with status {status}", "try again later")


def no_revision(file: HubFile) -> DownloadFailed:
    """Return the error for a revision that the repository does not have."""
    meant = HubFile(file.repo, file.file, "master", "ms") if file.file else HubFile(file.repo, "", "master", "ms").home
    return DownloadFailed(
        f"`{file.repo}` has no revision `{file.revision}` at ModelScope", f"`{meant}` names its main branch"
    )


def _page(file: HubFile) -> str:
    return f"{endpoint()}/models/{file.repo}"


def _code(content: bytes) -> int | None:
    try:
        code = bounded_file.json_value(content)["Code"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if isinstance(code, int) else None


def _after(response: httpx.Response) -> str:
    seconds = response.headers.get("Retry-After", "")
    return f" ({seconds} s, it says)" if seconds.isdigit() else ""


def _unreached(error: Exception) -> DownloadFailed:
    """Return the error for a ModelScope that was not reached, or a connection that ended early."""
    import httpx

    chain = network.chain(error)
    proxy = network.proxy_to(endpoint())
    where = f"`{endpoint()}`" + (f" through the proxy `{proxy}`" if proxy else "")
    if failure := network.explain(chain, where, _hint(proxy)):
        return failure
    if isinstance(error, httpx.TimeoutException):
        return BrokenOff(f"{where} did not answer in time", _hint(proxy))
    if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ProxyError | httpx.UnsupportedProtocol):
        return BrokenOff(f"the connection to {where} broke off: {network.reason(chain)}", _hint(proxy))
    return DownloadFailed(f"{where} cannot be asked: {network.reason(chain)}", _hint(proxy))


def _hint(proxy: str | None) -> str:
    return (
        _proxy_hint()
        if proxy
        else "check the network, or take it from the Hub: `--source huggingface`, or its `hf://` address"
    )


def _proxy_hint() -> str:
    return "check the proxy variables (`env | grep -i proxy`)"
