"""vLLM for real, its CPU build: it serves what llama.cpp serves, says what it does, and why it cannot."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.conftest import BUSY, EXAMPLES, SELFTEST, World, until
from tests.test_engines_command import CTRL_C, at_a_terminal
from tests.transcripts import VllmUser

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

COUNT = [{"role": "user", "content": "Count to 5"}]


def image(name: str) -> dict[str, Any]:
    data = base64.b64encode((EXAMPLES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


ASKED = {"type": "text", "text": "What color is this?"}
QUESTIONS = {
    "text": COUNT,
    "an image": [{"role": "user", "content": [image("red.png"), ASKED]}],
    "two images": [{"role": "user", "content": [image("red.png"), image("blue.png"), ASKED]}],
    "a turn before": [*COUNT, {"role": "assistant", "content": "1 2 3 4 5"}, {"role": "user", "content": "Count to 3"}],
}


def with_vllm(folder: Path, python: str) -> World:
    world = World(folder)
    world.environment["LLMDEPLOY_ENGINES_VLLM_PYTHON"] = python
    world.environment["LLMDEPLOY_ENGINE"] = "vllm"
    # These are for other servers, and for downloads: the server does not get them.
    world.environment |= {"VLLM_API_KEY": "another", "VLLM_PORT": "tcp://10.0.0.1:80", "HF_TOKEN": "hf_secret"}
    del world.environment["PYTHONWARNINGS"]  # warnings of vLLM itself are not failures here
    return world


@pytest.fixture
def vllm(tmp_path: Path, vllm_python: str) -> Iterator[World]:
    world = with_vllm(tmp_path / "world", vllm_python)
    yield world
    world.close()


@pytest.fixture
def serving(on_vllm: VllmUser) -> VllmUser:
    return on_vllm


def client(world: World) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{world.port}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("name", QUESTIONS)
def test_same_answers_as_on_llama_cpp(serving: VllmUser, served: World, name: str) -> None:
    messages: Any = QUESTIONS[name]
    answers = []
    for world in (serving, served):
        with client(world) as asked:
            whole = asked.chat.completions.create(model="selftest", messages=messages, temperature=0)
            chunks = list(
                asked.chat.completions.create(
                    model="selftest",
                    messages=messages,
                    temperature=0,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert whole.usage is not None
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert (whole.model, whole.choices[0].finish_reason) == ("selftest", "stop")
        answers += [whole.choices[0].message.content, streamed]
    assert len(set(answers)) == 1, answers


def test_chat_with_images(serving: VllmUser) -> None:
    images = ["--image", EXAMPLES / "red.png", "--image", EXAMPLES / "blue.png"]
    assert serving.run("chat", *images, "What color is this?").stdout == "The images are red and blue.\n"


def test_start_shows_its_phases_in_order(serving: VllmUser) -> None:
    lines = [line for line in (serving.state / "service.log").read_text().splitlines() if line.startswith("[")]
    phases = [line.partition("] ")[2] for line in lines]
    shown = [name for name in dict.fromkeys(phases) if not name.startswith("still") and "%" not in name]
    assert shown == [
        "checking",
        "starting the server",
        "starting vLLM",
        "reading the model's configuration",
        "starting the engine",
        "building the model",
        "loading the weights",
        "sizing the KV cache",
        "starting the HTTP server",
        "ready; Ctrl-C stops it",
    ]


def test_status_tells_what_the_kv_cache_holds(serving: VllmUser) -> None:
    document = json.loads(serving.run("status", "--json").stdout)
    assert document.items() >= {"engine": "vllm", "context": 8192, "capabilities": ["text", "image"]}.items()
    assert document["engine_detail"].startswith("a KV cache of ")
    assert document["engine_version"].startswith("0.")
    assert "vllm" in serving.run("doctor").stdout


def test_configuration_file_of_vllm(serving: VllmUser) -> None:
    file = serving.state / "vllm.yaml"
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    lines = dict(line.split(": ", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    assert {name: json.loads(value) for name, value in lines.items()} == {
        "max-model-len": 8192,
        "dtype": "float32",
        "enforce-eager": True,
        "kv-cache-memory-bytes": 134_217_728,
        "model": str(SELFTEST / "hf"),
        "served-model-name": "selftest",
        "allowed-media-domains": ["nothing.is.fetched.invalid"],
        "host": "127.0.0.1",
        "port": urlsplit(serving.record()["server_url"]).port,
    }
    assert serving.record()["server_url"] != f"http://127.0.0.1:{serving.port}"  # that is the gateway's


def test_errors_have_openais_form(serving: VllmUser) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{serving.port}/v1", trust_env=False) as http:
        unknown = http.post("/chat/completions", json={"model": "nope", "messages": COUNT})
        long = [{"role": "user", "content": "a b c " * 5000}]
        overflow = http.post("/chat/completions", json={"model": "selftest", "messages": long})
    assert (unknown.status_code, overflow.status_code) == (404, 400)
    stranger, error = unknown.json()["error"], overflow.json()["error"]
    assert stranger["message"] == "the model `nope` is not served here: `selftest` is"
    assert (stranger["code"], stranger["llmdeploy"]["source"]) == ("model_not_found", "gateway")
    words = r"the request has (at least )?(\d+) tokens, and the context of `selftest` 8192"
    numbers = re.fullmatch(words, error["message"])
    assert numbers is not None, error
    assert int(numbers[2]) > 8192
    assert (error["code"], error["llmdeploy"]["source"]) == ("context_length_exceeded", "engine")
    for one in (stranger, error):
        assert one["type"] == "invalid_request_error"
        assert one["llmdeploy"]["engine"] == "vllm"
        assert one["llmdeploy"]["hint"]


def test_engine_refuses_every_request_without_its_key(serving: World) -> None:
    url = serving.record()["server_url"]
    paths = "/v1/models /v1/chat/completions /tokenize /metrics /openapi.json /docs /health /ping /version /load"
    paths += " /invocations /scale_elastic_ep /is_scaling_elastic_ep /server_info /sleep /v2/rerank /no_such_route"
    for headers in (
        {},
        {"Authorization": "Bearer another"},
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
    ):
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
            for path in paths.split():
                found = {method: http.request(method, path).status_code for method in ("GET", "POST", "OPTIONS")}
                assert found == dict.fromkeys(found, 401), (headers, path)
    assert serving.ask_engine("/health").status_code == serving.ask_engine("/metrics").status_code == 200


def test_engine_listens_on_loopback_and_shows_no_secret(serving: World) -> None:
    server = psutil.Process(serving.record()["server"]["pid"])
    hosts = set()
    for process in (server, *server.children(recursive=True)):
        hosts |= {it.laddr[0] for it in process.net_connections("tcp") if it.status == psutil.CONN_LISTEN}
        assert serving.engine_key() not in " ".join(process.cmdline())
    assert hosts == {"127.0.0.1"}
    assert "HF_TOKEN" not in server.environ()
    assert not [file for file in serving.state.iterdir() if serving.engine_key() in file.read_text(errors="replace")]


# What keeps it from starting


def changed(folder: Path, **replaced: str) -> Path:
    """Write the self-test model with changes in its configuration."""
    shutil.copytree(SELFTEST / "hf", folder)
    config = folder / "config.json"
    for old, new in replaced.items():
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
    return folder


def truncated(folder: Path) -> Path:
    changed(folder)
    os.truncate(folder / "model.safetensors", 300_000)
    return folder


def refused(world: World, *arguments: str | Path, **variables: str) -> tuple[str, str]:
    """Return message and hint of a start that fails; assert that it leaves nothing."""
    result = world.run("serve", *arguments, timeout=200, **variables)
    assert (result.status, result.stdout) == (1, ""), result.text
    assert not world.processes()
    error, hint = result.stderr.splitlines()[-2:]
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


BEFORE = "the server ended before it was ready: "
LOG = "; its log is `[FOLDER]/state/server.log`"


def test_truncated_checkpoint(vllm: World) -> None:
    # The error is reported before vLLM is started.
    assert refused(vllm, truncated(vllm.folder / "model")) == (
        "`[FOLDER]/model/model.safetensors` is truncated or damaged: 300,000 bytes are there and 2,314,712 are needed",
        "fetch the file again",
    )


def test_port_in_use(vllm: World, serving: VllmUser) -> None:
    error, _ = refused(vllm, "selftest", LLMDEPLOY_PORT=str(serving.port))
    assert error.startswith(f"port {serving.port} is in use by `")


def test_flag_that_vllm_does_not_have(vllm: World) -> None:
    # The error is reported before anything is started.
    began = time.monotonic()
    assert refused(vllm, "selftest", LLMDEPLOY_ENGINES_VLLM_EXTRA_ARGS="--max-num-batched-tokns 4096")[1] == (
        "did you mean `--max-num-batched-tokens`?"
    )
    assert time.monotonic() - began < 3 * BUSY


def test_missing_model_folder(vllm: World) -> None:
    assert refused(vllm, "/no/such/model") == (
        "there is no `/no/such/model`",
        "give a folder with a `config.json` and safetensors",
    )


def test_model_code_runs_only_with_consent(vllm: World) -> None:
    mark = vllm.folder / "ran"
    model = changed(
        vllm.folder / "model",
        Qwen2_5_VLForConditionalGeneration="FooForCausalLM",
        **{'"model_type": "qwen2_5_vl",': '"model_type": "foo", "auto_map": {"AutoConfig": "configuration_foo.Foo"},'},
    )
    (model / "configuration_foo.py").write_text(f"open({str(mark)!r}, 'w')\nraise RuntimeError('it ran')\n")
    error, hint = refused(vllm, model)
    assert error == "`[FOLDER]/model` runs code of its own: `configuration_foo.py` in `[FOLDER]/model`"
    assert "--trust-remote-code" in hint
    assert not mark.exists()
    refused(vllm, model, "--trust-remote-code")
    assert mark.exists(), "with the yes it runs"
    mark.unlink()
    vllm.run("serve", model, "--timeout", "1")
    assert "trust-remote-code: true" in (vllm.state / "vllm.yaml").read_text(), "one yes holds for this revision"
    (model / "configuration_foo.py").write_text(f"open({str(mark)!r}, 'w')\n")
    assert refused(vllm, model)[0] == error
    assert not mark.exists(), "and for no other"


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\x04", 1), (CTRL_C, 130)])
def test_consent_is_asked_for_at_a_terminal(vllm: World, answer: str, status: int) -> None:
    model = changed(
        vllm.folder / "model",
        Qwen2_5_VLForConditionalGeneration="FooForCausalLM",
        **{'"model_type": "qwen2_5_vl",': '"model_type": "foo", "auto_map": {"AutoConfig": "configuration_foo.Foo"},'},
    )
    (model / "configuration_foo.py").touch()
    ended, seen = at_a_terminal(vllm, "serve", str(model), answer=answer)
    assert ended == status, seen
    assert "run this code on this machine? [y/N] " in seen
    assert "Traceback" not in seen


# The end


def processes_of(world: World, name: str) -> list[psutil.Process]:
    server = psutil.Process(world.record()["server"]["pid"])
    return [process for process in server.children(recursive=True) if name in process.name()]


def test_server_is_started_again_after_a_worker_was_killed(serving: VllmUser) -> None:
    before = serving.record()["server"]["pid"]
    body = {"model": "selftest", "messages": COUNT, "stream": True, "max_tokens": 8000, "ignore_eos": True}
    address = f"http://127.0.0.1:{serving.port}/v1/chat/completions"
    with httpx.stream("POST", address, json=body, timeout=30, trust_env=False) as stream:
        lines = stream.iter_lines()
        next(lines)
        [worker] = processes_of(serving, "VLLM::Worker")
        worker.kill()
        killed = time.monotonic()
        until(lambda: serving.record()["state"] == "starting", 5)
        assert time.monotonic() - killed < 2 * BUSY
        rest: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):  # nobody may take it for whole
            rest.extend(lines)
        last = [line for line in rest if line.startswith('data: {"error"')]
    error = json.loads(last[0].removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code", "llmdeploy"}
    body = {"model": "selftest", "messages": COUNT, "temperature": 0}
    held = httpx.post(address, json=body, timeout=200, trust_env=False)  # until there is a server again
    assert held.json()["choices"][0]["message"]["content"] == "1 2 3 4 5", held.text
    assert serving.record()["state"] == "ready"
    assert serving.record()["server"]["pid"] != before
    assert serving.run("chat", "Count to 3").stdout == "1 2 3\n"
    # It cannot hear SIGTERM now; stopping it leaves nothing all the same.
    for process in [*processes_of(serving, ""), psutil.Process(serving.record()["server"]["pid"])]:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert serving.run("stop").status == 0
    until(lambda: not serving.processes(), 10)
    assert time.monotonic() - began < 10
