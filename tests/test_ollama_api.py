"""The daemon's API: the real `ollama` client and the real httpx against what a real Ollama sent, byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from llmdeploy.engines.ollama.api import Daemon, Layers
from llmdeploy.engines.ollama.documents import Installed, same_name
from llmdeploy.engines.ollama.probe import Answer, Probe, probe, recognise
from llmdeploy.errors import (
    DownloadFailed,
    EngineMissing,
    LlmdeployError,
    ModelInvalid,
    ModelNotFound,
    RequestFailed,
    StartFailed,
    TimedOut,
)
from llmdeploy.models.stores.ollama import full_name
from tests.conftest import BUSY, SELFTEST
from tests.ollama_replay import FORBIDDEN, HTML, SSH, Replay, closed_port, exchanges, http_answer, port, replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = "http://127.0.0.1:5055/library/tiny"
"""The model in the recordings of pulls, in a registry on the machine of the recording."""
WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
BLOBS = "/var/lib/ollama/models/blobs/sha256-"
MODEL_BLOB = BLOBS + "6f79c766f24c5a7e21b39002deb4502d1a4e056f1e31060eda1cb0f7ed292aa0"
PROJECTOR_BLOB = BLOBS + "9bdeed7a6d21f6674d464a2261848ff6595358a87c4570fdeaf898e800c72f17"


def ignore(*_: object) -> None: ...


def digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def dead_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set proxies that do not run, one of them of a kind that httpx does not support."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")


# --- The probe


def probed(url: str) -> Probe:
    began = time.monotonic()
    found = probe(url)
    assert time.monotonic() - began < 3 * BUSY
    return found


def test_running_daemon_is_recognized_with_its_version(dead_proxies: None) -> None:
    with replay("version") as ollama:
        assert probed(ollama.url) == Probe("running", "0.33.0-rc2", "Ollama 0.33.0-rc2")
        assert ollama.unknown == []


def test_path_of_the_address_precedes_every_route() -> None:
    with replay("version", "empty_store") as ollama:
        for one in ollama.exchanges:
            one["request"]["path"] = "/ollama" + one["request"]["path"]
        assert probed(f"{ollama.url}/ollama").state == "running"
        assert Daemon(f"{ollama.url}/ollama/").running() == []
        assert ollama.unknown == []


def test_closed_port_is_refused() -> None:
    found = probed(f"http://127.0.0.1:{closed_port()}")
    assert (found.state, found.version) == ("refused", None)
    assert found.detail.startswith("nothing answers at `http://127.0.0.1:")


@pytest.mark.parametrize(
    "url", ["http://no-such-host.invalid:11434", "http://a b:11434", "http://[1.2.3.4:80:90]:11434"]
)
def test_unreachable_address_is_refused(url: str) -> None:
    assert probed(url).state == "refused"


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (None, "silent", "`URL` accepts connections and does not answer"),
        (FORBIDDEN, "forbidden", "it refuses us (status 403): an Ollama behind a proxy, or its rules"),
        (http_answer("text/html", HTML), "other", "another program: a web page `Grafana` (status 200)"),
        (
            http_answer("text/html; charset=utf-8", b"<h1>gone</h1>", "502 Bad Gateway"),
            "other",
            "another program: a web page (status 502)",
        ),
        (
            http_answer("application/json", b'{"ok":true}'),
            "other",
            "another program: it answers with status 200 and `application/json`",
        ),
        (
            http_answer("application/json", b'{"version":"1.2.3"}'),
            "other",
            "it answers with status 200 and `application/json`; it has a version as Ollama has, and is another program",
        ),
        (SSH, "other", "what listens at `URL` does not speak HTTP"),
        (b"", "other", "what listens at `URL` does not speak HTTP"),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: https://h/\r\nContent-Length: 0\r\n\r\n",
            "other",
            "another program: it redirects to `https://h/`",
        ),
    ],
    ids=["silent", "forbidden", "html", "bad gateway", "json", "version", "ssh", "closes", "redirect"],
)
def test_other_programs_are_recognized(answer: bytes | None, state: str, detail: str) -> None:
    with port(answer) as url:
        found = probed(url)
    assert (found.state, found.version, found.detail) == (state, None, detail.replace("URL", url))


def test_endless_answer_is_cut() -> None:
    with port(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 1_000_000) as url:
        assert probed(url).state == "other"


def test_https_to_a_plain_http_server() -> None:
    with port(http_answer("text/html", HTML)) as url:
        assert probed(url.replace("http:", "https:")).state == "other"


def test_ollama_is_recognized_by_both_answers() -> None:
    [root, version] = [one["response"]["chunks"][0][1].encode() for one in exchanges("version")]
    assert recognise(Answer(200, {}, version), Answer(200, {}, root)).state == "running"
    assert recognise(Answer(200, {}, version), Answer(200, {}, b"KoboldCpp")).state == "other"
    assert recognise(Answer(404, {}, b"404 page not found"), Answer(200, {}, root)).state == "other"
    assert recognise(Answer(200, {}, b'{"version":5}'), Answer(200, {}, root)).state == "other"


# --- The environment

IMPORTS = """
import sys
from llmdeploy.engines.ollama import api, connection, failures, host, probe
heavy = {"ollama", "httpx", "asyncio", "pydantic"} & set(sys.modules)
assert not heavy, heavy
daemon = api.Daemon(sys.argv[1])
print(daemon.running(), probe.probe(sys.argv[1]).state)
connection._imported_ollama()
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OLLAMA_HOST": "127.0.0.1:abc"},
        {"OLLAMA_HOST": "::1"},
        {"OLLAMA_HOST": '"127.0.0.1"'},
        {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": "nonsense://x"},
        {"SSL_CERT_FILE": "/nowhere.pem"},
        {"OLLAMA_API_KEY": "key\nof two lines"},
    ],
    ids=lambda environment: " ".join(environment) or "empty",
)
def test_malformed_environment_variables_change_nothing(environment: dict[str, str]) -> None:
    with replay("version", "empty_store") as ollama:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", IMPORTS, ollama.url],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.stderr) == ("[] running\n", "")
        assert ollama.unknown == []


def test_import_leaves_the_environment_unchanged() -> None:
    script = (
        "import os; from llmdeploy.engines.ollama.connection import _imported_ollama as load; load(); "
        "print(os.environ['OLLAMA_HOST'])"
    )
    environment = {**os.environ, "OLLAMA_HOST": "127.0.0.1:abc"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("127.0.0.1:abc\n", "")


def test_cloud_api_key_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    with replay("version", "empty_store") as ollama:
        Daemon(ollama.url).running()
        Daemon(ollama.url).models()
        assert len(ollama.headers) == 2
        assert "secret" not in str(ollama.headers)


# --- Inspect


DIGESTS = (
    "d6f216e80c73d43b17e42e14e0373ab89189775c91dd1353a4ffddba5945a158",
    "1c1d384c032fcd3b1a24e0e36954c4c3f17861f6014c6d5e0e9cd72dc69bfc57",
    "3e553bd6718c59dcdaf014bb55f5f36ff6e2bed0760360601ed5b856a38ffc5d",
)


def test_models_of_the_daemon(dead_proxies: None) -> None:
    with replay("tags") as ollama:
        assert Daemon(ollama.url).models() == [
            Installed("selftest:latest", 2334040, ("completion", "vision"), 8192, digest=DIGESTS[0]),
            Installed("selftest-text:latest", 1726904, ("completion",), 8192, digest=DIGESTS[1]),
            Installed(
                "selftest-8k:latest",
                2334057,
                ("completion", "vision"),
                8192,
                parent="selftest:latest",
                digest=DIGESTS[2],
            ),
        ]


def test_models_of_a_server_before_0_30() -> None:
    # Such a server reports neither capabilities nor the context length.
    with replay("tags") as ollama:
        [chunk] = ollama.exchanges[0]["response"]["chunks"]
        document = json.loads(chunk[1])
        for model in document["models"]:
            del model["capabilities"], model["details"]["context_length"]
        chunk[1] = json.dumps(document)
        assert Daemon(ollama.url).models()[1] == Installed("selftest-text:latest", 1726904, (), None, digest=DIGESTS[1])


def test_daemon_with_an_empty_store() -> None:
    with replay("empty_store") as ollama:
        assert Daemon(ollama.url).models() == []
        assert Daemon(ollama.url).running() == []


def test_show() -> None:
    with replay("show", "tags") as ollama:
        found = Daemon(ollama.url).show("selftest")
        assert ollama.unknown == []
    assert (found.capabilities, found.architecture, found.context_length) == (("completion", "vision"), "qwen2vl", 8192)
    assert (found.layers, found.heads, found.kv_heads) == (4, (4,) * 4, (2,) * 4)
    assert (found.key_length, found.value_length, found.embedding_length, found.vocabulary_size) == (32, 32, 128, 508)
    assert found.size == 2334040
    assert found.blobs == (MODEL_BLOB, PROJECTOR_BLOB)
    assert (found.projector, found.remote_host) == (True, None)


def test_show_of_a_text_model() -> None:
    with replay("show", "tags") as ollama:
        found = Daemon(ollama.url).show("selftest-text")
    assert (found.blobs, found.projector) == ((MODEL_BLOB,), False)
    assert "vision" not in found.capabilities
    assert found.size == 1726904


def test_show_of_an_alias() -> None:
    with replay("create_alias_num_ctx", "tags") as ollama:
        found = Daemon(ollama.url).show("selftest-8k")
    assert found.blobs == (MODEL_BLOB, PROJECTOR_BLOB)


def test_heads_that_differ_between_layers_are_requested() -> None:
    # Ollama tells an array as null until it is asked for all.
    with replay("show", "tags") as ollama:
        hidden = ollama.exchanges[0]
        document = json.loads(hidden["response"]["chunks"][0][1])
        document["model_info"]["qwen2vl.attention.head_count_kv"] = None
        hidden["response"]["chunks"][0][1] = json.dumps(document)
        document["model_info"]["qwen2vl.attention.head_count_kv"] = [2, 0, 1, 2]
        told = json.loads(json.dumps(hidden))
        told["request"]["body"]["verbose"] = True
        told["response"]["chunks"][0][1] = json.dumps(document)
        ollama.exchanges.append(told)
        assert Daemon(ollama.url).show("selftest").kv_heads == (2, 0, 1, 2)
        assert ollama.unknown == []


def test_show_of_a_missing_model() -> None:
    with (
        replay("show", "tags", "version") as ollama,
        pytest.raises(ModelNotFound, match="Ollama has no model `nope:latest`"),
    ):
        Daemon(ollama.url).show("nope")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("qwen3", "qwen3:latest", True),
        ("Qwen3:8B", "qwen3:8b", True),
        ("registry.ollama.ai/library/qwen3:8b", "qwen3:8b", True),
        ("hf.co/a/b", "hf.co/a/b:latest", True),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest", True),
        ("qwen3", "qwen3:8b", False),
    ],
)
def test_names_of_the_same_model(one: str, other: str, same: bool) -> None:
    assert same_name(one, other) is same
    assert full_name(full_name(one)) == full_name(one)


# --- What is made there


def test_model_is_created_from_files() -> None:
    statuses: list[str] = []
    progress: list[tuple[str, int, int]] = []
    files = {"selftest.gguf": digest(WEIGHTS), "mmproj.gguf": digest(MMPROJ)}
    with replay("create_from_gguf") as ollama:
        daemon = Daemon(ollama.url)
        assert daemon.has_blob(digest(WEIGHTS)) is False
        daemon.push_blob(WEIGHTS, digest(WEIGHTS), lambda *now: progress.append(now))
        daemon.push_blob(WEIGHTS, digest(WEIGHTS), ignore)  # again: it is there already
        daemon.push_blob(MMPROJ, digest(MMPROJ), ignore)
        daemon.create_from_files("selftest", files, on_status=statuses.append)
        assert ollama.unknown == []
    size = WEIGHTS.stat().st_size
    assert progress == [(WEIGHTS.name, 1 << 20, size), (WEIGHTS.name, size, size)]
    assert statuses[0] == "parsing GGUF"
    assert statuses[-1] == "success"


def test_file_with_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "two.gguf"
    file.write_bytes(b"\xff\xfe")
    with replay("create_from_gguf", "tags", "version") as ollama, pytest.raises(ModelInvalid, match="not what it was"):
        Daemon(ollama.url).push_blob(file, "sha256:" + "0" * 64, ignore)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="cannot be read: No such file"):
        Daemon("http://127.0.0.1:1").push_blob(tmp_path / "gone.gguf", "sha256:0", ignore)


def test_alias_of_an_existing_model_is_created() -> None:
    with replay("create_alias_num_ctx", "show") as ollama:
        Daemon(ollama.url).create_alias("selftest-8k", "selftest", {"num_ctx": 8192})
        assert ollama.unknown == []
        [sent] = ollama.asked("/api/create")
        assert (sent["from"], sent["parameters"]) == ("selftest", {"num_ctx": 8192})


def test_alias_of_a_missing_model_is_not_requested() -> None:
    # Ollama would begin to download it.
    with replay("create_alias_num_ctx", "show", "tags", "version") as ollama:
        with pytest.raises(ModelNotFound, match="nope"):
            Daemon(ollama.url).create_alias("selftest-8k", "nope", {"num_ctx": 8192})
        assert ollama.asked("/api/create") == []


def test_alias_whose_base_disappears_stops_the_download() -> None:
    with replay("create_alias_num_ctx", "show", "tags", "version", hold_after=3) as ollama:
        [creation] = [one for one in ollama.exchanges if (one["request"]["body"] or {}).get("from")]
        creation["response"]["chunks"] = exchanges("pull_progress")[0]["response"]["chunks"]
        with pytest.raises(ModelNotFound, match="selftest"):
            Daemon(ollama.url).create_alias("selftest-8k", "selftest", {"num_ctx": 8192})
        assert ollama.hung_up.wait(2)


def test_delete_of_existing_and_missing_models() -> None:
    with replay("copy_delete", "tags", "version") as ollama:
        daemon = Daemon(ollama.url)
        daemon.delete("copy")
        daemon.delete("copy")  # 404: it is deleted already
        assert ollama.unknown == []
        assert [request[:2] for request in ollama.requests][:2] == [
            ("DELETE", "/api/delete"),
            ("DELETE", "/api/delete"),
        ]


# --- Pull


def pulled(ollama: Replay, tag: str, on_progress: Callable[[str, int, int], None] = ignore) -> None:
    Daemon(ollama.url).pull(f"{TINY}:{tag}", on_progress)


@pytest.mark.parametrize("name", ["pull_progress", "pull_ok"])
def test_progress_reaches_the_total_and_never_decreases(name: str, dead_proxies: None) -> None:
    seen: list[tuple[str, int, int]] = []
    layers: dict[str, int] = {}
    sums = []

    def on_progress(layer: str, done: int, total: int) -> None:
        seen.append((layer, done, total))
        layers[layer] = done
        sums.append(sum(layers.values()))

    with replay(name) as ollama:
        pulled(ollama, "ok", on_progress)
        assert ollama.asked("/api/pull") == [{"model": f"{TINY}:ok", "insecure": False, "stream": True}]
    assert {layer for layer, _, _ in seen} == {"7824df67ad67", "e5dcffe836b6"}
    for layer, size in (("7824df67ad67", 9082336), ("e5dcffe836b6", 3)):
        done = [now for name, now, _ in seen if name == layer]
        assert done == sorted(done)
        assert done[-1] == size
    assert len(seen) > 15
    assert sums == sorted(sums)
    assert sums[-1] == 9082339


def test_decreasing_numbers_are_corrected() -> None:
    seen: list[int] = []
    with replay("pull_progress") as ollama:
        chunks = ollama.exchanges[0]["response"]["chunks"]
        chunks[5], chunks[9] = chunks[9], chunks[5]  # as after a retry
        pulled(ollama, "ok", lambda layer, done, total: seen.append(done if total > 3 else 9082336))
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("recording", "tag", "kind", "message"),
    [
        (
            "pull_bad",
            "bad",
            DownloadFailed,
            "what arrived is not what Ollama's registry sent: a proxy or a virus scanner changed it",
        ),
        ("pull_boom", "boom", DownloadFailed, "Ollama's registry has a failure (503): upstream sad"),
        ("pull_gone", "gone", ModelNotFound, f"Ollama's registry has no `{TINY}:gone`"),
        (
            "pull_html",
            "html",
            DownloadFailed,
            "a web page answers instead of Ollama's registry: the network wants a login, or a proxy is in between",
        ),
        (
            "pull_new",
            "new",
            DownloadFailed,
            f"`{TINY}:new` needs a newer Ollama server than the one that runs (0.33.0-rc2)",
        ),
        ("pull_not_streamed", "gone", ModelNotFound, f"Ollama's registry has no `{TINY}:gone`"),
    ],
)
def test_recorded_failure_has_its_message(recording: str, tag: str, kind: type[LlmdeployError], message: str) -> None:
    with replay(recording, "version", "tags") as ollama:
        # An error may come with a status of its own, or as a line behind status 200.
        ollama.exchanges[0]["request"]["body"].pop("stream", None)
        with pytest.raises(LlmdeployError) as caught:
            pulled(ollama, tag)
        assert ollama.unknown == []
    assert (type(caught.value), caught.value.message) == (kind, message)
    assert caught.value.hint


def test_refused_registry_and_invalid_name() -> None:
    with replay("pull_refused", "version", "tags") as ollama:
        with pytest.raises(DownloadFailed, match=r"`127\.0\.0\.1:9` refuses Ollama's server"):
            Daemon(ollama.url).pull("http://127.0.0.1:9/library/tiny:ok", ignore)
        with pytest.raises(ModelNotFound, match="does not allow the name `bad name!`"):
            Daemon(ollama.url).pull("bad name!", ignore)
        assert ollama.unknown == []


def test_full_disk_reports_the_missing_bytes() -> None:
    with replay("pull_progress", "version", "tags") as ollama:
        chunks = ollama.exchanges[0]["response"]["chunks"]
        words = "write /data/models/blobs/sha256-78-partial: no space left on device"
        del chunks[3:]
        chunks.append([0, json.dumps({"error": words}) + "\n"])
        with pytest.raises(DownloadFailed) as caught:
            pulled(ollama, "ok")
    assert caught.value.message == "the disk of Ollama's store `/data/models` is full: 0.01 GB are still to come"


@pytest.mark.parametrize("cut_after", [1, 5])
def test_daemon_that_dies_during_a_pull(cut_after: int) -> None:
    with replay("pull_progress", "version", "tags", cut_after=cut_after) as ollama:
        with pytest.raises(DownloadFailed) as caught:
            pulled(ollama, "ok")
        assert caught.value.message == f"Ollama at `{ollama.url}` broke off its answer"
        assert caught.value.hint.startswith("run it again: what is there is kept")


def test_pull_without_its_last_line_fails() -> None:
    with replay("pull_progress", "version", "tags") as ollama:
        del ollama.exchanges[0]["response"]["chunks"][-1]
        with pytest.raises(DownloadFailed, match="broke off its answer"):
            pulled(ollama, "ok")


def test_exception_in_on_progress_closes_the_connection() -> None:
    def on_progress(layer: str, done: int, total: int) -> None:
        raise ZeroDivisionError

    with replay("pull_progress", hold_after=4) as ollama:
        with pytest.raises(ZeroDivisionError):
            pulled(ollama, "ok", on_progress)
        assert ollama.hung_up.wait(2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send SIGINT to itself")
def test_interrupt_closes_the_connection() -> None:
    with replay("pull_progress", slower=0.1, hold_after=4) as ollama:

        def interrupt() -> None:
            ollama.holding.wait(10)
            os.kill(os.getpid(), signal.SIGINT)

        killer = threading.Thread(target=interrupt)
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            pulled(ollama, "ok")
        killer.join()
        assert ollama.hung_up.wait(2)


def test_silent_pull_times_out() -> None:
    with replay("pull_progress", "version", "tags", hold_after=4) as ollama:
        with pytest.raises(TimedOut, match="does not answer in time"):
            Daemon(ollama.url).pull(f"{TINY}:ok", ignore, silence=0.3)
        assert ollama.hung_up.wait(2)


def test_stalled_pull_times_out() -> None:
    # Ollama says the same number every 60 ms, for ever.
    with replay("pull_progress", slower=1.0) as ollama:
        chunks = ollama.exchanges[0]["response"]["chunks"]
        chunks[4:] = [[0.3 + number * 0.06, chunks[3][1]] for number in range(100)]
        with pytest.raises(TimedOut, match=r"got nothing more of .* for 0\.5 s"):
            Daemon(ollama.url).pull(f"{TINY}:ok", ignore, stall=0.5)
        assert ollama.hung_up.wait(2)


def test_missing_bytes_of_all_layers() -> None:
    layers = Layers()
    assert layers.missing == 0
    assert layers.update("a", 5, 10)
    assert not layers.update("a", 3, 10)
    assert layers["a"] == (5, 10)
    assert layers.update("b", 99, 20)
    assert (layers.missing, layers.unfinished()) == (5, ["a"])


# --- What is in memory


def test_load_and_unload(dead_proxies: None) -> None:
    with replay("load_unload") as ollama:
        daemon = Daemon(ollama.url)
        asyncio.run(daemon.load("selftest"))
        [running] = daemon.running()
        daemon.unload("selftest")
        assert daemon.wait_released("selftest", 2)
        assert ollama.unknown == []
        assert [body["keep_alive"] for body in ollama.asked("/api/generate")] == [-1, 0]
    assert (running.name, running.size, running.size_vram) == ("selftest:latest", 463418161, 0)
    assert running.context_length == 4096
    assert running.expires_at is not None
    assert running.expires_at.year == 2319


def test_model_that_stays_in_memory_is_reported() -> None:
    with replay("load_unload") as ollama:
        del ollama.exchanges[3]
        assert not Daemon(ollama.url).wait_released("selftest", 0.3)
        assert Daemon(ollama.url).wait_released("another", 0)


def test_failed_load_has_its_message() -> None:
    # The message is recorded from another route: Ollama wraps all messages in the same way.
    with replay("load_unload", "version", "tags") as ollama:
        ollama.exchanges[0]["response"] = exchanges("chat_errors")[0]["response"]
        with pytest.raises(ModelNotFound, match="Ollama has no model `nope`"):
            asyncio.run(Daemon(ollama.url).load("selftest"))


def test_cancelled_load_closes_the_connection() -> None:
    with replay("load_unload", hold_after=0) as ollama:

        async def cancelled() -> None:
            load = asyncio.create_task(Daemon(ollama.url).load("selftest"))
            await asyncio.to_thread(ollama.holding.wait, 10)
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load

        asyncio.run(cancelled())
        assert ollama.hung_up.wait(2)


def test_slow_load_times_out() -> None:
    with replay("load_unload", hold_after=0) as ollama, pytest.raises(TimedOut, match="does not answer in time"):
        asyncio.run(Daemon(ollama.url).load("selftest", timeout=0.3))


def test_unload_of_a_missing_model_is_not_an_error() -> None:
    with replay("load_unload", "version", "tags") as ollama:
        ollama.exchanges[2]["response"] = exchanges("chat_errors")[0]["response"]
        Daemon(ollama.url).unload("selftest")
        assert ollama.unknown == []


# --- Servers that are not Ollama, for every call

CALLS: dict[str, Callable[[Daemon], object]] = {
    "models": lambda daemon: daemon.models(),
    "show": lambda daemon: daemon.show("selftest"),
    "running": lambda daemon: daemon.running(),
    "has_blob": lambda daemon: daemon.has_blob("sha256:00"),
    "push_blob": lambda daemon: daemon.push_blob(WEIGHTS, "sha256:00", ignore),
    "create": lambda daemon: daemon.create_from_files("x", {"x.gguf": "sha256:00"}),
    "alias": lambda daemon: daemon.create_alias("y", "x", {}),
    "delete": lambda daemon: daemon.delete("x"),
    "pull": lambda daemon: daemon.pull("x", ignore),
    "load": lambda daemon: asyncio.run(daemon.load("x")),
    "unload": lambda daemon: daemon.unload("x"),
    "wait_released": lambda daemon: daemon.wait_released("x", 1),
}
NO_DOCUMENT = {"has_blob", "push_blob", "delete"}
"""The status alone is the answer."""


@pytest.mark.parametrize("call", CALLS)
def test_every_call_reports_a_closed_port(call: str, dead_proxies: None) -> None:
    daemon = Daemon(f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(EngineMissing, match="no Ollama answers at `http://127") as caught:
        CALLS[call](daemon)
    assert "`ollama serve`" in caught.value.hint


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [FORBIDDEN, http_answer("text/html", HTML, "502 Bad Gateway"), SSH, b""],
    ids=["forbidden", "bad gateway", "ssh", "closes"],
)
def test_every_call_reports_another_program(call: str, answer: bytes) -> None:
    with port(answer) as url, pytest.raises((RequestFailed, DownloadFailed, StartFailed)) as caught:
        CALLS[call](Daemon(url))
    assert caught.value.hint
    assert "Grafana" not in caught.value.message


SHAPES = [
    b"[]",
    b"null",
    b'"text"',
    b"{",
    b'{"models":5}',
    b'{"models":[{"name":5}]}',
    b'{"status":5}',
    b'{"error":[1]}',
]


@pytest.mark.parametrize("call", sorted(CALLS.keys() - NO_DOCUMENT))
@pytest.mark.parametrize("body", [HTML, *SHAPES])
def test_every_call_survives_json_of_another_shape(call: str, body: bytes) -> None:
    # The result is an error of llmdeploy or, if the shape happens to be right, an answer.
    with port(http_answer("application/json", body)) as url:
        error = failure(lambda: CALLS[call](Daemon(url)))
    assert error is None or error.hint
    assert error is not None or body.startswith(b'{"')


def failure(call: Callable[[], object]) -> LlmdeployError | None:
    try:
        call()
    except LlmdeployError as error:
        return error
    return None


def test_remote_host_is_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    # The hint of a failure names the remote machine.
    with replay("empty_store") as proxy:
        for one in proxy.exchanges:
            one["request"]["path"] = "http://gpu.example:11434" + one["request"]["path"]
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert Daemon("http://gpu.example:11434").running() == []
    with pytest.raises(EngineMissing) as caught:
        Daemon("http://gpu.example:11434").running()
    assert caught.value.hint.startswith("on `gpu.example:11434`: start it")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://127.0.0.1"])
@pytest.mark.parametrize("call", ["models", "running", "load", "pull"])
def test_unusable_proxy_is_reported(call: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(EngineMissing, match=r"`http://gpu\.example:11434` cannot be reached: "):
        CALLS[call](Daemon("http://gpu.example:11434"))
