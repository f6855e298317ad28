"""Certificates: health checks, engine calls and the gateway trust the same ones."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from llmdeploy.engines.base import ServerSpec
from llmdeploy.engines.ollama.probe import probe
from llmdeploy.service.health import healthy
from llmdeploy.tls import trusting
from tests.ollama_replay import replay
from tests.tls_world import CERTIFICATE, reverse_proxy


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    trusting.cache_clear()
    yield
    trusting.cache_clear()


@pytest.fixture
def address() -> Iterator[str]:
    """Return the URL of an Ollama behind TLS and a path."""
    with replay("version", "serve_attached") as ollama, reverse_proxy(ollama.url, "/ollama") as url:
        yield url


def test_untrusted_server_is_not_used(address: str) -> None:
    assert not healthy(ServerSpec((), address, "/api/version"))
    found = probe(address)
    assert found.state == "other"
    assert found.detail.startswith(f"no safe connection to `{address}`: ")


def test_configured_certificate_is_trusted_everywhere(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert healthy(ServerSpec((), address, "/api/version"))
    assert probe(address).state == "running"


def test_python_without_certificates_uses_mozillas(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ssl.create_default_context

    def without(**options: Any) -> ssl.SSLContext:
        return made(**options) if options else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(ssl, "create_default_context", without)
    assert trusting().cert_store_stats()["x509_ca"] > 50
    assert trusting().verify_mode == ssl.CERT_REQUIRED
