"""Private engines: what a server gets of the user's variables, and that nobody uses it without its key."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmdeploy.engines.base import ServerSpec
from llmdeploy.engines.environment import inherited
from llmdeploy.engines.ollama import engine as ollama
from llmdeploy.engines.vllm import environment as vllm
from llmdeploy.errors import PortInUse
from llmdeploy.gateway.gateway import Gateway, Limits
from llmdeploy.gateway.target import Target
from llmdeploy.gateway.upstream import Pool
from llmdeploy.service.ports import require_free_port
from tests.conftest import World

LLAMACPP: tuple[str, ...] = ()
HOSTILE = {
    "LLAMA_API_KEY": "another",
    "LLAMA_ARG_HOST": "0.0.0.0",
    "LLAMA_ARG_API_PREFIX": "/other",
    "LLAMA_ARG_TOOLS": "all",
    "VLLM_API_KEY": "another",
    "VLLM_PORT": "tcp://10.0.0.1:80",
    "VLLM_HOST_IP": "10.0.0.1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "1",
    "VLLM_USE_RUST_FRONTEND": "1",
    "VLLM_USE_MODELSCOPE": "1",
    "OLLAMA_ORIGINS": "*",
    "OLLAMA_API_KEY": "secret",
    "HF_TOKEN": "secret",
    "HUGGING_FACE_HUB_TOKEN": "secret",
    "LLMDEPLOY_API_KEY": "sesame",
    "OPENAI_API_KEY": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "PYTHONSTARTUP": "/tmp/x.py",
    "PYTHONINSPECT": "1",
}
NEEDED = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "LC_ALL": "C.UTF-8",
    "LD_LIBRARY_PATH": "/opt/cuda",
    "CUDA_VISIBLE_DEVICES": "1",
    "NCCL_P2P_DISABLE": "1",
    "HIP_VISIBLE_DEVICES": "0",
    "OMP_NUM_THREADS": "4",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1",
    "https_proxy": "http://proxy:1",
    "TMPDIR": "/scratch",
    "SystemRoot": "C:\\Windows",
}


@pytest.mark.parametrize("patterns", [LLAMACPP, vllm.INHERITED, ollama.INHERITED], ids=["llamacpp", "vllm", "ollama"])
def test_server_gets_of_the_users_variables_what_is_on_the_list(patterns: tuple[str, ...]) -> None:
    assert inherited({**HOSTILE, **NEEDED}, patterns) == NEEDED


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (
            vllm.INHERITED,
            "HF_HOME HF_HUB_CACHE VLLM_LOGGING_LEVEL VLLM_ATTENTION_BACKEND VLLM_CACHE_ROOT VLLM_USE_DEEP_GEMM "
            "VLLM_CPU_KVCACHE_SPACE VLLM_WORKER_MULTIPROC_METHOD VLLM_ALLOW_LONG_MAX_MODEL_LEN TORCH_CUDA_ARCH_LIST "
            "PYTORCH_CUDA_ALLOC_CONF TRITON_CACHE_DIR",
        ),
        (ollama.INHERITED, "OLLAMA_DEBUG OLLAMA_FLASH_ATTENTION OLLAMA_KV_CACHE_TYPE OLLAMA_GPU_OVERHEAD"),
    ],
)
def test_variables_that_tune_an_engine_reach_it_alone(patterns: tuple[str, ...], names: str) -> None:
    given = dict.fromkeys(names.split(), "x")
    assert inherited(given, patterns) == given
    assert not inherited(given, LLAMACPP)


def test_variables_of_ours_go_before_those_of_the_user() -> None:
    spec = ServerSpec((), "http://127.0.0.1:1", "/", env={"A_1": "ours"}, inherits=("A_*",), key="k", key_variable="K")
    assert spec.environment({"A_1": "theirs", "A_2": "theirs", "K": "theirs", "B": "theirs"}) == {
        "A_1": "ours",
        "A_2": "theirs",
        "K": "k",
    }


def test_target_sends_its_own_key_and_does_not_show_it() -> None:
    async def headers(target: Target) -> bytes:
        return Pool(target).headers

    target = Target("llamacpp", "selftest", "127.0.0.1", 4321, key="sesame")
    assert "sesame" not in repr(target)
    assert asyncio.run(headers(target)) == b"host: 127.0.0.1:4321\r\nauthorization: Bearer sesame\r\n"
    assert asyncio.run(headers(Target("ollama", "x", "127.0.0.1", 80))) == b"host: 127.0.0.1\r\n"


# vLLM's lock


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the lock, imported as vLLM does, around an application that answers 200."""
    spec = importlib.util.spec_from_file_location("llmdeploy_key", vllm.IN_VLLM / "llmdeploy_key.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("VLLM_API_KEY", "sesame")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"{scope['type']}.passed", "status": 200})

    return module.RequireKey(app)


def answered(lock: Any, kind: str, *headers: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(lock({"type": kind, "method": "OPTIONS", "path": "/tokenize", "headers": list(headers)}, None, send))
    return sent


RIGHT = (b"authorization", b"Bearer sesame")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"Bearer x"),),
        ((b"authorization", b"sesame"),),
        ((b"x-api-key", b"sesame"),),
        (RIGHT, RIGHT),
    ],
    ids=["none", "another", "without its scheme", "in another header", "twice"],
)
def test_lock_of_vllm_refuses_without_the_key(lock: Any, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert answered(lock, "http", *headers)[0]["status"] == 401
    assert answered(lock, "websocket", *headers) == [{"type": "websocket.close", "code": 1008}]


def test_lock_of_vllm_opens_with_the_key(lock: Any) -> None:
    for kind in ("http", "websocket"):
        assert answered(lock, kind, RIGHT)[0]["type"] == f"{kind}.passed"
    assert answered(lock, "lifespan")[0]["type"] == "lifespan.passed"


def test_vllm_without_a_key_does_not_start(lock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(KeyError):
        type(lock)(None)


# llama.cpp for real


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Serve with a key for applications, and with variables of the user's that are for other servers."""
    world = World(tmp_path_factory.mktemp("private") / "world")
    world.environment |= {name: value for name, value in HOSTILE.items() if not name.startswith("PYTHON")}
    result = world.run("serve", "selftest", "--detach")
    assert result.status == 0, result.text
    yield world
    world.close()


ROUTES = "/ /index.html /health /v1/health /v1/models /models /props /slots /metrics /v1/chat/completions /completion"


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_engine_refuses_every_request_without_its_key(private: World, host: str) -> None:
    port = httpx.URL(private.record()["server_url"]).port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Host": host}, trust_env=False) as http:
        for prefix in ("", "/llmdeploy"):
            for path in ROUTES.split():
                for key in ("", "sesame", "another"):
                    headers = {"Authorization": f"Bearer {key}"} if key else {}
                    for method in ("GET", "POST"):
                        status = http.request(method, prefix + path, headers=headers, json={}).status_code
                        assert status in {401, 404, 405}, (method, prefix + path, key, status)
    assert private.ask_engine("/slots").status_code == 200


def test_gateway_sends_the_engines_key_instead_of_the_clients(private: World) -> None:
    body = {"model": "selftest", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    url = f"http://127.0.0.1:{private.port}/v1/chat/completions"
    for headers, status in (({}, 401), ({"Authorization": "Bearer sesame"}, 200), ({"X-Api-Key": "sesame"}, 200)):
        assert httpx.post(url, json=body, headers=headers, trust_env=False).status_code == status
    stolen = {"Authorization": f"Bearer {private.engine_key()}"}
    assert httpx.post(url, json=body, headers=stolen, trust_env=False).status_code == 401


def test_key_is_shown_nowhere(private: World) -> None:
    key = private.engine_key()
    assert len(key) == 64
    shown = [private.run(*words).text for words in (("status", "--json"), ("logs",), ("doctor",))]
    files = [file.read_text(errors="replace") for file in private.state.iterdir() if file.is_file()]
    arguments = [" ".join(process.cmdline()) for process in private.processes()]
    assert not [text for text in (*shown, *files, *arguments) if key in text]


# Both loopback addresses, or neither


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets two programs share a port")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_port_of_the_other_loopback_address_must_be_free(other_program: int, host: str) -> None:
    with pytest.raises(PortInUse, match=f"port {other_program} is in use by"):
        require_free_port(other_program, host=host)
    require_free_port(other_program, host="127.0.0.2")


def test_gateway_listens_on_both_loopback_addresses_or_fails(other_program: int) -> None:
    async def listen() -> None:
        gateway = Gateway(Limits())
        try:
            await gateway.listen("localhost", other_program)
        finally:
            await gateway.close()

    with pytest.raises(OSError, match="in use"):
        asyncio.run(listen())


@pytest.fixture
def other_program() -> Iterator[int]:
    """Return the port that another program has at `::1` alone."""
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen()
        yield listener.getsockname()[1]
