"""ModelScope: its API on loopback, and the cache that it shares with its own library.

Each command is a process of its own, as in test_hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmdeploy.models import source
from llmdeploy.models.modelscope import at_modelscope
from llmdeploy.models.modelscope.names import _prefixes
from llmdeploy.models.reference import HubFile, HubRepo, parse
from tests.conftest import SELFTEST
from tests.hub_server import COMMIT, Refusal, closed_port
from tests.modelscope_server import Scope, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "Qwen/Qwen3.5-0.8B"
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB
CONFIG = b'{"model_type": "qwen3"}'
FILES: dict[str, Any] = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "folder/part.gguf": b"GGUF" * 9}
SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from llmdeploy.errors import LlmdeployError
from llmdeploy.models import gguf, hf_model, source, transfer
from llmdeploy.models.reference import HubFile, HubRepo, parse

def digest(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()

def model(weights):
    before = weights.is_present(), weights.requirements().missing
    weights.download(lambda *now: None)
    after = weights.is_present(), weights.requirements().missing
    return before, after, [file.name for file in weights.local_files()]

def pulled(repo, *names):
    listing = origin.listing(parse(repo))
    transfer.fetch(listing, source.chosen(listing, names), lambda *now: None)
    return [str(origin.cached(HubFile(listing.repo.repo, name, listing.repo.revision, "ms"))) for name in names]

origin = source.origin("ms")
try:
    print(json.dumps(eval(sys.argv[1]), default=str))
except LlmdeployError as error:
    print(json.dumps(error.as_document()))
"""


@pytest.fixture
def scope() -> Iterator[Scope]:
    with serve(Scope(files={REPO: dict(FILES)})) as scope:
        yield scope


class Machine:
    """A machine with an empty home that knows one ModelScope."""

    def __init__(self, home: Path, endpoint: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "SYSTEMROOT", "TMPDIR", "TEMP"}}
        self.cache = home / ".cache" / "modelscope"
        self.env = {**inherited, "HOME": str(home), "MODELSCOPE_ENDPOINT": endpoint}

    def run(self, expression: str, **variables: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, expression],
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def pull(self, *names: str, revision: str = "", **variables: str) -> list[str]:
        """Download files; return their paths."""
        done: list[str] = self.run(f"pulled('ms://{REPO}{revision}', *{names!r})", **variables)
        assert isinstance(done, list), done
        return done

    def fail(
        self,
        expression: str = f"pulled('ms://{REPO}', 'model.safetensors')",
        code: str = "download_failed",
        **variables: str,
    ) -> tuple[str, str]:
        """Run what must fail; return its message and hint."""
        error = self.run(expression, **variables)["error"]
        assert error["code"] == code
        return error["message"], error["hint"]

    def snapshot(self, revision: str) -> Path:
        return self.cache / "models" / "Qwen--Qwen3.5-0.8B" / "snapshots" / revision

    def library(self, code: str, **variables: str) -> str:
        """Run code with ModelScope's own library; return its result."""
        if importlib.util.find_spec("modelscope_hub") is None:
            pytest.skip("modelscope-hub is not installed")
        done = subprocess.run(
            [sys.executable, "-c", f"from modelscope_hub import HubApi\napi = HubApi()\n{code}"],
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def machine(scope: Scope, tmp_path: Path) -> Machine:
    return Machine(tmp_path, scope.url)


def test_repository_is_listed_with_sizes_and_digests(machine: Machine) -> None:
    commit, files = machine.run(
        f"(lambda it: (it.commit, sorted((f.path, f.size, f.digest) for f in it.files)))(origin.listing(parse('ms://{REPO}')))"
    )
    assert commit == COMMIT
    assert files == [
        [name, len(content), hashlib.sha256(content).hexdigest()] for name, content in sorted(FILES.items())
    ]


def test_download_is_found_without_modelscope(machine: Machine, scope: Scope) -> None:
    assert machine.run(f"origin.cached_paths(parse('ms://{REPO}'))") == []
    assert scope.requests == []
    placed = machine.pull(*FILES)
    assert {Path(path).relative_to(machine.snapshot(COMMIT)).as_posix() for path in placed} == set(FILES)
    asked = len(scope.requests)
    for revision in ("", f"@{COMMIT}"):
        held = machine.run(
            f"[digest(origin.cached(HubFile('{REPO}', path, parse('ms://{REPO}{revision}').revision, 'ms')))"
            f" for path in origin.cached_paths(parse('ms://{REPO}{revision}'))]"
        )
        assert held == [hashlib.sha256(FILES[name]).hexdigest() for name in sorted(FILES)]
    assert machine.run(f"origin.cached(HubFile('{REPO}', 'config.json', 'v2', 'ms'))") is None
    assert len(scope.requests) == asked


def test_file_is_stored_once_and_found_by_branch_and_commit(machine: Machine) -> None:
    [placed] = machine.pull("config.json")
    assert Path(placed).samefile(machine.snapshot("master") / "config.json")
    assert source.commit_of([Path(placed)]) == COMMIT
    assert machine.run("origin.repositories(origin.cache())") == [
        [f"ms://{REPO}", str(machine.snapshot("master"))],
        [f"ms://{REPO}@{COMMIT}", str(machine.snapshot(COMMIT))],
    ]


def test_new_commit_of_a_branch_keeps_the_old_commit(machine: Machine, scope: Scope) -> None:
    machine.pull("config.json")
    later = scope.commit(REPO, {"config.json": b"{}"})
    machine.pull("config.json")
    assert machine.run(f"origin.cached(HubFile('{REPO}', 'config.json', 'master', 'ms')).read_text()") == "{}"
    assert (machine.snapshot("master") / "config.json").read_bytes() == b"{}"
    assert (machine.snapshot(later) / "config.json").read_bytes() == b"{}"
    assert (machine.snapshot(COMMIT) / "config.json").read_bytes() == CONFIG
    revisions = [Path(folder).name for _, folder in machine.run("origin.repositories(origin.cache())")]
    assert revisions == ["master", *sorted([COMMIT, later])]


def test_file_of_two_commits_is_downloaded_and_stored_once(machine: Machine, scope: Scope) -> None:
    machine.pull("config.json", "model.safetensors")
    later = scope.commit(REPO, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    machine.pull("config.json", "model.safetensors")
    assert scope.sent_bytes() == len(CONFIG) + len(WEIGHTS) + len(b"{}")
    weights = machine.snapshot(later) / "model.safetensors"
    assert weights.samefile(machine.snapshot("master") / "model.safetensors")
    assert weights.samefile(machine.snapshot(COMMIT) / "model.safetensors")


def test_other_weights_of_the_same_size_are_downloaded(machine: Machine, scope: Scope) -> None:
    machine.pull("model.safetensors")
    scope.commit(REPO, {"model.safetensors": WEIGHTS[::-1]})
    assert Path(machine.pull("model.safetensors")[0]).read_bytes() == WEIGHTS[::-1]
    assert (machine.snapshot(COMMIT) / "model.safetensors").read_bytes() == WEIGHTS


def test_present_file_is_not_downloaded_again(machine: Machine, scope: Scope) -> None:
    machine.pull(*FILES)
    sent = scope.sent_bytes()
    machine.pull(*FILES)
    assert scope.sent_bytes() == sent == sum(map(len, FILES.values()))


def test_changed_bytes_are_refused(machine: Machine, scope: Scope) -> None:
    scope.wrong = {"model.safetensors"}
    message, _ = machine.fail()
    assert message.startswith(f"the download of `model.safetensors` is not what `ms://{REPO}` lists: ")
    assert machine.run(f"origin.cached_paths(parse('ms://{REPO}'))") == []


def test_too_small_disk_is_reported_before_the_first_byte(machine: Machine, scope: Scope) -> None:
    scope.claimed_size = 10**18
    message, hint = machine.fail(code="disk_full")
    assert message.startswith(f"`ms://{REPO}` needs 931322574.6 GiB more, and the disk of `{machine.cache}` has ")
    assert "`MODELSCOPE_CACHE`" in hint
    assert scope.sent == []


def test_interrupted_update_is_not_whole(machine: Machine, scope: Scope) -> None:
    machine.pull("config.json", "model.safetensors")
    scope.commit(REPO, {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]})
    scope.failing, scope.stall_after = "model", 1_000_000
    # The first one is placed last: here that is the weights.
    machine.fail(f"pulled('ms://{REPO}', 'model.safetensors', 'config.json')", MODELSCOPE_DOWNLOAD_TIMEOUT="0.2")
    held = machine.run(f"origin.cached_paths(parse('ms://{REPO}'))")
    assert held in (["config.json"], ["config.json", "model.safetensors"])
    found = machine.run(f"[digest(origin.cached(HubFile('{REPO}', n, 'master', 'ms'))) for n in {held!r}]")
    old, new = ([hashlib.sha256(it).hexdigest() for it in files] for files in ([CONFIG, WEIGHTS], [b"{}"]))
    assert found in (old, new), "a mixture of two commits"


def test_commit_and_tag_are_revisions(machine: Machine, scope: Scope) -> None:
    old = scope.commit(REPO, {"config.json": b"old"}, ref="refs/tags/v1")
    assert Path(machine.pull("config.json", revision="@v1")[0]).read_bytes() == b"old"
    assert machine.pull("config.json", revision=f"@{old}") == [str(machine.snapshot(old) / "config.json")]


@pytest.mark.parametrize("partial", [200, 206])
def test_download_is_resumed(machine: Machine, scope: Scope, partial: int) -> None:
    scope.partial = partial
    part = machine.snapshot(COMMIT) / "model.safetensors.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:3_000_000])
    assert Path(machine.pull("model.safetensors")[0]).read_bytes() == WEIGHTS
    assert scope.sent_bytes() == len(WEIGHTS) - 3_000_000
    assert not part.exists()


def test_connection_that_ends_early_is_resumed(machine: Machine, scope: Scope) -> None:
    scope.cut_after = 2_000_000
    machine.pull("model.safetensors")
    assert [asked for _, path, asked in scope.requests if "/cdn/" in path] == [None, "bytes=2000000-"]
    assert (scope.sent_bytes(), scope.sent_twice()) == (len(WEIGHTS), 0)


def test_storage_without_ranges_sends_the_whole_file_again(machine: Machine, scope: Scope) -> None:
    scope.cut_after = 2_000_000
    scope.ignores_range = True
    assert Path(machine.pull("model.safetensors")[0]).read_bytes() == WEIGHTS


def test_too_long_partial_file_is_started_again(machine: Machine) -> None:
    part = machine.snapshot(COMMIT) / "model.safetensors.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"0" * (len(WEIGHTS) + 1))
    assert Path(machine.pull("model.safetensors")[0]).read_bytes() == WEIGHTS


def test_file_at_modelscope_is_read_by_ranges(machine: Machine, scope: Scope) -> None:
    read = f"(lambda file: (file.seek(4_000_000), file.read(8).hex()))(origin.open_remote(parse('ms://{REPO}/{{}}')))"
    scope.files[REPO]["big.gguf"] = WEIGHTS
    assert machine.run(read.format("big.gguf"))[1] == WEIGHTS[4_000_000:4_000_008].hex()
    assert scope.sent_bytes() < 300_000
    whole = f"origin.open_remote(HubFile('{REPO}', 'config.json', 'master', 'ms')).read().decode()"
    assert machine.run(whole) == CONFIG.decode()


# --- Models


def test_model_in_hugging_face_form_is_pulled(machine: Machine, scope: Scope) -> None:
    scope.files[REPO]["tokenizer.json"] = b"[]"
    before, after, files = machine.run(f"model(hf_model.find(parse('ms://{REPO}')))")
    assert before == [False, len(CONFIG) + len(WEIGHTS) + len(b"[]")]
    assert after == [True, 0]
    assert files == ["config.json", "model.safetensors"]
    folder = machine.run(f"hf_model.find(parse('ms://{REPO}')).folder", MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    assert folder == str(machine.snapshot(COMMIT))


def test_quantization_of_a_gguf_repository_is_pulled(machine: Machine, scope: Scope) -> None:
    scope.files["owner/x-GGUF"] = {"x-Q4_K_M.gguf": b"GGUF4", "x-Q8_0.gguf": b"GGUF8", "mmproj-F16.gguf": b"GGUF"}
    before, after, files = machine.run("model(gguf.find(parse('ms://owner/x-GGUF:Q8_0')))")
    assert (before, after) == ([False, 9], [True, 0])
    assert files == ["x-Q8_0.gguf", "mmproj-F16.gguf"]
    assert machine.run("gguf.find(parse('ms://owner/x-GGUF:Q4_K_M')).is_present()") is False
    assert machine.run("gguf.find(parse('ms://owner/x-GGUF/x-Q8_0.gguf')).is_present()") is True


def test_facts_are_read_at_modelscope(machine: Machine, scope: Scope) -> None:
    form, gguf = SELFTEST / "hf", SELFTEST / "selftest-f16.gguf"
    scope.files["owner/selftest"] = {path.name: path.read_bytes() for path in form.iterdir()}
    scope.files["owner/selftest"]["selftest-f16.gguf"] = gguf.read_bytes() + bytes(8_000_000)
    facts = "(lambda it: [it.layers, it.embedding_length, it.vocabulary_size])({}.facts())"

    there = machine.run(facts.format("gguf.find(parse('ms://owner/selftest/selftest-f16.gguf'))"))
    assert there == machine.run(facts.format(f"gguf.find(parse({str(gguf)!r}))"))
    assert scope.sent_bytes() < 2_000_000
    there = machine.run(facts.format("hf_model.find(parse('ms://owner/selftest'))"))
    assert there == machine.run(facts.format(f"hf_model.find(parse({str(form)!r}))"))
    assert not machine.cache.exists()


def test_storage_without_ranges_does_not_send_a_model_for_its_header(machine: Machine, scope: Scope) -> None:
    scope.files[REPO]["big.gguf"] = bytes(20_000_000)
    scope.ignores_range = True
    read = f"(lambda file: (file.seek({{}}), file.read(8).hex()))(origin.open_remote(parse('ms://{REPO}/big.gguf')))"
    assert machine.run(read.format(1000))[1] == "00" * 8
    message, _ = machine.fail(read.format(15_000_000))
    assert (
        message
        == f"`{scope.url}` sends `ms://{REPO}/big.gguf` only as a whole, which is too much for reading its header"
    )


# --- The library's own way


def test_library_finds_our_download(machine: Machine, scope: Scope) -> None:
    machine.pull(*FILES)
    sent = scope.sent_bytes()
    folder = machine.library(f"print(api.download_repo({REPO!r}, 'model'))")
    assert folder == str(machine.snapshot("master"))
    assert machine.library(f"print(api.download_repo({REPO!r}, 'model', local_files_only=True))") == folder
    assert machine.library(f"print(api.download_file({REPO!r}, 'model', 'config.json', revision={COMMIT!r}))") == str(
        machine.snapshot(COMMIT) / "config.json"
    )
    # Of our files it has fetched none, whatever else it asked.
    assert scope.sent_bytes() == sent


def test_download_of_the_library_is_found(machine: Machine) -> None:
    folder = machine.library(f"print(api.download_repo({REPO!r}, 'model'))")
    assert machine.run(f"origin.cached_paths(parse('ms://{REPO}'))") == sorted(FILES)
    found = machine.run(f"origin.cached(parse('ms://{REPO}/folder/part.gguf'))")
    assert found == f"{folder}/folder/part.gguf"
    assert source.commit_of([Path(found)]) is None


def test_download_of_the_library_is_not_repeated(machine: Machine, scope: Scope) -> None:
    machine.library(f"api.download_repo({REPO!r}, 'model')")
    sent = scope.sent_bytes()
    machine.pull(*FILES)
    assert scope.sent_bytes() == sent
    assert (machine.snapshot(COMMIT) / "config.json").samefile(machine.snapshot("master") / "config.json")


def test_file_of_the_library_is_found_after_ours_is_removed(machine: Machine) -> None:
    machine.pull(*FILES)
    shutil.rmtree(machine.snapshot(COMMIT))
    assert machine.run(f"origin.cached_paths(parse('ms://{REPO}'))") == sorted(FILES)
    shutil.rmtree(machine.snapshot("master"))
    assert machine.run(f"origin.cached_paths(parse('ms://{REPO}'))") == []


def test_library_replaces_the_file_of_a_branch_and_keeps_the_commit(machine: Machine, scope: Scope) -> None:
    machine.pull("model.safetensors")
    scope.commit(REPO, {"model.safetensors": b"new weights"})
    machine.library(f"api.download_repo({REPO!r}, 'model')")
    assert (machine.snapshot("master") / "model.safetensors").read_bytes() == b"new weights"
    assert (machine.snapshot(COMMIT) / "model.safetensors").read_bytes() == WEIGHTS


def test_both_take_the_same_lock(machine: Machine) -> None:
    ours = machine.run(
        f"(lambda it: origin.lock(it, source.chosen(it, ['config.json'])[0]))(origin.listing(parse('ms://{REPO}')))"
    )
    theirs = machine.library(f"print(api.downloader._lock_path({REPO!r}, 'model', file_path='config.json'))")
    assert ours == theirs


@pytest.mark.parametrize("base", ["hub/models", "models"])
def test_cache_of_an_older_library_is_read_and_filled(machine: Machine, scope: Scope, base: str) -> None:
    folder = machine.cache / base / "Qwen" / "Qwen3___5-0___8B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / ".msc").write_bytes(b"an index")
    cached = f"origin.cached(HubFile('{REPO}', 'config.json', '{{}}', 'ms'))"
    assert machine.run(cached.format("master")) == str(folder / "config.json")
    assert machine.run(cached.format(COMMIT)) is None
    assert machine.run("origin.repositories(origin.cache())") == [[f"ms://{REPO}", str(folder)]]
    machine.pull("config.json", "model.safetensors")
    assert scope.sent_bytes() == len(WEIGHTS)
    assert (folder / "model.safetensors").samefile(machine.snapshot(COMMIT) / "model.safetensors")
    assert machine.library(f"print(api.download_repo({REPO!r}, 'model', local_files_only=True))") == str(folder)


def test_cache_is_in_the_folder_of_the_variable(machine: Machine, tmp_path: Path) -> None:
    placed = machine.pull("config.json", MODELSCOPE_CACHE=str(tmp_path / "other"))
    assert placed[0].startswith(str(tmp_path / "other" / "models"))


# --- What goes wrong


@pytest.mark.parametrize(
    ("expression", "message", "hint"),
    [
        (
            "origin.listing(parse('ms://Qwen/Nothing'))",
            "there is no repository `Qwen/Nothing` at ModelScope, or it is private",
            "search its owner at `{url}/models?name=Nothing`; for a private one set `MODELSCOPE_API_TOKEN` to an access"
            " token (`{url}/my/access/token`)",
        ),
        (
            f"origin.listing(parse('ms://{REPO}@v9'))",
            f"`{REPO}` has no revision `v9` at ModelScope",
            f"`ms://{REPO}` names its main branch",
        ),
        (
            f"origin.listing(parse('ms://{REPO}@{'0' * 40}'))",
            f"`{REPO}` has no revision `{'0' * 40}` at ModelScope",
            f"`ms://{REPO}` names its main branch",
        ),
        (
            f"origin.open_remote(parse('ms://{REPO}/x.gguf'))",
            f"`{REPO}` has no file `x.gguf` at ModelScope",
            f"its files are listed at {{url}}/models/{REPO}/files",
        ),
    ],
)
def test_unknown_name_is_reported(machine: Machine, scope: Scope, expression: str, message: str, hint: str) -> None:
    assert machine.fail(expression) == (message, hint.format(url=scope.url))


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_restricted_repository_opens_with_a_token(machine: Machine, scope: Scope, kind: str) -> None:
    getattr(scope, kind).add(REPO)
    message, hint = machine.fail(MODELSCOPE_API_TOKEN="ms-wrong")
    assert message == f"ModelScope gives no access to `{REPO}`: it is private, or its terms must be accepted first"
    assert hint.startswith(
        f"accept them at `{scope.url}/models/{REPO}`, and set `MODELSCOPE_API_TOKEN` to an access token"
    )
    assert "ms-wrong" not in message + hint
    assert Path(machine.pull("model.safetensors", MODELSCOPE_API_TOKEN="ms-good")[0]).read_bytes() == WEIGHTS
    assert scope.first_tokens == ("Bearer ms-good", "m_session_id=ms-good")
    assert scope.leaked == [], "the store got the token"


@pytest.mark.parametrize("token", ["ms secret", "ms\nsecret", "ms-sécret"])
def test_invalid_token_is_not_shown(machine: Machine, scope: Scope, token: str) -> None:
    message, hint = machine.fail(MODELSCOPE_API_TOKEN=token)
    assert message.startswith("`MODELSCOPE_API_TOKEN` has a blank or a letter that is not ASCII")
    assert "cret" not in message + hint
    assert scope.requests == []


@pytest.mark.parametrize(
    ("refusal", "message", "hint"),
    [
        (Refusal(401), "ModelScope does not know the access token", "or unset it"),
        (Refusal(429), "ModelScope refuses for now: too many requests", "wait some minutes"),
        (
            Refusal(429, headers={"Retry-After": "70"}),
            "ModelScope refuses for now: too many requests",
            "wait some minutes (70 s, it says)",
        ),
        (Refusal(503), "ModelScope answered with status 503", "try again later"),
        (Refusal(503, part="/cdn/"), "ModelScope answered with status 503", "try again later"),
    ],
)
def test_refusal_of_modelscope_is_reported(
    machine: Machine, scope: Scope, refusal: Refusal, message: str, hint: str
) -> None:
    scope.refusals.append(refusal)
    told = machine.fail()
    assert told[0] == message
    assert told[1].endswith(hint)


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"Code": 200, "Data": null}', b'{"Code": 200, "Data": {"Commit": [7]}}']
)
def test_server_that_is_not_modelscope_is_reported(machine: Machine, scope: Scope, body: bytes) -> None:
    scope.body = body
    message, hint = machine.fail()
    assert message == f"`{scope.url}` does not answer as ModelScope does"
    assert "`MODELSCOPE_ENDPOINT`" in hint


@pytest.mark.parametrize("trap", ["../../outside", "/etc/outside", "a\\..\\outside"])
def test_path_outside_the_cache_is_refused(machine: Machine, scope: Scope, trap: str) -> None:
    scope.traps = (trap,)
    assert machine.fail()[0] == f"`{scope.url}` lists `{trap}`, which is not a path in a repository"


def test_reference_outside_the_cache_finds_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.snapshot("master").mkdir(parents=True)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    up = "../" * 6
    assert (machine.snapshot("master") / f"{up}x.gguf").is_file()
    assert machine.run(f"origin.cached(HubFile('{REPO}', '{up}x.gguf', 'master', 'ms'))") is None


def test_repository_with_too_many_files_is_refused(machine: Machine, scope: Scope) -> None:
    scope.files[REPO] |= {f"{at}.txt": b"" for at in range(3000)}
    message, hint = machine.fail()
    assert message == f"`ms://{REPO}` has 3000 files or more, and ModelScope lists no more"
    assert f"`llmdeploy pull hf://{REPO}`" in hint


def test_refused_connection_is_reported(machine: Machine) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    message, hint = machine.fail(MODELSCOPE_ENDPOINT=endpoint)
    assert message == f"`{endpoint}` refuses the connection"
    assert "`--source huggingface`, or its `hf://` address" in hint


def test_dead_proxy_is_reported_without_its_password(machine: Machine) -> None:
    proxy = f"127.0.0.1:{closed_port()}"
    message, hint = machine.fail(MODELSCOPE_ENDPOINT="http://ms.invalid", HTTP_PROXY=f"http://me:secret@{proxy}")
    assert message == f"`http://ms.invalid` through the proxy `{proxy}` refuses the connection"
    assert "env | grep -i proxy" in hint


def test_invalid_proxy_address_is_reported(machine: Machine) -> None:
    message, hint = machine.fail(MODELSCOPE_ENDPOINT="http://ms.invalid", HTTP_PROXY="ftp://nowhere")
    assert message.startswith("`http://ms.invalid` cannot be asked: ")
    assert "env | grep -i proxy" in hint


def test_silent_modelscope_is_reported(machine: Machine, scope: Scope) -> None:
    scope.silent = True
    assert machine.fail(MODELSCOPE_DOWNLOAD_TIMEOUT="1")[0] == f"`{scope.url}` did not answer in time"


def test_stalled_download_ends_and_keeps_its_partial_file(machine: Machine, scope: Scope) -> None:
    scope.stall_after = 1_000_000
    told = machine.fail(MODELSCOPE_DOWNLOAD_TIMEOUT="0.2")
    assert told[0] == f"`{scope.url}` did not answer in time"
    assert (machine.snapshot(COMMIT) / "model.safetensors.incomplete").read_bytes() == WEIGHTS[:1_000_000]


def test_closed_connection_is_reported(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        message, _ = machine.fail(MODELSCOPE_ENDPOINT=endpoint)
    assert message.startswith(f"the connection to `{endpoint}` broke off: ")


def test_failed_tls_is_reported(machine: Machine, scope: Scope) -> None:
    endpoint = scope.url.replace("http:", "https:")
    message, hint = machine.fail(MODELSCOPE_ENDPOINT=endpoint)
    assert message.startswith(f"no safe connection to `{endpoint}`: ")
    assert "`SSL_CERT_FILE`" in hint


def test_older_variable_is_read(machine: Machine, scope: Scope) -> None:
    del machine.env["MODELSCOPE_ENDPOINT"]
    message, _ = machine.fail(MODELSCOPE_DOMAIN=scope.url.removeprefix("http://"))
    assert message.startswith(f"no safe connection to `https://{scope.url.removeprefix('http://')}`")


def test_unresolvable_host_is_reported() -> None:
    import httpx

    from llmdeploy.models.modelscope.api import _unreached

    # A real failure of the resolver that needs no network.
    with pytest.raises(socket.gaierror) as failure:
        socket.getaddrinfo("no.number", 443, flags=socket.AI_NUMERICHOST)
    error = httpx.ConnectError("connection failed")
    error.__cause__ = failure.value
    assert _unreached(error).message == "the address of `https://modelscope.cn` cannot be looked up"


# --- Names


@pytest.mark.parametrize(
    ("hub", "modelscope"),
    [
        ("Qwen/Qwen3-8B", "ms://Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B@v1", "ms://Qwen/Qwen3-8B@v1"),
        ("hf://Qwen/Qwen3-8B-GGUF:Q4_K_M", "ms://Qwen/Qwen3-8B-GGUF:Q4_K_M"),
        ("hf://ggml-org/Qwen2.5-VL-7B-Instruct-GGUF/x.gguf", "ms://ggml-org/Qwen2.5-VL-7B-Instruct-GGUF/x.gguf"),
        ("meta-llama/Llama-3.1-8B-Instruct", "ms://LLM-Research/Meta-Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.3-70B-Instruct", "ms://LLM-Research/Llama-3.3-70B-Instruct"),
        ("google/gemma-3-4b-it", "ms://LLM-Research/gemma-3-4b-it"),
        ("google/gemma-3-270m-it", "ms://google/gemma-3-270m-it"),
        ("google/gemma-3n-E4B-it", "ms://google/gemma-3n-E4B-it"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "ms://LLM-Research/Mistral-7B-Instruct-v0.3"),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "ms://mistralai/Mistral-Small-3.2-24B-Instruct-2506"),
        ("openai/gpt-oss-20b", "ms://openai-mirror/gpt-oss-20b"),
        ("ms://Qwen/Qwen3-8B@v1", "ms://Qwen/Qwen3-8B@v1"),
    ],
)
def test_name_of_the_same_model_at_modelscope(hub: str, modelscope: str) -> None:
    reference = parse(hub)
    assert isinstance(reference, HubRepo | HubFile)
    assert str(at_modelscope(reference)) == modelscope


def test_table_of_names_is_valid_and_sorted() -> None:
    assert all("/" in name and "/" in other for name, other in _prefixes().items())
    assert list(_prefixes()) == sorted(_prefixes())
