"""The engine by what a real Ollama sent: artefacts, facts, plans, pulls, names, the dialect."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdeploy import hardware
from llmdeploy.config import Flags, Settings
from llmdeploy.engines.base import ServerSpec
from llmdeploy.engines.diagnosis import Exited
from llmdeploy.engines.ollama.dialect import adapt
from llmdeploy.engines.ollama.engine import Ollama
from llmdeploy.engines.ollama.settings import OllamaSettings
from llmdeploy.engines.ollama.weights import GgufImport, Tag
from llmdeploy.errors import AlreadyServing, EngineMissing, LlmdeployError, ModelInvalid, NotPermitted
from llmdeploy.models import gguf
from llmdeploy.models.gguf import GgufModel
from llmdeploy.models.reference import HubFile, HubRepo, OllamaTag, parse
from llmdeploy.models.source import Listing, RemoteFile
from llmdeploy.plan import Wishes
from llmdeploy.units import GIB, MIB
from tests.conftest import SELFTEST, World, copy_selftest
from tests.ollama_replay import Replay, closed_port, exchanges, replay

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS, MMPROJ = SELFTEST / "selftest-f16.gguf", SELFTEST / "mmproj-selftest-f16.gguf"
MACHINE = replace(hardware.detect(), memory_available=8 * GIB, gpus=())


def at(ollama: Replay, **settings: Any) -> Ollama:
    """Return the engine at a recorded Ollama, as the service uses it."""
    engine = Ollama(Settings(engine="ollama", ollama=OllamaSettings(host=ollama.url), **settings))
    engine.status()
    spec = engine.daemon.spec(Wishes(), 1)
    assert spec == ServerSpec((), ollama.url, "/api/version")
    return engine.daemon.attached(spec)


def tag(engine: Ollama, name: str) -> Tag:
    """Return a model of Ollama for that engine."""
    found = engine.resolve(OllamaTag(name))
    assert isinstance(found, Tag)
    return found


def imported(engine: Ollama, model: GgufModel) -> GgufImport:
    """Return GGUF files for that engine."""
    return GgufImport(model, engine._server)


def asked_again(ollama: Replay, path: str, number: int) -> None:
    """Have the recorded Ollama answer one of its questions, counted from 0, twice."""
    at = [index for index, one in enumerate(ollama.exchanges) if one["request"]["path"] == path][number]
    ollama.exchanges.insert(at, ollama.exchanges[at])


def renamed(ollama: Replay, names: dict[str, str]) -> None:
    """Have the recordings tell of models by other names."""
    text = json.dumps(ollama.exchanges)
    for old, new in names.items():
        text = text.replace(old, new)
    ollama.exchanges[:] = json.loads(text)


# --- What it needs of a model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qwen2.5-vl:7b", "ollama:qwen2.5vl:7b"),  # the name without its hyphen
        ("qwen3:8b", "ollama:qwen3:8b"),
        ("mine", "ollama:mine"),
        ("mine:v2", "ollama:mine:v2"),
        ("ollama://user/model:7b", "ollama:user/model:7b"),
        ("ollama://registry.example:5000/user/model:7b", "ollama:registry.example:5000/user/model:7b"),
        ("hf.co/owner/repo:Q4_K_M", "ollama:hf.co/owner/repo:Q4_K_M"),
        ("hf.co/owner/repo", "ollama:hf.co/owner/repo"),
        ("selftest", GgufModel(WEIGHTS, MMPROJ)),
        (str(WEIGHTS), GgufModel(WEIGHTS, MMPROJ)),
        ("hf://owner/repo/x.gguf@v1", GgufModel(HubFile("owner/repo", "x.gguf", "v1"))),
        # No model of the cloud: only a tag tells of it.
        ("ollama://user/my-cloud:7b", "ollama:user/my-cloud:7b"),
        ("thunder-cloud", "ollama:thunder-cloud"),
        ("ollama://cloud/model:7b", "ollama:cloud/model:7b"),
    ],
)
def test_every_form_of_a_model_has_its_weights(text: str, expected: str | GgufModel) -> None:
    found = Ollama(Settings()).resolve(parse(text))
    assert (f"ollama:{found}" if isinstance(found, Tag) else found.model) == expected


def test_the_projector_that_was_named_is_taken() -> None:
    engine = Ollama(Settings(flags=Flags(mmproj=MMPROJ)))
    found = engine.resolve(HubFile("owner/repo", "x.gguf"))
    assert isinstance(found, GgufImport)
    assert found.model == GgufModel(HubFile("owner/repo", "x.gguf"), MMPROJ)


@pytest.mark.parametrize("name", ["gpt-oss:cloud", "gpt-oss:20b-cloud", "ollama://user/x:Cloud", "x:7b-CLOUD"])
def test_a_model_of_the_cloud_must_be_allowed(name: str) -> None:
    with pytest.raises(NotPermitted) as caught:
        Ollama(Settings()).resolve(parse(name))
    plain = name.removeprefix("ollama://")
    assert caught.value.code == "cloud_model"
    assert caught.value.message == f"`{plain}` runs at ollama.com, not here: the prompts would leave this machine"
    assert caught.value.hint == f"`llmdeploy serve {plain} --engine ollama --allow-cloud` allows it"
    assert str(Ollama(Settings(flags=Flags(allow_cloud=True))).resolve(parse(name))) == plain


def test_what_is_there_is_present() -> None:
    with replay("version", "tags") as ollama:
        engine = at(ollama)
        assert tag(engine, "selftest").is_present()
        assert tag(engine, "SELFTEST:latest").is_present()
        assert not tag(engine, "selftest:7b").is_present()
        assert not engine.resolve(parse("selftest")).is_present()  # its digests take a while: `pull` tells of it


def test_facts_of_a_model_that_sees() -> None:
    with replay("version", "tags", "show") as ollama:
        facts = tag(at(ollama), "selftest").facts()
    here = gguf.find(parse("selftest")).facts()
    assert facts.capabilities == ("text", "image")
    assert facts.source == "`ollama show selftest`"
    assert facts.weights_bytes == 2334040
    for name in ("architecture", "kv_heads", "key_length", "value_length", "embedding_length", "context_length"):
        assert getattr(facts, name) == getattr(here, name), name


def test_facts_of_an_ollama_that_does_not_tell_capabilities() -> None:
    """Before 0.6.4: a projector in a file of its own is an eye."""
    with replay("version", "tags", "show") as ollama:
        engine = at(ollama)
        for one in ollama.exchanges:
            if one["request"]["path"] == "/api/show" and one["response"]["status"] == 200:
                [chunk] = one["response"]["chunks"]
                document = json.loads(chunk[1])
                del document["capabilities"]
                chunk[1] = json.dumps(document)
        assert tag(engine, "selftest").facts().capabilities == ("text", "image")
        assert tag(engine, "selftest-text").facts().capabilities == ("text",)


def shown(ollama: Replay, **fields: Any) -> Ollama:
    """Return the engine at a recorded Ollama whose model also has these fields."""
    engine = at(ollama)
    [one] = [it for it in ollama.exchanges if it["request"]["body"] == {"model": "selftest"}]
    [chunk] = one["response"]["chunks"]
    chunk[1] = json.dumps(json.loads(chunk[1]) | fields)
    return engine


def test_a_model_that_only_embeds_is_refused() -> None:
    with (
        replay("version", "tags", "show") as ollama,
        pytest.raises(ModelInvalid, match="`selftest` cannot chat: it makes embeddings"),
    ):
        tag(shown(ollama, capabilities=["embedding"]), "selftest").facts()


def test_a_name_that_leads_to_the_cloud_must_be_allowed() -> None:
    with replay("version", "tags", "show") as ollama:
        with pytest.raises(NotPermitted, match=r"runs at https://ollama\.com:443, not here"):
            tag(shown(ollama, remote_host="https://ollama.com:443"), "selftest").facts()
        engine = at(ollama, flags=Flags(allow_cloud=True))
        assert tag(engine, "selftest").facts().capabilities == ("text", "image")


def test_what_else_it_can_is_kept() -> None:
    with replay("version", "tags", "show") as ollama:
        facts = tag(shown(ollama, capabilities=["completion", "tools", "thinking"]), "selftest").facts()
    assert facts.capabilities == ("text", "tools", "thinking")


# --- The plan


def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, allow_cloud: bool = False, **settings: Any) -> Ollama:
    """Return an engine for which the program is installed and no server runs."""
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed_port()}")
    own_settings = OllamaSettings(program=str(program), **settings)
    return Ollama(Settings(ollama=own_settings, flags=Flags(allow_cloud=allow_cloud)))


def test_plan_for_an_external_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the user who started it knows how many requests it answers at once."""
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "7")
    facts = gguf.find(parse("selftest")).facts()
    with replay("version", "empty_store") as ollama:
        plan = at(ollama).plan(facts, MACHINE, Wishes(context=4096, parallel=3))
    assert (plan.context.value, plan.context.reason) == (4096, "as asked for")
    assert plan.parallel.value == 1
    assert plan.parallel.reason.startswith("at least: Ollama was started with a number of its own")
    assert plan.available is not None
    assert plan.available.bytes == 8 * GIB - 512 * MIB


@pytest.mark.parametrize(
    ("variable", "wished", "value", "reason"),
    [
        ("", None, 1, "Ollama's default"),
        ("4", None, 4, "`OLLAMA_NUM_PARALLEL`"),
        ("4", 2, 2, "as asked for"),
        ("many", None, 1, "Ollama's default"),
        ("0", None, 1, "Ollama's default"),
        (' "4" ', None, 4, "`OLLAMA_NUM_PARALLEL`"),
    ],
)
def test_the_plan_of_a_daemon_of_our_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, wished: int | None, value: int, reason: str
) -> None:
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", variable)
    engine = own(monkeypatch, tmp_path)
    with replay("empty_store") as ollama:
        engine = engine.daemon.attached(engine.daemon.spec(Wishes(), int(ollama.url.rpartition(":")[2])))
        plan = engine.plan(gguf.find(parse("selftest")).facts(), MACHINE, Wishes(parallel=wished))
    assert (plan.parallel.value, plan.parallel.reason) == (value, reason)
    assert plan.context.value == 8192


def test_memory_that_ollama_lets_go_counts_as_free() -> None:
    with replay("version", "tags", "load_unload") as ollama:
        del ollama.exchanges[-1]  # the last word is that something is loaded
        plan = at(ollama).plan(gguf.find(parse("selftest")).facts(), MACHINE, Wishes())
    assert plan.available is not None
    assert plan.available.bytes == 8 * GIB - 512 * MIB + 463418161
    assert plan.available.reason.endswith(", and 442 MiB of models that Ollama lets go for another")


def test_the_memory_of_another_machine_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with replay("version", "empty_store") as ollama:
        engine = at(ollama)
        monkeypatch.setattr("llmdeploy.engines.ollama.connection.is_local_url", lambda url: False)
        plan = engine.plan(gguf.find(parse("selftest")).facts(), MACHINE, Wishes())
    assert plan.available is None
    assert plan.fits


# --- A daemon of our own

OF_THE_USER = {"OLLAMA_MODELS": "/users", "OLLAMA_NUM_PARALLEL": "4", "OLLAMA_FLASH_ATTENTION": "1"}


@pytest.mark.parametrize(
    ("settings", "wishes", "environment"),
    [
        ({}, Wishes(), {"OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_NO_CLOUD": "1"}),
        (
            {"models": "/store", "spread": True},
            Wishes(context=4096, parallel=2),
            {
                "OLLAMA_CONTEXT_LENGTH": "4096",
                "OLLAMA_NUM_PARALLEL": "2",
                "OLLAMA_MODELS": "/store",
                "OLLAMA_SCHED_SPREAD": "1",
                "OLLAMA_NO_CLOUD": "1",
            },
        ),
        (
            {"spread": False, "allow_cloud": True},
            Wishes(),
            {"OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_SCHED_SPREAD": "0"},
        ),
    ],
)
def test_the_environment_of_our_daemon(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, Any],
    wishes: Wishes,
    environment: dict[str, str],
) -> None:
    """Only what we have something to say of: the user's own variables hold beside it."""
    for name, value in OF_THE_USER.items():
        monkeypatch.setenv(name, value)
    engine = own(monkeypatch, tmp_path, **settings)
    spec = engine.daemon.spec(wishes, 4321)
    assert spec.argv == (str(tmp_path / "ollama"), "serve")
    assert (spec.base_url, spec.health_path) == ("http://127.0.0.1:4321", "/api/version")
    assert spec.env == {"OLLAMA_HOST": "127.0.0.1:4321", "OLLAMA_KEEP_ALIVE": "-1", **environment}


def test_missing_program_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmdeploy.engines.ollama.state.find_program", lambda settings: (None, ""))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed_port()}")
    with pytest.raises(EngineMissing, match="nothing answers at") as caught:
        Ollama(Settings()).daemon.spec(Wishes(), 4321)
    assert caught.value.hint.startswith("get it: ")


def test_the_revision_of_a_tag_is_its_digest_at_the_daemon() -> None:
    with replay("tags") as ollama:
        engine = Ollama(Settings(ollama=OllamaSettings(host=ollama.url)))
        assert tag(engine, "selftest-text").revision() == (
            "1c1d384c032fcd3b1a24e0e36954c4c3f17861f6014c6d5e0e9cd72dc69bfc57"
        )
        assert tag(engine, "another").revision() is None


# --- A whole deployment, as a real Ollama answered it


@pytest.fixture
def recorded(world: World) -> Iterator[Replay]:
    """Replay an Ollama with an empty store that gets the self-test model, and serves it until it is stopped."""
    with replay("serve_attached") as ollama:
        asked_again(ollama, "/api/ps", 1)  # whether it would fit, before it is given anything
        asked_again(ollama, "/api/tags", 2)  # whether it is there, once it is
        renamed(ollama, {"STATE of HOST": f"{world.state} of {socket.gethostname()}"})
        world.environment["OLLAMA_HOST"] = ollama.url
        yield ollama


def test_a_deployment_is_made_and_undone(world: World, recorded: Replay) -> None:
    result = world.run("serve", "selftest", "--engine", "ollama", "--detach")
    # Whoever watches from outside may miss a phase as short as that of reaching a daemon that is there.
    assert result.text.replace("[TIME] reaching ollama\n", "") == (
        "exit 0\n--- stdout\nhttp://127.0.0.1:[PORT]/v1\n--- stderr\n"
        "[TIME] checking\n[TIME] fetching the weights\n[TIME] loading the model\n[TIME] ready\n"
        "serving `selftest` on ollama\n"
    )
    assert (
        "  loaded   461 MiB on the CPU\n  context  8192 tokens a request, 1 at a time\n" in world.run("status").stdout
    )
    assert world.run("stop").status == 0
    assert recorded.unknown == []
    made, alias = recorded.asked("/api/create")
    assert set(made["files"]) == {"selftest-f16.gguf", "mmproj-selftest-f16.gguf"}
    assert (alias["model"], alias["from"], alias["parameters"]) == ("selftest", made["model"], {"num_ctx": 8192})
    assert [body["keep_alive"] for body in recorded.asked("/api/generate")] == [-1, 0]
    assert recorded.asked("/api/delete") == [{"model": "selftest:latest"}]
    last = [path for method, path, _ in recorded.requests if method != "GET"][-3:]
    assert last == ["/api/generate", "/api/show", "/api/delete"]  # unloaded before its name goes


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("{state} of ", "/another of "),
        ("of {host}.", "of {host}0."),  # the name of another machine that begins like ours
        ("served as selftest:", "served as mine:"),  # what the user copied from an alias
    ],
)
def test_an_alias_that_is_not_ours_is_not_removed(world: World, recorded: Replay, text: str, others: str) -> None:
    """Ours is told by its mark alone."""
    names = {"state": world.state, "host": socket.gethostname()}
    renamed(recorded, {text.format(**names): others.format(**names)})
    recorded.exchanges[:] = [
        one
        for one in recorded.exchanges
        if one["request"]["path"] != "/api/tags" or "selftest:latest" in one["response"]["chunks"][0][1]
    ]
    Ollama(Settings()).daemon.release(recorded.url, "selftest")
    assert recorded.asked("/api/show") == [{"model": "selftest:latest"}]
    assert recorded.asked("/api/delete") == []
    assert recorded.unknown == []


@pytest.mark.parametrize(
    ("license", "kind", "message"),
    [
        ("MIT", ModelInvalid, "Ollama has another model that is called `selftest`, and llmdeploy overwrites none"),
        (
            "llmdeploy: an alias for as long as it is served as selftest:latest, state folder /other of far.",
            AlreadyServing,
            "another llmdeploy serves `selftest` on this Ollama (state folder /other of far)",
        ),
        (
            "llmdeploy: an alias for as long as it is served as another:latest, state folder /other of far.",
            ModelInvalid,
            "Ollama has another model that is called `selftest`, and llmdeploy overwrites none",
        ),
    ],
)
def test_a_name_that_is_taken_is_refused(license: str, kind: type[LlmdeployError], message: str) -> None:
    with replay("version", "tags", "show", "load_unload") as ollama:
        engine = shown(ollama, license=license)
        plan = engine.plan(gguf.find(parse("selftest")).facts(), MACHINE, Wishes())
        with pytest.raises(kind) as caught:
            engine.server(tag(engine, "another"), plan, served_name="selftest", port=1)
        assert caught.value.message == message
        assert caught.value.hint
        assert {path for _, path, _ in ollama.requests} <= {"/", "/api/version", "/api/tags", "/api/ps", "/api/show"}


# --- Kept for as long as it serves


def kept(ollama: Replay, served_name: str = "selftest") -> list[Any]:
    """Return the load requests that one check has caused."""
    spec = ServerSpec((), ollama.url, "/api/version", served_name=served_name)
    asyncio.run(at(ollama).daemon.keep_loaded(spec))
    return ollama.asked("/api/generate")


LOAD = {"model": "selftest", "keep_alive": -1, "stream": False}


@pytest.mark.parametrize("name", ["selftest", "selftest-that-was-removed"])
def test_a_model_that_was_removed_is_missed(name: str) -> None:
    with replay("version", "tags") as ollama:
        spec = ServerSpec((), ollama.url, "/api/version", served_name=name)
        assert asyncio.run(at(ollama).daemon.has_model(spec)) == (name == "selftest")


def test_a_model_that_is_there_for_good_is_left_alone() -> None:
    with replay("version", "tags", "load_unload") as ollama:
        del ollama.exchanges[-1]
        assert kept(ollama) == []


def test_a_model_that_would_be_let_go_soon_is_kept() -> None:
    with replay("version", "tags", "load_unload") as ollama:
        del ollama.exchanges[-1]
        renamed(ollama, {"2319-03-04": "2026-03-04"})
        assert kept(ollama) == [LOAD]


def test_a_model_that_was_let_go_is_loaded_again() -> None:
    with replay("version", "tags", "load_unload", "empty_store") as ollama:
        ollama.exchanges[:] = [one for one in ollama.exchanges if "selftest:latest" not in json.dumps(one)]
        assert kept(ollama) == [LOAD]


def test_where_another_model_has_taken_the_room_nothing_is_forced() -> None:
    with replay("version", "tags", "load_unload") as ollama:
        del ollama.exchanges[-1]
        assert kept(ollama, "mine") == []


# --- Pulls, through the front


@pytest.fixture
def pulling(world: World) -> World:
    world.environment["COLUMNS"] = "100"
    world.environment["HTTPS_PROXY"] = f"http://127.0.0.1:{closed_port()}"  # no registry answers
    return world


def tiny(ollama: Replay, tag: str) -> str:
    """Have the recordings tell of `tiny:TAG`, which Ollama does not have before; what to serve."""
    name = f"tiny:{tag}"
    renamed(ollama, {f"http://127.0.0.1:5055/library/{name}": name, f"http://127.0.0.1:9/library/{name}": name})
    for one in ollama.exchanges:
        if one["request"]["path"] == "/api/pull":
            one["request"]["body"].pop("stream", None)
    return name


@pytest.mark.parametrize(
    ("recording", "tag", "code", "message"),
    [
        (
            "pull_bad",
            "bad",
            "download_failed",
            "what arrived is not what Ollama's registry sent: a proxy or a virus scanner changed it",
        ),
        ("pull_boom", "boom", "download_failed", "Ollama's registry has a failure (503): upstream sad"),
        ("pull_gone", "gone", "model_not_found", "Ollama's registry has no `tiny:gone`"),
        (
            "pull_html",
            "html",
            "download_failed",
            "a web page answers instead of Ollama's registry: the network wants a login, or a proxy is in between",
        ),
        (
            "pull_new",
            "new",
            "download_failed",
            "`tiny:new` needs a newer Ollama server than the one that runs (0.33.0-rc2)",
        ),
        ("pull_not_streamed", "gone", "model_not_found", "Ollama's registry has no `tiny:gone`"),
        ("pull_refused", "ok", "download_failed", "`127.0.0.1:9` refuses Ollama's server"),
    ],
)
def test_every_recorded_pull_that_fails_ends_in_its_own_sentence(
    pulling: World, recording: str, tag: str, code: str, message: str
) -> None:
    with replay("version", "tags", "empty_store", recording) as ollama:
        name = tiny(ollama, tag)
        result = pulling.run("serve", name, "--engine", "ollama", "--json", OLLAMA_HOST=ollama.url)
        assert {path for _, path, _ in ollama.unknown} <= {"/api/show"}
    assert result.status == 1, result.text
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert (error["code"], error["message"]) == (code, message)
    assert error["hint"]
    assert "Traceback" not in result.stderr


def test_a_name_that_ollama_does_not_allow_ends_in_its_own_sentence(pulling: World) -> None:
    with replay("version", "tags", "empty_store", "pull_refused") as ollama:
        renamed(ollama, {"bad name!": "bad.name"})
        result = pulling.run("serve", "ollama://bad.name", "--engine", "ollama", OLLAMA_HOST=ollama.url)
    assert "error: Ollama does not allow the name `bad.name`\nhint: the form is `name:tag`" in result.stderr


def whole(ollama: Replay) -> str:
    """Have the recordings tell of `tiny:ok` as they tell of `selftest`, once it is pulled; what to serve."""
    name = tiny(ollama, "ok")
    renamed(ollama, {"selftest:latest": name, '"selftest"': f'"{name}"'})
    [tags] = [one for one in ollama.exchanges if one["request"]["path"] == "/api/tags"]
    [chunk] = tags["response"]["chunks"]
    chunk[1] = json.dumps({"models": [one for one in json.loads(chunk[1])["models"] if one["name"] == name]})
    empty = exchanges("empty_store")[0]
    ollama.exchanges[:0] = [empty] * 5  # to the look at the state, and to whether it is there, until it is pulled
    return name


@pytest.mark.parametrize("recording", ["pull_ok", "pull_progress"])
def test_a_recorded_pull_that_succeeds_is_served(pulling: World, recording: str) -> None:
    """Off a terminal the progress is lines, and none runs backwards."""
    with replay("version", recording, "show", "tags", "load_unload") as ollama:
        name = whole(ollama)
        result = pulling.run("serve", name, "--engine", "ollama", "--detach", OLLAMA_HOST=ollama.url)
        assert result.status == 0, result.text
        log = (pulling.state / "service.log").read_text()
        assert pulling.run("stop", OLLAMA_HOST=ollama.url).status == 0
        assert ollama.unknown == []
        assert ollama.asked("/api/create") == []  # the name is the user's own: it is served as it is
        assert ollama.asked("/api/delete") == []
    for name, size in (("7824df67ad67", "9 MiB"), ("e5dcffe836b6", "3 B")):
        assert re.findall(rf"^ +{name}: (\d+ \w+)$", log, re.MULTILINE) == [size], "once, when it is whole"
    said = [int(done) for done in re.findall(r"^ +(?:7824df67ad67|in total): (\d+) MiB of", log, re.MULTILINE)]
    assert said == sorted(said)
    assert len(said) > 5
    assert said[-1] == 9


def on_a_terminal(world: World, *arguments: str, **variables: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command whose stderr is a terminal, and return it with the other end."""
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = world.environment | {"TERM": "xterm"} | variables
    command = subprocess.Popen(
        world.command(*arguments), cwd=world.work, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    return command, ours


def drawn(terminal: int, until_seen: str) -> str:
    """Return everything that was drawn up to these words."""
    content = b""
    while until_seen.encode() not in content:
        piece = os.read(terminal, 65536)
        assert piece, content
        content += piece
    return content.decode()


UNITS = {"KiB": 1024, "MiB": 1024**2}


def test_the_bar_reaches_the_total_and_never_runs_backwards(pulling: World) -> None:
    with replay("version", "pull_progress", "show", "tags", "load_unload", slower=1.0) as ollama:
        name = whole(ollama)
        # What a retry does: Ollama itself runs backwards.
        [pull] = [one for one in ollama.exchanges if one["request"]["path"] == "/api/pull"]
        chunks = pull["response"]["chunks"]
        chunks[5][1], chunks[9][1] = chunks[9][1], chunks[5][1]
        command, terminal = on_a_terminal(pulling, "serve", name, "--engine", "ollama", OLLAMA_HOST=ollama.url)
        screen = drawn(terminal, "ready; Ctrl-C stops it")
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=15)
        os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    frames = re.findall(r"(\w{12}|in total) +([━╸╺ ]*) +([\d.]+) ([KM]iB) of ([\d.]+) ([KM]iB)", plain)
    for layer in ("7824df67ad67", "in total"):
        mine = [frame for frame in frames if frame[0] == layer]
        done = [float(frame[2]) * UNITS[frame[3]] for frame in mine]
        assert {float(frame[4]) * UNITS[frame[5]] for frame in mine} == {9 * UNITS["MiB"]}
        assert done == sorted(done)
    assert done[-1] == 9 * UNITS["MiB"], "of all; the bar of a file goes when it is whole"
    first = [frame for frame in frames if frame[0] == "7824df67ad67"]
    assert len({frame[2] for frame in first}) > 4  # it moved, and did not jump to its end
    lengths = [len(frame[1].rstrip().rstrip("╸╺")) for frame in first]
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_pull_closes_the_connection(pulling: World, number: int) -> None:
    with replay("version", "empty_store", "pull_progress", hold_after=6) as ollama:
        pulling.environment["OLLAMA_HOST"] = ollama.url
        service = pulling.start("serve", tiny(ollama, "ok"), "--engine", "ollama")
        assert ollama.holding.wait(20)
        service.send_signal(number)
        assert ollama.hung_up.wait(5)
        _, stderr = service.communicate(timeout=10)
    assert service.returncode == (130 if number == signal.SIGINT else 0), stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert pulling.run("status").stdout == "nothing is served\n"


def test_a_pull_that_another_command_stops(pulling: World) -> None:
    with replay("version", "empty_store", "pull_progress", hold_after=6) as ollama:
        pulling.environment["OLLAMA_HOST"] = ollama.url
        command = pulling.start("serve", tiny(ollama, "ok"), "--engine", "ollama", "--detach")
        assert ollama.holding.wait(20)
        assert pulling.run("stop").status == 0
        assert ollama.hung_up.wait(5)
        _, stderr = command.communicate(timeout=10)
    assert stderr.decode().endswith(
        "error: the start was stopped by another command\nhint: `llmdeploy serve` starts again\n"
    )


# --- The dialect


def test_what_ollama_knows_is_left_as_it_is() -> None:
    request = {"model": "x", "messages": [], "max_tokens": 5, "response_format": {"type": "text"}, "stream": True}
    assert adapt(request) is request


def test_a_field_is_known_by_one_spelling_only() -> None:
    """Ollama reads `Model` as `model`, and the last one counts."""
    assert adapt({"model": "x", "Model": "another", "MAX_TOKENS": 2}) == {"model": "x"}


def test_a_choice_of_tools_is_told_by_the_tools() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "ab"]
    assert adapt({"tools": tools, "tool_choice": "auto"}) == {"tools": tools}
    assert adapt({"tools": tools, "tool_choice": "none"}) == {}
    assert adapt({"tools": tools, "tool_choice": tools[1]}) == {"tools": tools[1:]}


def test_a_model_that_does_not_think_is_not_told_how_hard_to() -> None:
    assert adapt({"model": "x", "reasoning_effort": "low"}, thinks=False) == {"model": "x"}
    with replay("version", "tags", "show", "load_unload") as ollama:
        for capabilities, adapted in ((["completion"], {}), (["completion", "thinking"], {"reasoning_effort": "low"})):
            engine = shown(ollama, capabilities=capabilities)
            plan = engine.plan(gguf.find(parse("selftest")).facts(), MACHINE, Wishes())
            spec = engine.server(tag(engine, "selftest"), plan, served_name="x", port=1)
            assert spec.adapt is not None
            assert spec.adapt({"reasoning_effort": "low"}) == adapted


def test_messages_are_told_in_words_that_it_knows() -> None:
    def image(kind: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,AAAA", "detail": "low"}}

    text = {"type": "text", "text": "image/gif"}
    user = {"role": "user", "content": [text, image("gif"), image("jpeg")]}
    silent = {"role": "assistant", "content": None}
    calling = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    adapted = adapt({"messages": [user, silent, calling]})
    assert adapted["messages"] == [
        {"role": "user", "content": [text, image("png"), image("jpeg")]},
        {"role": "assistant", "content": ""},
        calling,
    ]
    assert user["content"] == [text, image("gif"), image("jpeg")]  # the caller's is not touched


def test_max_completion_tokens_is_sent_as_max_tokens() -> None:
    """Ollama ignores `max_completion_tokens`, as the recordings show."""
    [ignored] = exchanges("v1_ignores_max_completion_tokens")
    request = ignored["request"]["body"]
    assert request["max_completion_tokens"] == 3
    assert '"content":"1 2 3 4 5"' in ignored["response"]["chunks"][0][1]
    adapted = adapt(request)
    assert adapted["max_tokens"] == 3
    assert "max_completion_tokens" not in adapted
    assert adapt({"max_completion_tokens": 9, "max_tokens": 3}) == {"max_tokens": 9}


def test_json_object_is_sent_as_a_schema() -> None:
    """Ollama enforces a schema and does not enforce `json_object`, as the recordings show."""
    loose, enforced = exchanges("v1_json_object")
    assert "Hello! I am" in loose["response"]["chunks"][0][1]
    assert enforced["request"]["body"]["response_format"]["json_schema"]["schema"]["type"] == "object"
    adapted = adapt(loose["request"]["body"])
    assert adapted["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "object", "schema": {"type": "object"}},
    }


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
FORMATS = st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {}, None])


@given(
    st.dictionaries(st.sampled_from(["model", "messages", "stream", "tools", "seed", "max_tokens"]), VALUES),
    st.none() | st.integers(1, 99),
    st.none() | FORMATS,
)
def test_nothing_else_is_changed(request: dict[str, Any], most: int | None, wished: Any) -> None:
    if most is not None:
        request["max_completion_tokens"] = most
    if wished is not None:
        request["response_format"] = wished
    before = json.dumps(request)
    adapted = dict(adapt(request))
    assert json.dumps(request) == before  # the caller's is not touched
    assert adapt(adapted) == adapted
    expected = {name: value for name, value in request.items() if name != "max_completion_tokens"}
    if most is not None:
        expected["max_tokens"] = most
    if wished == {"type": "json_object"}:
        assert adapted.pop("response_format")["type"] == "json_schema"
        del expected["response_format"]
    assert adapted == expected


# --- Its last words


@pytest.mark.parametrize(
    ("log", "status", "cause"),
    [
        (["level=INFO", "Error: listen tcp 127.0.0.1:1: bind: address already in use"], 1, "another program listens"),
        (["Error: unknown"], 1, "Ollama says: unknown"),
        (['level=ERROR msg=terminated error="signal: killed"'], 1, None),
        (["[GIN] 2026/11/22 | 503 | server busy, please try again"], 2, None),
        ([], 1, None),
        (["anything"], -signal.SIGKILL, "the server was killed from outside (SIGKILL)"),
        (["Error: listen tcp: bind: address already in use"], -signal.SIGTERM, "killed from outside (SIGTERM)"),
    ],
)
def test_the_cause_of_its_end(log: list[str], status: int, cause: str | None) -> None:
    found = Ollama(Settings()).diagnose(log, Exited(status))
    if cause is None:
        assert found is None
    else:
        assert found is not None
        assert cause in found.cause
        assert found.fix


# --- Imports


def test_facts_of_a_file_that_is_not_here_are_read_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(HubRepo("owner/repo"), "", (RemoteFile(WEIGHTS.name, 1),))
    monkeypatch.setattr("llmdeploy.models.hub.listing", lambda repo: listing)
    monkeypatch.setattr("llmdeploy.models.hub.open_remote", lambda file: (SELFTEST / file.file).open("rb"))
    with replay("version", "tags") as ollama:
        facts = imported(at(ollama), GgufModel(HubFile("owner/repo", WEIGHTS.name), MMPROJ)).facts()
        assert not [method for method, _, _ in ollama.requests if method != "GET"]
    assert facts == gguf.find(parse("selftest")).facts()


def test_a_context_beyond_the_models_own_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    weights = copy_selftest(tmp_path)
    with replay("version", "empty_store") as ollama:
        engine = at(ollama, context=8193)
        with pytest.raises(LlmdeployError, match=r"8193 tokens is longer than the model's own, 8192"):
            imported(engine, gguf.find(weights)).download(lambda *_: pytest.fail("read"))
        assert not [method for method, _, _ in ollama.requests if method != "GET"]
