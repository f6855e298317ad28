"""Downloads, by the real huggingface_hub from a Hub on loopback.

It reads its variables when it is imported, so each test is a process of its own, as each command of a user's is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmdeploy.models.hub import commit_of, explain
from llmdeploy.models.reference import HubFile
from tests.conftest import SELFTEST
from tests.hub_server import COMMIT, Hub, closed_port, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPO = "owner/model-GGUF"
CONTENT = bytes(range(256)) * 20_000  # 5 MB
SCRIPT = """
import json, sys
from llmdeploy.errors import LlmdeployError
from llmdeploy.models import hub
from llmdeploy.models.reference import parse

what, address = sys.argv[1:]
progress = []
try:
    file = parse(address)
    path = hub.cached(file) if what == "cached" else hub.download(file, lambda *now: progress.append(now))
    print(json.dumps({"path": path and str(path), "progress": progress}))
except LlmdeployError as error:
    print(json.dumps(error.as_document() | {"progress": progress}))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(files={REPO: {"model.gguf": CONTENT, "folder/part.gguf": b"part", "README.md": b"# Model"}})) as hub:
        yield hub


class Machine:
    """A machine with an empty home that knows one Hub."""

    def __init__(self, home: Path, endpoint: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "SYSTEMROOT", "TMPDIR", "TEMP"}}
        self.home = home
        self.prefix: list[str] = []
        self.env = {**inherited, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint}

    def start(self, what: str, address: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-W", "error", "-c", SCRIPT, what, address],
            env=self.env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str, address: str, **variables: str) -> dict[str, Any]:
        process = self.start(what, address, **variables)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        document: dict[str, Any] = json.loads(out)
        return document

    def pull(self, address: str = f"hf://{REPO}/model.gguf", **variables: str) -> dict[str, Any]:
        return self.run("download", address, **variables)

    def fail(self, address: str = f"hf://{REPO}/model.gguf", **variables: str) -> tuple[str, str]:
        """Message and hint of a download that must fail."""
        error = self.pull(address, **variables)["error"]
        assert error["code"] == "download_failed"
        return error["message"], error["hint"]

    def leftovers(self) -> list[Path]:
        return [path for path in self.home.rglob("*.incomplete*") if path.is_file()]


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path, hub.url)


def test_a_download_lies_in_the_cache_and_is_found_there_without_the_hub(machine: Machine, hub: Hub) -> None:
    address = f"hf://{REPO}/model.gguf"
    assert machine.run("cached", address)["path"] is None
    assert hub.requests == []

    done = machine.pull(address)
    path = machine.home / "hf" / "hub" / "models--owner--model-GGUF"
    assert str(path) in done["path"]
    with open(done["path"], "rb") as file:
        assert file.read() == CONTENT
    size = len(CONTENT)
    assert done["progress"][0] == ["model.gguf", 0, size]
    assert done["progress"][-1] == ["model.gguf", size, size]

    assert commit_of([Path(done["path"])]) == COMMIT
    assert commit_of([SELFTEST / "selftest-f16.gguf"]) is None

    before = len(hub.requests)
    assert machine.run("cached", address)["path"] == done["path"]
    assert machine.run("cached", address, HF_HUB_OFFLINE="1")["path"] == done["path"]
    assert len(hub.requests) == before


def test_a_file_in_a_folder_at_a_commit(machine: Machine) -> None:
    address = f"hf://{REPO}/folder/part.gguf@0123456789abcdef0123456789abcdef01234567"
    done = machine.pull(address)
    assert done["path"].endswith("part.gguf")
    assert machine.run("cached", address)["path"] == done["path"]


def test_what_is_there_is_not_fetched_again(machine: Machine, hub: Hub) -> None:
    machine.pull()
    fetched = len(hub.asked("GET", "model.gguf"))
    # Its size is claimed to be more than any disk has: a file that is there needs no room.
    hub.claimed_size = 10**18
    assert machine.pull()["path"]
    assert len(hub.asked("GET", "model.gguf")) == fetched == 1


def test_nothing_is_asked_but_the_file(machine: Machine, hub: Hub) -> None:
    machine.pull()
    at_hub = {path for _, path, _ in hub.requests if not path.startswith("/cdn/")}
    assert at_hub == {f"/{REPO}/resolve/main/model.gguf"}


def test_a_connection_that_breaks_off_is_taken_up_where_it_ended(machine: Machine, hub: Hub) -> None:
    # huggingface_hub writes blocks of 10 MiB: one is whole when the connection ends.
    content, block = bytes(24_000_000), 10 * 1024 * 1024
    hub.files[REPO]["big.gguf"] = content
    hub.cut_after = 15_000_000
    done = machine.pull(f"hf://{REPO}/big.gguf")
    assert [wanted for _, _, wanted in hub.asked("GET", "big.gguf")] == [None, f"bytes={block}-"]
    with open(done["path"], "rb") as file:
        assert file.read() == content
    assert [now for _, now, _ in done["progress"]] == [0, block, 2 * block, len(content)]


def test_no_room_is_told_before_the_first_byte(machine: Machine, hub: Hub) -> None:
    hub.claimed_size = 10**18
    message, hint = machine.fail()
    assert message.startswith("`model.gguf` needs 1000000000.00 GB and the disk of ")
    assert message.endswith(" GB left")
    assert "`HF_HOME`" in hint
    assert hub.asked("GET", "model.gguf") == []


def test_a_disk_that_becomes_full(machine: Machine, hub: Hub) -> None:
    # A small disk of its own, in a name space where anyone may mount one.
    mount = 'mkdir -p "$HF_HOME" && mount -t tmpfs -o size=12m tmpfs "$HF_HOME" && exec "$@"'
    own_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*own_disk, "true"], env=machine.env, capture_output=True).returncode
    ):
        pytest.skip("no name spaces here: a small disk cannot be mounted")
    hub.files[REPO]["model.gguf"] = bytes(24_000_000)
    # The Hub says less than it sends, as when another program fills the disk meanwhile.
    hub.claimed_size = 5_000_000
    machine.prefix = own_disk
    message, hint = machine.fail()
    assert message == f"the disk of `{machine.home}/hf/hub` became full"
    assert "`HF_HOME`" in hint


def test_a_file_system_with_a_limit(machine: Machine) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are a thing of POSIX")
    limit = (1_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    try:
        message, hint = machine.fail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message == f"the file system of `{machine.home}/hf/hub` takes no file of this size"
    assert "`HF_HOME`" in hint
    assert machine.leftovers() == []


def test_a_cache_that_cannot_be_written(machine: Machine) -> None:
    (machine.home / "hf").write_text("a file where a folder belongs")
    message, hint = machine.fail()
    assert message.startswith(f"`{machine.home}/hf/hub` cannot be used: ")
    assert hint == "set `HF_HOME` to a folder that you may write to"


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        (
            "hf://owner/nothing/x.gguf",
            "there is no repository `owner/nothing`, or it is private",
            "check the name; for a private repository set `HF_TOKEN` to an access token",
        ),
        (
            f"hf://{REPO}/modell.gguf",
            f"`{REPO}` has no file `modell.gguf`",
            "it has `model.gguf`, `folder/part.gguf`",
        ),
        (
            f"hf://{REPO}/model.gguf@v9",
            f"`{REPO}` has no revision `v9`",
            f"`hf://{REPO}/model.gguf` names its main branch",
        ),
        (
            "hf://owner/a..b/x.gguf",
            "the Hub allows no such repository name",
            "the form is `hf://owner/repo/file.gguf`",
        ),
    ],
)
def test_a_name_that_the_hub_does_not_have(machine: Machine, address: str, message: str, hint: str) -> None:
    assert machine.fail(address) == (message, hint)
    assert machine.run("cached", address)["path"] is None


def test_a_gated_repository_opens_with_a_token(machine: Machine, hub: Hub) -> None:
    hub.gated.add(REPO)
    assert machine.fail() == (
        f"`{REPO}` is gated: its terms must be accepted first",
        f"accept them at `{hub.url}/{REPO}`, then set `HF_TOKEN` to an access token of that account",
    )
    assert machine.pull(HF_TOKEN="hf_good")["path"]


def test_a_private_repository_opens_with_a_token(machine: Machine, hub: Hub) -> None:
    hub.private.add(REPO)
    assert machine.fail()[0] == f"there is no repository `{REPO}`, or it is private"
    assert machine.pull(HF_TOKEN="hf_good")["path"]


def test_a_wrong_token(machine: Machine) -> None:
    message, hint = machine.fail(HF_TOKEN="hf_wrong")
    assert message == "the Hub does not know the access token"
    assert "`HF_TOKEN`" in hint


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, f"the Hub refuses access to `{REPO}`"),
        (429, "the Hub refuses for now: too many requests"),
        (503, "the Hub answered with status 503"),
    ],
)
def test_a_hub_that_refuses(machine: Machine, hub: Hub, status: int, message: str) -> None:
    hub.status = status
    assert machine.fail()[0] == message


def test_offline_mode(machine: Machine, hub: Hub) -> None:
    message, hint = machine.fail(HF_HUB_OFFLINE="1")
    assert message == "`HF_HUB_OFFLINE` is set, so nothing is downloaded"
    assert hint.startswith("`unset HF_HUB_OFFLINE`, or ")
    assert hub.requests == []


def test_a_refused_connection(machine: Machine) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    message, hint = machine.fail(HF_ENDPOINT=endpoint)
    assert message == f"`{endpoint}` refuses the connection"
    assert "`HF_ENDPOINT`" in hint


def test_a_dead_proxy_is_named_without_its_password(machine: Machine) -> None:
    proxy = f"127.0.0.1:{closed_port()}"
    message, hint = machine.fail(HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=f"http://me:secret@{proxy}")
    assert message == f"`http://hub.invalid` through the proxy `{proxy}` refuses the connection"
    assert "env | grep -i proxy" in hint


def test_a_hub_that_never_answers(machine: Machine, hub: Hub) -> None:
    hub.silent = True
    assert machine.fail(HF_HUB_ETAG_TIMEOUT="1")[0] == f"`{hub.url}` did not answer in time"
    assert len(hub.requests) == 1


def test_a_download_that_stalls_ends(machine: Machine, hub: Hub) -> None:
    hub.stall_after = 1_000_000
    assert machine.fail(HF_HUB_DOWNLOAD_TIMEOUT="1")[0] == f"`{hub.url}` did not answer in time"
    assert machine.leftovers() == []


def test_no_tls(machine: Machine, hub: Hub) -> None:
    endpoint = hub.url.replace("http:", "https:")
    message, hint = machine.fail(HF_ENDPOINT=endpoint)
    assert message.startswith(f"no safe connection to `{endpoint}`: ")
    assert "`SSL_CERT_FILE`" in hint


def test_something_that_is_no_hub(machine: Machine, hub: Hub) -> None:
    hub.headless = True
    message, hint = machine.fail()
    assert message == f"`{hub.url}` does not answer as a Hub does"
    assert "`HF_ENDPOINT`" in hint


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_a_download_and_leaves_no_part(machine: Machine, hub: Hub) -> None:
    hub.stall_after = 1_000_000
    process = machine.start("download", f"hf://{REPO}/model.gguf")
    assert hub.reached.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=3)
    assert out == ""
    assert "KeyboardInterrupt" in err
    assert "DownloadFailed" not in err
    assert process.returncode in {-signal.SIGINT, 130}
    assert machine.leftovers() == []


def test_a_name_that_cannot_be_looked_up() -> None:
    # A real failure of the resolver that needs no network.
    with pytest.raises(socket.gaierror) as failure:
        socket.getaddrinfo("no.number", 443, flags=socket.AI_NUMERICHOST)
    error = ConnectionError("connection failed")
    error.__cause__ = failure.value
    assert explain(HubFile(REPO, "model.gguf"), error).message.endswith(" cannot be looked up")
